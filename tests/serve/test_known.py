"""Heads that were seen before are not read again, and say the same."""

import asyncio
import json

import pytest

from fairlead.serve import frontend, upstream
from fairlead.serve.frontend import ClientConnection
from fairlead.serve.known import MOST, cut_length, keep

HEAD = b"POST /v1/completions?a=b HTTP/1.1\r\nHost: x\r\nX-Own: 1\r\nContent-Length: "

ANSWER = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: \r\n\r\n"


def message(text, head=HEAD):
    body = json.dumps({"model": "m", "prompt": text, "max_tokens": 2}).encode()
    return head + b"%d\r\n\r\n" % len(body) + body


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(frontend, "_KNOWN", {})
    monkeypatch.setattr(upstream, "_KNOWN", {})


@pytest.fixture
def parsed(monkeypatch):
    """What clients sent and llhttp was given."""
    found = []
    feed = ClientConnection._feed

    def noted(self, data):
        found.append(data)
        feed(self, data)

    monkeypatch.setattr(ClientConnection, "_feed", noted)
    return found


def test_the_number_is_cut_out_of_the_head():
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 05\r\nA: b\r\n\r\nhello"
    assert cut_length(data) == (b"HTTP/1.1 200 OK\r\ncontent-length: \r\nA: b\r\n\r\n", 5, len(data) - 5)
    for strange in (
        data[: data.index(b"\r\n\r\n") + 3],
        data.replace(b"content", b"x-content"),
        data.replace(b"\r\ncontent", b"\ncontent"),
        data.replace(b"\r\ncontent", b"\rcontent"),
        data.replace(b"content-length", b"CONTENT-LENGTH"),
        data.replace(b"05", b"+5"),
        data.replace(b"05", b"5 "),
        data.replace(b"05", b"5, 5"),
        data.replace(b"05", b""),
        data.replace(b"05", b"1" * 16),
        data.replace(b"A: b", b"A: " + b"b" * 10_000),
        b"content-length: 5\r\n\r\nhello",
        b"\r\n\r\n" + data,
        b"",
    ):
        assert cut_length(strange) is None, strange


def test_the_heads_that_are_kept_are_bounded():
    known: dict[bytes, int] = {}
    for i in range(3 * MOST):
        keep(known, b"%d" % i, i)
        assert known[b"%d" % i] == i
    assert len(known) <= MOST


def test_a_request_whose_head_is_known_arrives_like_the_first_one(play, parsed):
    async def scene(world):
        texts = ["a", "much longer " * 200, "", "b"]
        clients = [await world.client() for _ in range(2)]
        for text in texts:
            for client in clients:
                client.send(message(text))
                assert (await client.answer()).status == 200
        assert parsed == [message("a")]
        assert len(frontend._KNOWN) == 1
        seen = [request for backend in world.backends for request in backend.requests]
        assert sorted(json.loads(body)["prompt"] for *_, body in seen) == sorted(2 * texts)
        assert len({headers.pop("x-request-id") for _, _, headers, _ in seen}) == 8
        for _, _, headers, body in seen:
            assert int(headers.pop("content-length")) == len(body)
            assert headers["x-own"] == "1"
        first = seen[0][:3]
        assert first[:2] == ("POST", "/v1/completions?a=b")
        for method, path, headers, _ in seen:
            assert (method, path, headers | {"host": ""}) == (*first[:2], first[2] | {"host": ""})
        for backend in world.backends:
            assert {headers["host"] for _, _, headers, _ in backend.requests} <= {backend.url[7:]}

    play(scene)


def test_known_heads_in_pieces_and_in_a_row(play, parsed):
    async def scene(world):
        client = await world.client()
        client.send(message("first"))
        assert (await client.answer()).status == 200
        again = message("second")
        for cut in (1, 30, len(HEAD), len(HEAD) + 6, len(again) - 1):
            client.send(again[:cut])
            await asyncio.sleep(0.01)
            client.send(again[cut:])
            assert (await client.answer()).status == 200
        client.send(again + again + message("third"))
        for _ in range(3):
            assert (await client.answer()).status == 200
        before = len(parsed)
        client.send(again)
        assert (await client.answer()).status == 200
        assert len(parsed) == before
        prompts = [json.loads(body)["prompt"] for each in world.backends for *_, body in each.requests]
        assert sorted(prompts) == ["first", *["second"] * 8, "third"]

    play(scene)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.1\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nHost: y\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: ",
        b"POST /v1/x HTTP/1.0\r\nHost: x\r\nConnection: keep-alive\r\nContent-Length: ",
    ],
)
def test_what_is_refused_or_odd_is_never_known(play, head):
    async def scene(world):
        for _ in range(2):
            client = await world.client()
            client.send(head + b"3\r\n\r\n{} ")
            await client.answer()
        assert not frontend._KNOWN

    play(scene)


def test_a_known_head_says_nothing_under_other_limits(play):
    async def scene(world):
        client = await world.client()
        client.send(message("x" * 500))
        assert (await client.answer()).status == 200
        client.send(message("x" * 2000))  # over the limit, which is examined
        assert (await client.answer()).status == 413
        limits = world.gateway.limits
        world.gateway.limits = limits.model_copy(update={"max_headers": 1})
        client = await world.client()
        client.send(message("x"))
        assert (await client.answer()).status == 431

    play(scene, limits={"max_body_bytes": 1000})


def test_keys_are_asked_for_each_time(play):
    async def scene(world):
        head = HEAD.replace(b"X-Own: 1", b"Authorization: Bearer %b")
        for key, status in ((b"good", 200), (b"good", 200), (b"bad", 401), (b"bad", 401), (b"good", 200)):
            client = await world.client()
            client.send(message("x", head.replace(b"%b", key)))
            assert (await client.answer()).status == status
        requests = [each for backend in world.backends for each in backend.requests]
        assert len(requests) == 3
        assert not any("authorization" in headers for _, _, headers, _ in requests)

    play(scene, api_keys=["good"])


def test_answers_whose_head_is_known(play, prompt):
    async def scene(world):
        client = await world.client()
        for count in (1, 200, 3):
            client.request(body={**prompt, "max_tokens": count})
            answer = await client.answer()
            assert answer.json["choices"] == [{"text": " x" * count}]
            assert answer.headers["content-length"] == str(len(answer.body))
        assert ANSWER % 200 in upstream._KNOWN
        client.request(method="HEAD")
        assert (await client.answer(head_only=True)).status == 200
        assert world.gateway.backends.find("b0").in_flight == world.gateway.backends.find("b1").in_flight == 0

    play(scene)


def test_a_known_failure_is_repeated_elsewhere(play, prompt):
    async def busy(backend, client, asked):
        backend.plain(client, 503, b"{}")
        return True

    async def scene(world):
        world.backends[0].behave = busy
        for _ in range(12):
            assert (await world.ask(body=prompt)).status == 200
        assert len(world.backends[0].requests) > 1
        assert {ANSWER % 200, ANSWER % 503} <= upstream._KNOWN.keys()

    play(scene, health={"eject_after": 1000})
