"""The HTTP edge: what is refused, and that nothing refused, slow or strange harms anybody else."""

import asyncio
import contextlib
import json
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.serve.settings import BackendSettings

GOOD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"

SMUGGLING = {
    "two lengths": GOOD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "the same length twice": GOOD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a list of lengths": GOOD + b"Content-Length: 5, 5\r\n\r\nhello",
    "a signed length": GOOD + b"Content-Length: +5\r\n\r\nhello",
    "an empty length": GOOD + b"Content-Length:\r\n\r\n",
    "a huge length": GOOD + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "length and chunks": GOOD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunks and length": GOOD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKS,
    "chunked twice": GOOD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "an unknown coding": GOOD + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "two codings": GOOD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "chunked not last": GOOD + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "chunks in HTTP/1.0": b"POST /v1/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "a folded header": GOOD + b"X-A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "space before the colon": GOOD + b"Content-Length : 5\r\n\r\nhello",
    "a bad chunk size": GOOD + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with space": GOOD + b"Transfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
    "a chunk that is too long": GOOD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
    "bare line feeds": b"POST /v1/x HTTP/1.1\nHost: x\nContent-Length: 0\n\n",
    "bare line feeds in chunks": GOOD + b"Transfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    "a bare carriage return": GOOD + b"X-A: b\rContent-Length: 5\r\n\r\nhello",
    "a zero byte": GOOD + b"X-A: b\x00c\r\n\r\n",
    "two hosts": GOOD + b"Host: y\r\nContent-Length: 0\r\n\r\n",
    "no host": b"GET /v1/x HTTP/1.1\r\n\r\n",
    "an unknown version": b"GET /v1/x HTTP/2.0\r\nHost: x\r\n\r\n",
    "no version": b"GET /v1/x\r\n\r\n",
    "an unknown method": b"FOO /v1/x HTTP/1.1\r\nHost: x\r\n\r\n",
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no target": b"GET  HTTP/1.1\r\nHost: x\r\n\r\n",
    "an expectation": GOOD + b"Expect: wonders\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("where", ["alone", "after a good request"])
def test_what_could_smuggle_a_request_is_refused(play, prompt, where):
    """Each ends its connection with an error, and never reaches a backend, nor does what follows it."""

    async def scene(world):
        expected = 0
        for name, attack in SMUGGLING.items():
            client = await world.client()
            if where != "alone":
                client.request(body=prompt)
                expected += 1
            client.send(attack + b"GET /v1/smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
            if where != "alone":
                assert (await client.answer()).status == 200, name
            answer = await client.answer()
            assert answer.status in (400, 405, 417, 501, 505), name
            assert answer.headers["connection"] == "close", name
            assert answer.json["error"]["message"], name
            assert await client.closed(), name
            client.close()
        assert [r[1] for b in world.backends for r in b.requests] == ["/v1/completions"] * expected

    play(scene)


def test_bytes_may_come_one_by_one(play, prompt):
    async def scene(world):
        body = json.dumps(prompt).encode()
        client = await world.client()
        for byte in GOOD + b"Content-Length: %d\r\n\r\n" % len(body) + body:
            client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).status == 200

    play(scene, backends=1)


@pytest.mark.parametrize("complete", [True, False])
def test_heads_over_the_limit_are_refused(play, complete):
    async def scene(world):
        end = b"\r\n\r\n" if complete else b""
        for head in (
            b"GET /v1/" + b"x" * 40_000 + b" HTTP/1.1\r\nHost: x" + end,
            b"GET /v1/x HTTP/1.1\r\nHost: x\r\nX-A: " + b"y" * 40_000 + end,
        ):
            client = await world.client()
            client.send(head[:20_000])
            await asyncio.sleep(0.01)
            client.send(head[20_000:] + b"z" * 300_000 * (not complete))
            assert (await client.answer()).status == 431
        client = await world.client()
        client.send(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n")
        assert (await client.answer()).status == 431
        assert not any(each.requests for each in world.backends)

    play(scene)


def test_bodies_over_the_limit_are_refused(play):
    async def scene(world):
        client = await world.client()
        client.send(GOOD + b"Content-Length: 200001\r\n\r\n" + b"x" * 1000)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        client = await world.client()
        client.send(GOOD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(30):
            client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await asyncio.sleep(0)
        assert (await client.answer()).status == 413
        assert not any(each.requests for each in world.backends)

    play(scene, limits={"max_body_bytes": 200_000})


def test_a_body_that_turns_out_too_large_while_it_is_streamed(play):
    async def scene(world):
        client = await world.client()
        client.send(GOOD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(30):
            client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await asyncio.sleep(0.001)
        assert (await client.answer()).status == 413
        assert world.backends[0].ended == 0

    play(scene, backends=1, limits={"max_body_bytes": 200_000, "inspect_bytes": 50_000})


def test_slow_clients_are_cut_off_and_others_are_served(play, prompt):
    async def scene(world):
        slow_head = await world.client()
        slow_head.send(b"POST /v1/completions HTTP/1.1\r\n")
        slow_body = await world.client()
        slow_body.send(GOOD + b"Content-Length: 100\r\n\r\nx")
        silent = await world.client()
        idle = await world.client()
        idle.request(body=prompt)
        assert (await idle.answer()).status == 200

        async def drip():
            while True:
                slow_head.send(b"X: y\r\n")
                slow_body.send(b"x")
                await asyncio.sleep(0.05)

        dripping = asyncio.ensure_future(drip())
        assert (await slow_head.answer()).status == 408
        assert (await slow_body.answer()).status == 408
        dripping.cancel()
        assert await slow_head.closed() and await slow_body.closed()
        assert await silent.closed() and await idle.closed()
        assert (await world.ask(body=prompt)).status == 200

    play(scene, timeouts={"header": 0.3, "body": 0.4, "keep_alive": 0.5})


def test_too_many_connections(play, prompt):
    async def scene(world):
        clients = [await world.client() for _ in range(5)]
        await world.until(lambda: len(world.gateway.connections) >= 5)
        extra = await world.client()
        assert (await extra.answer()).status == 503
        for client in clients:
            client.request(body=prompt)
            assert (await client.answer()).status == 200

    play(scene, limits={"max_connections": 5})


def test_an_early_answer_to_an_upload_ends_the_connection(play):
    async def scene(world):
        async def refuses(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            refusal = b"HTTP/1.1 413 No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
            fine = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            writer.write(refusal if b"/v1/files" in head else fine)
            await writer.drain()
            await reader.read(100_000)
            writer.close()

        early = await asyncio.start_server(refuses, "127.0.0.1", 0)
        from fairlead.serve.settings import BackendSettings

        world.gateway.backends.drain(world.gateway.backends.find("b0"), remove=True)
        world.gateway.backends.add(
            BackendSettings(url=f"http://127.0.0.1:{early.sockets[0].getsockname()[1]}")
        )
        client = await world.client()
        client.send(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 2_000_000
        )
        answer = await client.answer()
        assert (answer.status, answer.body) == (413, b"no")
        assert answer.headers["connection"] == "close"
        early.close()

    play(scene, backends=1)


TOKENS = st.sampled_from(
    [
        b"GET",
        b"POST",
        b" ",
        b"/v1/completions",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\r",
        b":",
        b"Host: x",
        b"Content-Length: 5",
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        b"Connection: close",
        b"\r\n\r\n",
        b"hello",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\x00",
        b"\xff",
        b"Upgrade: h2c",
        b"Expect: 100-continue",
        b"x" * 999,
    ]
)


def test_no_bytes_harm_the_gateway(play, prompt):
    """Random compositions of HTTP's parts, in random pieces: the gateway answers or closes, and serves on."""

    async def attack(world, pieces):
        client = await world.client()
        for piece in pieces:
            client.send(piece)
            await asyncio.sleep(0)
        if client.writer.can_write_eof():
            client.writer.write_eof()
        try:
            await asyncio.wait_for(client.reader.read(), 5)
        except ConnectionError:
            pass
        client.close()
        world.clients.clear()

    async def scene(world):
        loop_errors = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
        attacks: list[list[bytes]] = []

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(st.lists(TOKENS, max_size=12).map(b"".join), max_size=6))
        def collect(pieces):
            attacks.append(pieces)

        await asyncio.to_thread(collect)
        for i in range(0, len(attacks), 50):
            await asyncio.gather(*[attack(world, pieces) for pieces in attacks[i : i + 50]])
        assert loop_errors == []
        assert (await world.ask(body=prompt)).status == 200
        await world.until(lambda: not world.gateway.exchanges)
        await world.until(lambda: len(world.gateway.connections) <= 1)

    play(scene, timeouts={"header": 1.0, "body": 1.0})


def test_no_answer_harms_the_gateway(play, prompt):
    """Random answers of a backend: the client gets a complete answer or an error or a cut, never a hang."""
    parts = st.sampled_from(
        [
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 204 X\r\n",
            b"HTTP/1.0 200 OK\r\n",
            b"HTTP/1.1 100 C\r\n\r\n",
            b"\r\n",
            b"Content-Length: 5\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Content-Type: text/event-stream\r\n",
            b"Connection: close\r\n",
            b"Upgrade: x\r\n",
            b"hello",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"data: {}\n\n",
            b"\x00",
            b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            b'data: {"usage":{"x":{}}}\n\n',
        ]
    )

    async def scene(world):
        loop_errors = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context))
        answers: list[bytes] = []

        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(parts, max_size=10).map(b"".join))
        def collect(data):
            answers.append(data)

        await asyncio.to_thread(collect)
        count = len(answers)

        async def strange(backend, client, asked):
            client.send(answers[asked["number"]])
            await client.writer.drain()
            return False

        world.backends[0].behave = strange

        async def one(number):
            client = await world.client()
            client.request(body=prompt | {"number": number})
            try:
                await asyncio.wait_for(client.answer(), 8)
            except (asyncio.IncompleteReadError, ConnectionError, ValueError):
                pass
            client.close()

        for i in range(0, count, 25):
            await asyncio.gather(*[one(number) for number in range(i, min(i + 25, count))])
        assert loop_errors == []
        await world.until(lambda: world.answered == count)

    play(scene, backends=1, health={"eject_after": 100_000}, retries={"attempts": 1})


def unread(port, window=4096):
    """A client's socket that takes in next to nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


async def large(backend, client, asked):
    """More than sockets hold."""
    backend.plain(client, 200, b"x" * 3_000_000)
    return True


def test_a_client_that_does_not_read_is_cut_off_and_no_backend_blamed(play, prompt):
    async def scene(world):
        async def much(backend, client, asked):
            backend.begin_stream(client)
            with contextlib.suppress(ConnectionError):
                for _ in range(4000):
                    backend.event(client, {"choices": [{"text": "x" * 4000}]})
                    await client.writer.drain()
            return False

        for backend in world.backends:
            backend.behave = much
        body = json.dumps({**prompt, "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
        clients = [unread(world.port) for _ in range(6)]
        for client in clients:
            client.send(head + body)
        await world.until(lambda: world.gateway.requests.get(("/v1/completions", 200)) == 6, "their end")
        await world.until(lambda: not world.gateway.connections)
        assert all(backend.state == "up" and not backend.errors for backend in world.gateway.backends)
        for client in clients:
            client.close()

    play(scene, timeouts={"idle": 0.3}, clean=False)


def test_the_end_of_an_answer_that_nobody_reads_is_not_waited_for_forever(play, prompt):
    async def scene(world):
        world.backends[0].behave = large
        client = unread(world.port)
        body = json.dumps(prompt).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        client.send(head % len(body) + body)
        await world.until(lambda: len(world.gateway.connections) == 1)
        await world.until(lambda: not world.gateway.connections, "the end")
        client.close()

    play(scene, backends=1, timeouts={"idle": 0.4}, clean=False)


def test_answers_do_not_pile_up_before_a_client_that_does_not_read(play):
    async def scene(world):
        client = unread(world.port, 65_536)
        sent = 0
        for i in range(600):
            with contextlib.suppress(BlockingIOError):
                sent += client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            if i % 20 == 0:
                await asyncio.sleep(0.002)
        (connection,) = world.gateway.connections
        assert connection._stuffed
        assert connection._transport.get_write_buffer_size() < 200_000
        # It goes on where it stood as soon as they are read: every request is answered in the end.
        loop, answers, rest, mark = asyncio.get_running_loop(), 0, b"", b"HTTP/1.1 200 OK"
        asked = sent // len(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        while answers < asked:
            seen = rest + await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 5)
            answers += seen.count(mark)
            rest = seen[-len(mark) + 1 :]
        client.close()

    play(scene, limits={"max_pipelined": 1000}, clean=False)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_that_waits_for_its_turn_arrives_whole(play, prompt, chunked):
    """It has come in many pieces by then, the first of which decides where it goes."""

    async def scene(world):
        gate = world.backends[0].gate = asyncio.Event()
        client = await world.client()
        client.request(body=prompt)
        await world.until(lambda: len(world.backends[0].requests) == 1)
        body = json.dumps(prompt | {"prompt": "x" * 500_000}).encode()
        if chunked:
            client.send(b"POST /v1/completions HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            client.request(body=body)
        (connection,) = world.gateway.connections
        await world.until(lambda: connection._queue[-1].complete and len(connection._queue) == 2)
        assert len(connection._queue[-1].parts) > 1
        gate.set()
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert [each[3] for each in world.backends[0].requests[1:]] == [body]
        assert world.gateway.backends.find("b0").errors == {}

    play(scene, backends=1, limits={"inspect_bytes": 1000})


@pytest.mark.parametrize("wrong", ["stalls", "breaks", "grows"])
def test_an_error_never_stands_in_the_middle_of_an_answer(play, wrong):
    """The answer has begun before the upload is complete, and then the upload goes wrong."""

    async def scene(world):
        async def early(reader, writer):
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                if b"audio" not in await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return writer.close()
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n")
                await writer.drain()
                await reader.read()
            writer.close()

        server = await asyncio.start_server(early, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        world.gateway.backends.drain(world.gateway.backends.find("b0"), remove=True)
        world.gateway.backends.add(BackendSettings(url=f"http://127.0.0.1:{port}", name="early"))
        client = await world.client()
        head = b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head + b"%x\r\n%b\r\n" % (1100, b"x" * 1100))
        got = await client.reader.readuntil(b"early\r\n")
        if wrong == "breaks":
            client.send(b"no chunk\r\n")
        elif wrong == "grows":
            client.send(b"%x\r\n%b\r\n" % (9000, b"x" * 9000))
        got += await client.reader.read()
        client.close()
        assert got.count(b"HTTP/1.1") == 1 and got.endswith(b"early\r\n")
        server.close()

    play(
        scene,
        backends=1,
        timeouts={"body": 0.2},
        limits={"inspect_bytes": 1000, "max_body_bytes": 5000},
        health={"interval": 1000},
        scrape={"interval": None},
        clean=False,
    )


def test_a_refusal_is_given_once(play, prompt):
    """It is given before a large or chunked body has come; here that has come already, behind another."""

    async def scene(world):
        world.backends[0].gate = asyncio.Event()
        client = await world.client()
        client.request(body=prompt, headers={"Authorization": "Bearer secret"})
        await world.until(lambda: len(world.backends[0].requests) == 1)
        client.send(GOOD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS)
        await asyncio.sleep(0.05)
        world.backends[0].gate.set()
        assert [(await client.answer()).status for _ in range(2)] == [200, 401]
        client.request(body=prompt, headers={"Authorization": "Bearer secret"})
        assert (await client.answer()).status == 200

    play(scene, backends=1, api_keys=["secret"])


def test_a_client_that_has_left_without_reading_is_not_waited_for_forever(play, prompt):
    async def scene(world):
        world.backends[0].behave = large
        client = unread(world.port)
        body = json.dumps(prompt).encode()
        client.send(GOOD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await world.until(lambda: any(each._stuffed for each in world.gateway.connections))
        client.shutdown(socket.SHUT_WR)
        await world.until(lambda: not world.gateway.connections, "the end")
        client.close()

    play(scene, backends=1, timeouts={"idle": 0.4}, clean=False)
