"""Requests in, answers out: what passes through a gateway, and how."""

import asyncio
import json
import socket
import threading

import pytest

from fairlead.serve.frontend import ClientConnection


def test_a_completion_comes_back_as_the_backend_gave_it(play, prompt):
    async def scene(world):
        answer = await world.ask(body=prompt)
        assert answer.status == 200
        assert answer.json["choices"][0]["text"] == " x x x x"
        (request,) = [each for backend in world.backends for each in backend.requests]
        assert request[:2] == ("POST", "/v1/completions")
        assert json.loads(request[3]) == prompt

    play(scene)


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/embeddings", "/v1/responses", "/v1/anything/else?x=1", "/tokenize"]
)
def test_every_path_of_the_api_is_passed_on(play, prompt, path):
    async def scene(world):
        assert (await world.ask(path, prompt)).status == 200
        (request,) = [each for backend in world.backends for each in backend.requests]
        assert request[1] == path

    play(scene)


def test_headers_are_kept_and_those_of_one_connection_are_not(play, prompt):
    async def scene(world):
        sent = {
            "X-Custom": "kept",
            "Authorization": "Bearer of-the-backend",
            "Connection": "keep-alive, X-Secret",
            "X-Secret": "for this connection",
            "Keep-Alive": "timeout=5",
            "TE": "trailers",
            "Upgrade": "h2c",
            "X-Request-Id": "mine-1",
            "X-Forwarded-For": "203.0.113.9",
            "Via": "1.1 front",
        }
        world.backends[0].headers = {"X-Answer": "kept", "Connection": "X-Inner", "X-Inner": "no"}
        answer = await world.ask(body=prompt, headers=sent)
        (_, _, got, _) = world.backends[0].requests[0]
        assert got["x-custom"] == "kept"
        assert got["authorization"] == "Bearer of-the-backend"
        assert got["x-request-id"] == "mine-1"
        assert got["x-forwarded-for"] == "203.0.113.9, 127.0.0.1"
        assert got["via"] == "1.1 front, 1.1 fairlead"
        assert got["host"] == f"127.0.0.1:{world.backends[0].port}"
        assert not {"connection", "x-secret", "keep-alive", "te", "upgrade"} & set(got)
        assert answer.headers["x-answer"] == "kept"
        assert answer.headers["x-request-id"] == "mine-1"
        assert "x-inner" not in answer.headers

    play(scene, backends=1)


