"""The load client against small servers that do one thing each."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.live import LiveRun, replay
from fairlead.workload.content import Content
from fairlead.workload.requests import Requests

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


HEAD = b"HTTP/1.1 200 OK\r\nx-fairlead-replica: 2\r\nTransfer-Encoding: chunked\r\n\r\n"


def answer(tokens: int) -> bytes:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d}}\n\n' % tokens
    return (
        HEAD
        + chunk(b'data: {"choices":[{"text":"a"}]}\n\n')
        + chunk(usage + b"data: [DONE]\n\n")
        + chunk(b"")
    )


async def read_request(reader: asyncio.StreamReader) -> dict[str, object]:
    """The body of the next request; raises IncompleteReadError at the end of the connection."""
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [
        line.partition(b":")[2] for line in head.split(b"\r\n") if line.startswith(b"Content-Length")
    ]
    body: dict[str, object] = json.loads(await reader.readexactly(int(length)))
    return body


def requests(*rows: tuple[float, int, int]) -> Requests:
    arrival, prompt, output = zip(*rows, strict=True)
    return Requests(np.array(arrival), np.array(prompt), np.array(output))


def run(handler: Handler, wanted: Requests, **options) -> LiveRun:
    async def main() -> LiveRun:
        async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(guarded, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            return await replay(f"http://127.0.0.1:{port}", wanted, model="tiny", **options)

    return asyncio.run(main())


async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        body = await read_request(reader)
        tokens = body.get("max_tokens")
        assert isinstance(tokens, int)
        writer.write(answer(tokens))


def test_every_request_is_sent_at_its_time_and_measured():
    wanted = requests((0.0, 3, 5), (0.05, 1, 2), (0.05, 7, 9))
    result = run(good, wanted)
    assert result.failed == 0 and result.output_tokens.tolist() == [5, 2, 9]
    assert result.replica.tolist() == [2, 2, 2]
    assert (result.lag_s >= 0).all()
    assert (result.first_token_s >= wanted.arrival_s + result.lag_s).all()
    assert (result.finish_s >= result.first_token_s).all()
    outcomes = result.outcomes(num_replicas=4)
    assert (outcomes.e2e_s >= outcomes.ttft_s).all() and outcomes.num_replicas == 4


@pytest.mark.parametrize("lengths", ["limit", "hint"])
def test_what_is_sent(lengths):
    seen: list[dict[str, object]] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await read_request(reader))
            writer.write(answer(1))

    run(record, requests((0.0, 3, 5), (0.01, 1, 6)), lengths=lengths)
    assert [len(str(body["prompt"]).split()) for body in seen] == [3, 1]
    assert len({str(body["prompt"]).split()[0] for body in seen}) == 2
    assert all(body["stream"] and body["stream_options"] == {"include_usage": True} for body in seen)
    if lengths == "limit":
        assert [(body["max_tokens"], body["ignore_eos"]) for body in seen] == [(5, True), (6, True)]
    else:
        assert [body["vllm_xargs"] for body in seen] == [{"fairlead_output_tokens": n} for n in (5, 6)]
        assert len({body["max_tokens"] for body in seen}) == 1


def test_sessions_are_named_as_routers_want_them():
    seen: list[tuple[object, bool]] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            body = json.loads(
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split()[0]))
            )
            name = str(body.get("user", ""))
            seen.append(
                (name, f"X-Session-ID: {name}\r\n".encode() in head if name else b"X-Session" in head)
            )
            writer.write(answer(1))

    wanted = Requests(
        np.array([0.0, 0.01, 0.02]), np.ones(3, np.int64), np.ones(3, np.int64), session=np.array([7, 0, 7])
    )
    result = run(record, wanted, session_headers=["X-Session-ID"])
    assert result.failed == 0
    assert sorted(seen) == [("", False), ("session-7", True), ("session-7", True)]


def test_prompts_share_the_words_of_the_blocks_that_they_share():
    prompts: list[list[str]] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            prompts.append(str((await read_request(reader))["prompt"]).split())
            writer.write(answer(1))

    content = Content(np.array([0, 1, 0, 1, 2, 3]), np.array([0, 2, 4, 6]), block_size=4)
    lengths = np.array([9, 8, 5]), np.array([1, 1, 4])
    run(record, Requests(np.array([0.0, 0.01, 0.02]), *lengths, content=content))
    first, second, third = sorted(prompts, key=len, reverse=True)
    assert [len(words) for words in (first, second, third)] == [9, 8, 5]
    assert first[:8] == second and first[8] == "r0"
    assert not set(third) & set(first)


def test_times_are_those_of_the_workload_at_any_speed():
    result = run(good, requests((0.0, 1, 1), (20.0, 1, 1)), speed=100.0)
    assert result.failed == 0 and result.first_token_s[1] >= 20.0


async def status_500(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\nsick")


async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(answer(3)[:120])


async def no_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(HEAD + chunk(b'data: {"choices":[{"text":"a"}]}\n\n') + chunk(b""))


async def not_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"hello\r\n\r\n")


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    await reader.read()


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        (status_500, "status 500: sick"),
        (half_an_answer, "the connection was closed"),
        (no_end, "the answer ended early"),
        (not_http, "not HTTP"),
        (silent, "no complete answer after 0.3 s"),
    ],
    ids=["status", "cut", "no-end", "not-http", "silent"],
)
def test_a_bad_answer_is_a_failure_with_a_reason(handler, error):
    result = run(handler, requests((0.0, 1, 3), (0.01, 1, 3)), timeout_s=0.3)
    assert result.failed == 2 and all(each.startswith(error) for each in result.errors)
    assert np.isnan(result.finish_s).all() and (result.output_tokens == 0).all()
    with pytest.raises(FairleadError, match="2 of 2 requests failed"):
        result.outcomes(1)


def test_a_connection_that_the_server_closed_between_two_requests_is_no_failure():
    served = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await read_request(reader)
        writer.write(answer(1))
        served += 1
        await reader.readexactly(1)  # the next request has come: close before it is read

    result = run(once, requests((0.0, 1, 1), (0.1, 1, 1), (0.2, 1, 1)))
    assert (result.failed, served) == (0, 3)


def test_a_server_that_is_not_there():
    result = asyncio.run(replay("http://127.0.0.1:1", requests((0.0, 1, 1)), model="tiny"))
    assert result.failed == 1 and "cannot connect" in result.errors[0]


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "https://localhost", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(FairleadError, match="not the address"):
        asyncio.run(replay(url, requests((0.0, 1, 1)), model="tiny"))
