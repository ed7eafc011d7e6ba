"""Totals that the gateway asks for and its client does not see."""

import json

import pytest

from fairlead.serve.totals import TotalsFilter, asking

ASK = {"tokens": {"ask_usage": True}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 3}
QUOTED = '"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}'


def event(content: object) -> bytes:
    return f"data: {content if isinstance(content, str) else json.dumps(content)}\n\n".encode()


KEPT = [
    event({"choices": [{"text": "a", "index": 0}], "usage": None}),
    event({"choices": [{"text": QUOTED, "index": 0}]}),
    event({"choices": [], "prompt_filter_results": []}),
    b": ping\n\n",
    event({"choices": [{"text": "b"}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}),
]
TOTAL = event({"id": "x", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}})


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("end", [b"", b"data: half an ev"])
def test_only_the_total_is_taken_out_however_the_stream_is_cut(size, line_end, end):
    stream = b"".join([*KEPT, TOTAL, event("[DONE]")]).replace(b"\n", line_end) + end
    shown = b"".join([*KEPT, event("[DONE]")]).replace(b"\n", line_end) + end
    part = TotalsFilter()
    pieces = [part.feed(stream[i : i + size]) for i in range(0, len(stream), size)]
    assert b"".join(pieces) + part.rest() == shown
    assert all(not piece or piece.endswith(line_end * 2) for piece in pieces)  # no event waits for another


def test_what_is_held_back_is_bounded():
    part = TotalsFilter()
    assert sum(len(part.feed(b"x" * 100_000)) for _ in range(30)) > 1_000_000


@pytest.mark.parametrize("space", ["", " ", "\n\t"])
def test_the_request_stays_what_it_was(space):
    body = f'{space}{{{space}"prompt": "{{", "n": 1.0}}'.encode()
    assert json.loads(asking(body)) == {
        **json.loads(body),
        "stream_options": {"include_usage": True},
    }


def merging(seen):
    """A backend that sends nine tokens in three events, and says so to those who ask."""

    async def behave(backend, client, asked):
        seen.append(asked)
        backend.begin_stream(client)
        for text in ("a b c d", "e f g", "h i"):
            backend.event(client, {"choices": [{"text": text}]})
        if (asked.get("stream_options") or {}).get("include_usage"):
            backend.event(
                client, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}, "id": "total"}
            )
        backend.event(client, "[DONE]")
        client.send(b"0\r\n\r\n")
        return True

    return behave


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("asks", [True, False])
def test_merged_tokens_are_counted_right_and_the_client_sees_no_total(play, path, asks):
    async def scene(world):
        seen: list[object] = []
        world.backends[0].behave = merging(seen)
        answer = await world.ask(path, CHAT, headers={"Accept-Encoding": "gzip"})
        assert [json.loads(each)["choices"][0]["text"] for each in answer.events[:-1]] == [
            "a b c d",
            "e f g",
            "h i",
        ]
        assert (answer.status, answer.complete, answer.events[-1]) == (200, True, "[DONE]")
        ledger = world.gateway.ledger
        assert (ledger.finished, ledger.finished_tokens) == (1, 9 if asks else 3)
        added = {"stream_options": {"include_usage": True}} if asks else {}
        assert seen == [CHAT | added]
        (_, _, headers, body) = world.backends[0].requests[0]
        assert ("accept-encoding" in headers) is not asks
        assert asks or body == json.dumps(CHAT).encode()  # by default not a byte is altered

    play(scene, backends=1, **(ASK if asks else {}))


@pytest.mark.parametrize("options", [{"include_usage": True}, {"include_usage": False}, {}, None])
def test_a_client_that_speaks_of_it_gets_what_it_asks_for(play, options):
    async def scene(world):
        seen: list[object] = []
        world.backends[0].behave = merging(seen)
        body = CHAT | {"stream_options": options}
        answer = await world.ask("/v1/chat/completions", body)
        assert seen == [body]
        assert ('"total"' in answer.body.decode()) is bool(options and options["include_usage"])

    play(scene, backends=1, **ASK)


@pytest.mark.parametrize("body", [{**CHAT, "stream": False}, b'{"stream": true', b"[1]", {"stream": "yes"}])
def test_what_is_no_stream_is_passed_on_as_it_is(play, body):
    async def scene(world):
        await world.ask("/v1/completions", body)
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        assert world.backends[0].requests[0][3] == sent

    play(scene, backends=1, **ASK)


def test_streams_with_a_length_and_streams_to_old_clients(play):
    async def scene(world):
        content = b"".join([event({"choices": [{"text": "a"}]}), TOTAL, event("[DONE]")])

        async def behave(backend, client, asked):
            backend.plain(client, 200, content, "text/event-stream")
            return True

        world.backends[0].behave = behave
        answer = await world.ask(body=CHAT)
        assert (answer.complete, answer.body) == (True, content.replace(TOTAL, b""))
        client = await world.client()
        data = json.dumps(CHAT).encode()
        head = b"POST /v1/completions HTTP/1.0\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data)
        client.send(head + data)
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, content.replace(TOTAL, b""))

    play(scene, backends=1, **ASK)


def test_a_retry_asks_once_and_errors_are_passed_on(play):
    async def scene(world):
        async def busy(backend, client, asked):
            backend.plain(client, 503, b"{}")
            return True

        async def refuses(backend, client, asked):
            backend.plain(client, 400, b'{"error":"stream_options"}')
            return True

        world.backends[0].behave, world.backends[1].behave = busy, refuses
        answer = await world.ask(body=CHAT)
        assert (answer.status, answer.body) == (400, b'{"error":"stream_options"}')
        for backend in world.backends:
            assert backend.requests[0][3].count(b"include_usage") == 1

    play(scene, policy={"router": "round_robin"}, **ASK)