def test_requests_without_an_id_get_one_each(play, prompt):
    async def scene(world):
        ids = {(await world.ask(body=prompt)).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3
        assert {r[2]["x-request-id"] for b in world.backends for r in b.requests} == ids

    play(scene)


def test_an_answer_leaves_before_its_books_are_kept(play, prompt):
    """What is slow about logs or traces must not hold up the answer that they are about."""
    got = threading.Event()

    def client(port: int) -> None:
        body = json.dumps(prompt).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: %d\r\n\r\n" % len(body)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(head + body)
            data = b""
            while b" x x x x" not in data:
                data += connection.recv(65_536)
            got.set()

    async def scene(world):
        seen = []
        ended = world.gateway.ended

        def book(exchange, backend):
            seen.append(got.wait(5.0))  # nothing else can happen on the loop meanwhile
            ended(exchange, backend)

        world.gateway.ended = book
        await asyncio.to_thread(client, world.port)
        while not seen:
            await asyncio.sleep(0.01)
        assert seen == [True]

    play(scene)


def test_connections_are_kept_on_both_sides(play, prompt):
    async def scene(world):
        client = await world.client()
        for _ in range(20):
            client.request(body=prompt)
            assert (await client.answer()).status == 200
        # One for requests; health checks and scrapes share the pool and may need one each.
        assert world.backends[0].connections <= 4

    play(scene, backends=1)


def test_pipelined_requests_are_answered_in_order(play, prompt):
    async def scene(world):
        client = await world.client()
        for i in range(10):
            client.request(body=prompt | {"max_tokens": i + 1, "stream": i % 2 == 0})
        for i in range(10):
            answer = await client.answer()
            assert answer.status == 200
            tokens = len(answer.events) - 1 if i % 2 == 0 else answer.json["usage"]["completion_tokens"]
            assert tokens == i + 1

    play(scene)


def test_too_many_pipelined_requests_are_refused(play, prompt):
    async def scene(world):
        client = await world.client()
        for _ in range(40):
            client.request("/v1/completions", prompt)
        answers = [await client.answer() for _ in range(17)]
        assert [each.status for each in answers] == [200] * 16 + [429]
        assert await client.closed()

    play(scene)


def test_events_arrive_one_by_one(play, prompt):
    async def scene(world):
        step = asyncio.Event()

        async def slowly(backend, client, asked):
            backend.begin_stream(client)
            for i in range(3):
                backend.event(client, {"choices": [{"text": str(i)}]})
                await step.wait()
                step.clear()
            client.send(b"0\r\n\r\n")
            return True

        world.backends[0].behave = slowly
        client = await world.client()
        client.request(body=prompt | {"stream": True})
        status, headers = await client.head()
        assert (status, headers["content-type"]) == (200, "text/event-stream")
        for i in range(3):  # each is here before the backend makes the next one
            assert json.loads((await client.chunk())[6:])["choices"][0]["text"] == str(i)
            step.set()
        assert await client.chunk() == b""

    play(scene, backends=1)


def test_a_client_that_leaves_is_noticed_by_the_backend_at_once(play, prompt):
    async def scene(world):
        gone = asyncio.Event()

        async def endless(backend, client, asked):
            backend.begin_stream(client)
            backend.event(client, {"choices": [{"text": "a"}]})
            await client.reader.read()
            gone.set()
            return False

        world.backends[0].behave = endless
        for leave in ("close", "reset"):
            gone.clear()
            client = await world.client()
            client.request(body=prompt | {"stream": True})
            await client.head()
            await client.chunk()
            getattr(client, leave)()
            await asyncio.wait_for(gone.wait(), 5)
        await world.until(lambda: world.gateway.backends.find("b0").cancelled == 2)
        assert world.gateway.requests == {("/v1/completions", 499): 2}

    play(scene, backends=1)


def test_a_client_that_leaves_before_any_answer(play, prompt):
    async def scene(world):
        world.backends[0].gate = asyncio.Event()
        client = await world.client()
        client.request(body=prompt)
        await world.until(lambda: len(world.backends[0].requests) == 1)
        client.close()
        await world.until(lambda: world.backends[0].cancelled == 1)

    play(scene, backends=1)


def test_a_large_body_is_streamed(play):
    async def scene(world):
        body = json.dumps({"model": "m", "prompt": "x" * 3_000_000}).encode()
        client = await world.client()
        client.request(body=body)
        assert (await client.answer()).status == 200
        assert world.backends[0].requests[0][3] == body
        assert world.backends[0].requests[0][2]["content-length"] == str(len(body))

    play(scene, backends=1, limits={"inspect_bytes": 50_000})


def test_a_large_chunked_body_is_streamed(play):
    async def scene(world):
        pieces = [b'{"prompt": "', *[b"y" * 10_000] * 100, b'"}']
        client = await world.client()
        client.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(0)
        client.send(b"0\r\n\r\n")
        assert (await client.answer()).status == 200
        assert world.backends[0].requests[0][3] == b"".join(pieces)

    play(scene, backends=1, limits={"inspect_bytes": 50_000})


def test_a_small_chunked_body_is_given_a_length(play, prompt):
    async def scene(world):
        body = json.dumps(prompt).encode()
        client = await world.client()
        client.send(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"%x\r\n%b\r\n0\r\nTrailer: dropped\r\n\r\n" % (len(body), body))
        assert (await client.answer()).status == 200
        assert world.backends[0].requests[0][2]["content-length"] == str(len(body))

    play(scene, backends=1)


def test_a_slow_client_slows_its_backend_down_and_nobody_else(play, prompt):
    async def scene(world):
        sent = 0

        async def flood(backend, client, asked):
            nonlocal sent
            if not asked.get("stream"):
                return await backend.generate(client, asked)
            backend.begin_stream(client)
            for _ in range(400):
                backend.event(client, "z" * 100_000)
                sent += 100_000
                await client.writer.drain()
            client.send(b"0\r\n\r\n")
            return True

        world.backends[0].behave = flood
        client = await world.client(limit=1024)
        client.request(body=prompt | {"stream": True})
        await client.head()
        before = -1
        while sent != before:  # until it does not move any more
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 30_000_000
        assert (await world.ask(body=prompt)).status == 200
        total = 0
        while piece := await client.reader.read(2**20):
            total += len(piece)
            if piece.endswith(b"0\r\n\r\n"):
                break
        assert total > 40_000_000

    play(scene, backends=1)


def test_an_upload_is_slowed_down_by_its_backend(play):
    async def scene(world):
        go = asyncio.Event()

        async def reads_late(reader, writer):
            if b"/v1/files" not in await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                writer.close()
                return
            await go.wait()
            left = 40_000_000
            while left:
                piece = await reader.read(2**20)
                assert piece
                left -= len(piece)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            writer.close()

        late = await asyncio.start_server(reads_late, "127.0.0.1", 0)
        from fairlead.serve.settings import BackendSettings

        world.gateway.backends.drain(world.gateway.backends.find("b0"), remove=True)
        port = late.sockets[0].getsockname()[1]
        world.gateway.backends.add(BackendSettings(url=f"http://127.0.0.1:{port}"))
        client = await world.client()
        client.send(b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 40000000\r\n\r\n")
        for _ in range(400):
            client.send(b"u" * 100_000)
        for _ in range(50):
            await asyncio.sleep(0.01)
        (connection,) = world.gateway.connections
        assert client.writer.transport.get_write_buffer_size() > 10_000_000  # most is still with the client
        assert not connection._reading
        go.set()
        assert (await client.answer()).body == b"ok"
        late.close()

    play(scene, backends=1)


def test_head_requests_and_empty_answers(play):
    async def scene(world):
        async def no_content(backend, client, asked):
            client.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            return True

        async def head(backend, client, asked):
            client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            return True

        client = await world.client()
        world.backends[0].behave = no_content
        client.request("/v1/x", method="DELETE")
        assert (await client.answer()).status == 204
        world.backends[0].behave = head
        client.request("/v1/x", method="HEAD")
        answer = await client.answer(head_only=True)
        assert (answer.status, answer.headers["content-length"]) == (200, "1000")
        world.backends[0].behave = no_content
        client.request("/v1/x", method="DELETE")
        assert (await client.answer()).status == 204

    play(scene, backends=1)


def test_interim_answers_are_not_mistaken_for_the_answer(play, prompt):
    async def scene(world):
        async def early_hints(backend, client, asked):
            client.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
            await asyncio.sleep(0.01)
            return await backend.generate(client, asked)

        world.backends[0].behave = early_hints
        answer = await world.ask(body=prompt)
        assert (answer.status, "link" in answer.headers) == (200, False)

    play(scene, backends=1)


def test_a_body_that_ends_with_the_connection(play, prompt):
    async def scene(world):
        async def old_style(backend, client, asked):
            client.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nabc")
            await asyncio.sleep(0.01)
            client.send(b"def")
            return False

        world.backends[0].behave = old_style
        answer = await world.ask(body=prompt)
        assert (answer.status, answer.body, answer.complete) == (200, b"abcdef", True)

    play(scene, backends=1)


def test_http_1_0_clients_get_no_chunks(play, prompt):
    async def scene(world):
        body = json.dumps(prompt | {"stream": True}).encode()
        client = await world.client()
        client.send(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await client.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert len(answer.events) == 5

    play(scene)


def test_expect_100_continue(play, prompt):
    async def scene(world):
        body = json.dumps(prompt).encode()
        client = await world.client()
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(body)
        assert (await client.answer()).status == 200
        assert "expect" not in world.backends[0].requests[0][2]

    play(scene, backends=1)


def test_an_offered_upgrade_is_declined_and_the_request_served(play, prompt):
    """As curl --http2 and Java's HttpClient send it."""

    async def scene(world):
        body = json.dumps(prompt).encode()
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n"
        client = await world.client()
        for split in (False, True):
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + upgrade
            head += b"Content-Length: %d\r\n\r\n" % len(body)
            if split:
                client.send(head)
                await asyncio.sleep(0.02)
                client.send(body)
            else:
                client.send(head + body)
            assert (await client.answer()).status == 200
        client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
        assert (await client.answer()).status == 200
        assert [json.loads(each[3]) for each in world.backends[0].requests] == [prompt] * 2
        assert not {"upgrade", "http2-settings"} & set(world.backends[0].requests[0][2])

    play(scene, backends=1)


def test_models_are_those_of_all_backends(play, prompt):
    def different(backends):
        backends[0].models = ["m", "a"]
        backends[1].models = ["m", "b"]

    async def scene(world):
        await world.until(lambda: all(each.model_cards for each in world.gateway.backends))
        listed = (await world.ask("/v1/models")).json
        assert sorted(card["id"] for card in listed["data"]) == ["a", "b", "m"]
        for _ in range(5):
            assert (await world.ask(body=prompt | {"model": "b"})).json["id"] == "b1"
        # A model that nobody serves goes to a backend all the same: it says so in its own words.
        assert (await world.ask(body=prompt | {"model": "unknown"})).status == 200

    play(scene, before=different)


def test_own_paths(play):
    async def scene(world):
        assert (await world.ask("/health")).json == {"status": "ok"}
        assert (await world.ask("/ready")).status == 200
        assert b"fairlead_backend_state" in (await world.ask("/metrics")).body
        assert b"fairlead_backend_pace" in (await world.ask("/metrics")).body
        assert (await world.ask("/nothing")).status == 404
        assert (await world.ask("/v1/../metrics")).status == 400
        assert (await world.ask("/v1/%2e%2e/metrics")).status == 400

    play(scene)


def test_api_keys_are_needed_and_not_passed_on(play, prompt):
    async def scene(world):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic key-one"}):
            answer = await world.ask(body=prompt, headers=headers)
            assert answer.status == 401
            assert "error" in answer.json
        answer = await world.ask(body=prompt, headers={"Authorization": "Bearer key-two"})
        assert answer.status == 200
        assert (await world.ask("/health")).status == 200
        (request,) = world.backends[0].requests
        assert request[2]["authorization"] == "Bearer of-the-backend"

    play(scene, backends=1, per_backend={"api_key": "of-the-backend"}, api_keys=["key-one", "key-two"])


def test_a_refusal_keeps_the_connection(play, prompt):
    async def scene(world):
        client = await world.client()
        client.request(body=prompt)
        assert (await client.answer()).status == 401
        client.request(body=prompt, headers={"Authorization": "Bearer key"})
        assert (await client.answer()).status == 200

    play(scene, api_keys=["key"])


def test_invalid_json_is_left_to_the_backend(play):
    async def scene(world):
        for body in (b"{", b'"text"', b"[1, 2]", b"\xff\xfe", b"{" * 100_000):
            answer = await world.ask(body=body)
            assert answer.status in (200, 400)
        assert sum(len(each.requests) for each in world.backends) == 5

    play(scene)


def test_hundreds_of_requests_at_once(play, prompt):
    async def scene(world):
        async def one(i):
            answer = await world.ask(body=prompt | {"stream": i % 2 == 0, "max_tokens": 3})
            assert answer.status == 200 and answer.complete

        await asyncio.gather(*[one(i) for i in range(400)])
        assert sum(each.ended for each in world.backends) == 400
        assert world.answered == 400
        assert all(len(each.requests) > 100 for each in world.backends)

    play(scene)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"]
)
def test_an_answer_that_comes_in_one_piece_is_passed_on_in_one(play, prompt, monkeypatch, framing):
    async def behave(backend, client, asked):
        client.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + framing)
        return True

    written = []
    write = ClientConnection.write

    def counted(self, data):
        written.append(data)
        write(self, data)

    monkeypatch.setattr(ClientConnection, "write", counted)

    async def scene(world):
        for backend in world.backends:
            backend.behave = behave
        assert (await world.ask(body=prompt)).body == b"{}"
        assert len(written) == 1

    play(scene)


def test_the_head_of_an_answer_does_not_wait_for_its_body(play, prompt):
    seen = asyncio.Event()

    async def behave(backend, client, asked):
        client.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n")
        await seen.wait()
        client.send(b"{}")
        return True

    async def scene(world):
        for backend in world.backends:
            backend.behave = behave
        client = await world.client()
        client.request("/v1/completions", prompt)
        status, headers = await client.head()
        assert (status, headers["content-length"]) == (200, "2")
        seen.set()
        assert await client.reader.readexactly(2) == b"{}"

    play(scene)


def test_a_browser_may_ask_beforehand_without_a_key(play):
    async def scene(world):
        assert (await world.ask(method="OPTIONS")).status != 401
        assert world.backends[0].requests[-1][0] == "OPTIONS"
        assert (await world.ask(method="GET")).status == 401

    play(scene, backends=1, api_keys=["secret"])


def test_counters_are_told_to_the_last_digit(play):
    """Rounded ones would stand still, then jump."""

    async def scene(world):
        world.gateway.requests["/v1/completions", 200] = 123_456_789
        world.gateway.backends.find("b0").e2e.total = 1_234_567.125
        text = (await world.ask("/metrics")).body.decode()
        assert 'fairlead_requests_total{path="/v1/completions",status="200"} 123456789\n' in text
        assert 'fairlead_backend_e2e_seconds_sum{backend="b0"} 1234567.125\n' in text

    play(scene, clean=False)


def test_the_tokens_of_an_answer_that_its_client_left_are_counted(play, prompt):
    async def scene(world):
        async def slowly(backend, client, asked):
            backend.begin_stream(client)
            for _ in range(5):
                backend.event(client, {"choices": [{"text": "a"}]})
            await client.reader.read()
            return False

        world.backends[0].behave = slowly
        client = await world.client()
        client.request(body=prompt | {"stream": True})
        await client.head()
        got = b""
        while got.count(b"data: ") < 5:
            got += await client.chunk()
        client.close()
        await world.until(lambda: world.gateway.backends.find("b0").cancelled == 1)
        assert world.gateway.backends.find("b0").output_tokens == 5

    play(scene, backends=1, clean=False)
