"""Backends that fail in every way: requests in, answers out, and what the counters say."""

import asyncio
import contextlib
import json
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from fairlead.serve.settings import BackendSettings
from fairlead.serve.upstream import UpstreamConnection
from fairlead.view import schema


async def reset(backend, client, asked):
    client.reset()
    return False


async def close_at_once(backend, client, asked):
    return False


async def garbage(backend, client, asked):
    client.send(b"SSH-2.0-OpenSSH_9.6\r\n")
    return False


async def half_an_event(backend, client, asked):
    backend.begin_stream(client)
    backend.event(client, {"choices": [{"text": "a"}]})
    client.send(b'20\r\ndata: {"choices": [{"te')
    await client.writer.drain()
    await asyncio.sleep(0.02)
    client.reset()
    return False


async def hang(backend, client, asked):
    await client.reader.read()
    backend.cancelled += 1
    return False


def status(code):
    async def answer(backend, client, asked):
        backend.plain(client, code, b'{"error": "no"}')
        return True

    return answer


FAST = {"first_byte": 0.3, "idle": 0.3}


@pytest.mark.parametrize("fault", [reset, close_at_once, garbage, status(503), status(502)])
def test_a_failing_backend_costs_no_request(play, prompt, fault):
    """Every client gets exactly one good answer; the bad backend is taken out."""

    async def scene(world):
        world.backends[0].behave = fault

        async def one(i):
            answer = await world.ask(body=prompt | {"stream": i % 2 == 0})
            assert (answer.status, answer.complete) == (200, True)

        for _ in range(6):
            await asyncio.gather(*[one(i) for i in range(10)])
        assert world.gateway.requests == {("/v1/completions", 200): 60}
        assert world.backends[1].ended == 60
        bad = world.gateway.backends.find("b0")
        assert bad.ejections >= 1
        assert bad.retries == len(world.backends[0].requests)  # each failed attempt was tried again, once

    play(scene, health={"eject_s": 30.0})


def test_a_backend_that_is_not_there_costs_no_request(play, prompt):
    async def scene(world):
        await world.backends[0].stop()
        for i in range(30):
            assert (await world.ask(body=prompt | {"stream": i % 2 == 0})).status == 200
        assert world.gateway.requests == {("/v1/completions", 200): 30}
        await world.until(lambda: world.gateway.backends.find("b0").state != "up")

    play(scene)


def test_a_backend_to_which_no_connection_comes_about_costs_no_request(play, prompt):
    """Its machine is gone: nobody refuses the connection, and nobody takes it."""
    with contextlib.ExitStack() as sockets:
        deaf = sockets.enter_context(socket.socket())
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        for _ in range(3):  # its queue is full then
            waiting = sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())

        async def scene(world):
            url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            gone = world.gateway.backends.add(BackendSettings(url=url, name="gone"))
            for i in range(8):
                assert (await world.ask(body=prompt | {"stream": i % 2 == 0})).status == 200
            assert gone.errors == {"connect": 3} and gone.state == "ejected"
            assert world.gateway.requests == {("/v1/completions", 200): 8}

        play(
            scene,
            policy={"router": "round_robin"},
            timeouts={"connect": 0.1},
            health={"fail_after": 1000, "eject_s": 30},
        )


def test_kill_and_restart_under_load(play, prompt):
    """One of three backends is killed in mid-stream and comes back: every request ends, some way."""

    async def scene(world):
        outcomes = {"good": 0, "cut": 0, "refused": 0}
        running = True

        async def client():
            while running:
                answer = await world.ask(body=prompt | {"stream": True, "max_tokens": 30})
                good = answer.status == 200 and answer.complete and answer.events[-1] == "[DONE]"
                outcomes["good" if good else "cut" if answer.status == 200 else "refused"] += 1

        clients = [asyncio.ensure_future(client()) for _ in range(12)]
        await asyncio.sleep(0.3)
        victim = world.backends[0]
        await victim.stop()
        await world.until(lambda: world.gateway.backends.find("b0").state != "up")
        await asyncio.sleep(0.2)
        await victim.start()
        await world.until(lambda: world.gateway.backends.find("b0").state == "up", "its return")
        before = victim.ended
        await world.until(lambda: victim.ended > before, "a request for it")
        running = False
        await asyncio.gather(*clients)
        assert outcomes["refused"] == 0
        assert outcomes["cut"] <= 12  # at most what was in mid-stream there
        assert sum(outcomes.values()) == world.answered

    play(scene, backends=3)


def test_an_answer_that_breaks_off_is_visibly_incomplete_and_not_repeated(play, prompt):
    async def scene(world):
        for backend in world.backends:
            backend.behave = half_an_event
        answer = await world.ask(body=prompt | {"stream": True})
        assert answer.status == 200
        assert not answer.complete
        assert answer.body.startswith(b"data: ")
        assert sum(len(each.requests) for each in world.backends) == 1
        short = await world.client()
        short.request(body=prompt)

        async def short_body(backend, client, asked):
            client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
            return False

        for backend in world.backends:
            backend.behave = short_body
        answer = await world.ask(body=prompt)
        assert (answer.body, answer.complete) == (b"only this", False)

    play(scene)


def test_a_backend_that_hangs(play, prompt):
    async def scene(world):
        world.backends[0].behave = hang
        answers = await asyncio.gather(*[world.ask(body=prompt) for _ in range(10)])
        assert [each.status for each in answers] == [200] * 10
        assert world.gateway.backends.find("b0").errors["timeout"] >= 1
        await world.until(lambda: world.backends[0].cancelled == len(world.backends[0].requests))

    play(scene, timeouts=FAST)


def test_all_backends_hang(play, prompt):
    async def scene(world):
        for backend in world.backends:
            backend.behave = hang
        answer = await world.ask(body=prompt)
        assert answer.status == 504
        assert answer.json["error"]["type"] == "gateway_error"
        assert sum(len(each.requests) for each in world.backends) == 2  # each was tried once

    play(scene, timeouts=FAST)


def test_a_stream_that_stops(play, prompt):
    async def scene(world):
        async def stops(backend, client, asked):
            backend.begin_stream(client)
            backend.event(client, {"choices": [{"text": "a"}]})
            return await hang(backend, client, asked)

        world.backends[0].behave = stops
        answer = await world.ask(body=prompt | {"stream": True})
        assert (answer.status, answer.complete) == (200, False)
        await world.until(lambda: world.backends[0].cancelled == 1)

    play(scene, backends=1, timeouts=FAST)


@pytest.mark.parametrize("code", [400, 404, 429, 500])
def test_answers_that_are_no_fault_of_the_backend_are_passed_on(play, prompt, code):
    async def scene(world):
        for backend in world.backends:
            backend.behave = status(code)
        for _ in range(8):
            answer = await world.ask(body=prompt)
            assert (answer.status, answer.json) == (code, {"error": "no"})
        assert sum(len(each.requests) for each in world.backends) == 8
        assert all(each.state == "up" for each in world.gateway.backends)

    play(scene, health={"eject_after_errors": 0})


@pytest.mark.parametrize("policy", ["least_work", "lor"])
def test_a_backend_that_answers_every_request_with_an_error_is_no_black_hole(play, prompt, policy):
    """It is always idle, so that a policy would send it everything."""

    async def scene(world):
        broken, good = world.backends
        broken.behave = status(500)
        good.gate = asyncio.Event()
        waiting = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(2)]
        await world.until(lambda: len(good.requests) >= 1)
        found = [(await world.ask(body=prompt)).status for _ in range(4)]
        assert set(found) == {500}  # so far it looks better
        waiting += [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(6)]
        await world.until(lambda: world.gateway.backends.find("b0").state == "ejected")
        good.gate.set()
        answers = [(await each).status for each in waiting]
        assert answers.count(500) + len(found) <= 6 and answers.count(200) >= 6
        assert (
            world.gateway.backends.find("b0").ejections == 1
            and world.gateway.backends.find("b1").state == "up"
        )

    play(scene, policy={"router": policy}, health={"eject_s": 30})


def test_the_last_failure_is_passed_on(play, prompt):
    async def scene(world):
        for backend in world.backends:
            backend.behave = status(503)
        answer = await world.ask(body=prompt)
        assert (answer.status, answer.json) == (503, {"error": "no"})
        assert sum(len(each.requests) for each in world.backends) == 2

    play(scene)


@pytest.mark.parametrize(
    ("path", "extra", "attempts"),
    [
        ("/v1/completions", {}, 2),
        ("/v1/responses", {"store": False}, 2),
        ("/v1/responses", {}, 1),  # it may have been stored
        ("/v1/files", {}, 1),
    ],
)
def test_only_what_is_safe_is_sent_twice(play, prompt, path, extra, attempts):
    async def scene(world):
        for backend in world.backends:
            backend.behave = close_at_once
        assert (await world.ask(path, prompt | extra)).status == 502
        # One more if it went over a connection that had been used before: that is not held against anybody.
        assert sum(len(each.requests) for each in world.backends) - attempts in (
            (0,) if attempts == 1 else (0, 1)
        )
        for backend in world.backends:
            await backend.stop()
        # No connection, nothing sent: even this may go elsewhere.
        await world.ask(path, prompt | extra)
        assert sum(each.errors.get("connect", 0) for each in world.gateway.backends) == 2

    play(scene, health={"eject_after": 100, "fail_after": 100})


def test_a_connection_that_the_backend_has_closed_meanwhile(play, prompt):
    """Keep-alive may end just when the next request is sent: that is nobody's fault, and costs nothing."""

    async def scene(world):
        async def once(backend, client, asked):
            await backend.generate(client, asked)
            await client.writer.drain()
            await asyncio.sleep(0.01)
            backend.ended += 1
            return False

        world.backends[0].behave = once
        client = await world.client()
        for _ in range(50):
            client.request(body=prompt)
            assert (await client.answer()).status == 200
        assert world.gateway.backends.find("b0").state == "up"
        assert world.gateway.backends.find("b0").ejections == 0

    play(scene, backends=1)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\x00garbage\n" * 100,
        b"vllm:num_requests_running NaN\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n",
        b"vllm:num_requests_running -1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n",
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 17\n",
        b"vllm:num_requests_running 1e999\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n",
        b"x" * 5_000_000,
    ],
)
def test_metrics_that_lie_are_not_believed(play, prompt, text):
    async def scene(world):
        ours = world.gateway.backends.find("b0")
        await world.until(lambda: ours.reading is not None)
        good = ours.reading
        world.backends[0].raw_metrics = text
        await world.until(lambda: ours.scrape_errors >= 2)
        assert ours.reading == good
        assert (await world.ask(body=prompt)).status == 200

    play(scene, backends=1)


def test_metrics_that_are_no_longer_served_give_way_to_the_ledger(play, prompt):
    async def scene(world):
        gateway = world.gateway
        await world.until(lambda: all(each.reading is not None for each in gateway.backends))
        view = np.zeros((1, schema.NUM_REPLICA_COLUMNS))

        def waiting() -> float:
            gateway.ledger.write_view(
                np.array([gateway.backends.find("b0").row]), time.monotonic(), 0.3, view
            )
            return float(view[0, schema.SCRAPED_WAITING])

        assert waiting() == 2.0
        world.backends[0].raw_metrics = b""
        await world.until(lambda: gateway.backends.find("b0").scrape_errors > 1)
        await world.until(lambda: waiting() == 0.0)  # too old: the ledger knows of none
        assert (await world.ask(body=prompt)).status == 200
        world.backends[0].raw_metrics = None
        await world.until(lambda: waiting() == 2.0)
        assert gateway.backends.find("b0").state == "up"

    play(scene)


def test_a_policy_that_fails_or_is_slow(play, prompt):
    async def scene(world):
        import time

        decider = world.gateway.decider
        real = decider.router

        class Bad:
            name = "bad"
            what = "raise"

            def reset(self, *_):
                pass

            def route(self, view):
                if self.what == "raise":
                    raise RuntimeError("boom")
                if self.what == "slow":
                    time.sleep(0.06)
                return real.route(view) if self.what == "slow" else [99]

        bad = decider.router = Bad()
        for what, reason in (("raise", "error"), ("out of range", "error"), ("slow", "deadline")):
            bad.what = what
            decider.rests_until = 0.0
            before = decider.errors.get(reason, 0)
            for _ in range(3):
                assert (await world.ask(body=prompt)).status == 200
            assert decider.errors[reason] == before + 1  # then it rests
        assert decider.decisions["lor"] == 9
        metrics = (await world.ask("/metrics")).body.decode()
        assert 'fairlead_policy_errors_total{reason="error"} 2' in metrics
        decider.fallback = None  # as with on_policy_error: fail
        decider.rests_until = 0.0
        bad.what = "raise"
        answer = await world.ask(body=prompt)
        assert answer.status == 500 and "boom" in answer.json["error"]["message"]

    play(scene, policy={"rest": 100.0})


def test_a_request_id_follows_a_request_through_its_attempts(play, prompt):
    async def scene(world):
        for backend in world.backends:
            backend.behave = status(503)
        await world.ask(body=prompt, headers={"X-Request-Id": "abc"})
        ids = [each[2]["x-request-id"] for backend in world.backends for each in backend.requests]
        assert ids == ["abc", "abc"]
        assert all(json.loads(r[3]) == prompt for b in world.backends for r in b.requests)

    play(scene)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_written_ends_no_deadline(play, prompt):
    async def scene(world):
        assert (await world.ask(body=prompt)).status == 200
        await world.until(lambda: world.gateway.decisions_log.lost > 0, "the loss")
        for backend in world.backends:
            backend.behave = hang
        assert (await world.ask(body=prompt)).status == 504
        assert "fairlead_log_lines_lost_total" in (await world.ask("/metrics")).body.decode()

    play(scene, timeouts=FAST, logs={"requests": False, "decisions": "/dev/full"})


def test_an_attempt_given_up_while_it_connects_does_not_come_back(play, prompt):
    """Its connection would get the request a second time, or its failure end the answer of another."""

    async def scene(world):
        late, good = world.gateway.backends
        begun = asyncio.Event()

        def connect(caller, *, fresh=False):
            async def open_slowly():
                begun.set()
                await asyncio.sleep(0.5)  # longer than an attempt may take
                caller.connect_failed("too late")

            return asyncio.ensure_future(open_slowly())

        late.pool.connect = connect
        good.draining = True
        asking = asyncio.ensure_future(world.ask(body={**prompt, "stream": True, "max_tokens": 30}))
        await begun.wait()
        good.draining = False

        async def slowly(backend, client, asked):
            backend.begin_stream(client)
            for _ in range(10):
                backend.event(client, {"choices": [{"text": "a"}]})
                await asyncio.sleep(0.1)
            client.send(b"0\r\n\r\n")
            return True

        world.backends[1].behave = slowly
        answer = await asking
        assert answer.status == 200 and answer.complete and len(answer.events) == 10
        assert (late.errors, good.errors) == ({"timeout": 1}, {})

    play(scene, timeouts={"first_byte": 0.2, "idle": 5}, health={"interval": 100}, scrape={"interval": None})


def test_models_that_are_no_text_do_not_end_the_health_checks(play):
    async def scene(world):
        plain = world.backends[0].plain

        def broken(client, status, body, kind="application/json"):
            plain(client, status, b'{"data":[{"id":"caf\xe9"}]}' if b'"list"' in body else body, kind)

        world.backends[0].plain = broken
        backend = world.gateway.backends.find("b0")
        backend.healthy = False  # becomes healthy at the next check, which asks for the models
        await world.until(lambda: backend.healthy)
        world.backends[0].healthy = False
        await world.until(lambda: backend.state == "unhealthy", "the next checks")

    play(scene, backends=1)


def test_a_backend_that_was_held_up_has_its_time_afterwards(play, prompt):
    """A client that reads on at last: the silence before was its own."""

    async def scene(world):
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def in_two_parts(backend, client, asked):
            backend.begin_stream(client)
            backend.event(client, {"choices": [{"text": "a"}]})
            reached.set()
            await go_on.wait()
            await asyncio.sleep(0.3)
            backend.event(client, "[DONE]")
            client.send(b"0\r\n\r\n")
            return True

        world.backends[0].behave = in_two_parts
        client = await world.client()
        client.request(body=prompt | {"stream": True})
        await client.head()
        await client.chunk()
        (exchange,) = world.gateway.exchanges
        exchange.client_slow(True)
        await asyncio.sleep(0.3)
        exchange.client_slow(False)
        go_on.set()
        while await client.chunk():
            pass
        assert not world.gateway.backends.find("b0").errors

    play(scene, backends=1, timeouts={"idle": 0.5})


def test_a_connection_that_comes_about_as_it_is_given_up_is_closed(play, monkeypatch):
    async def scene(world):
        pool = world.gateway.backends.find("b0").pool
        before = set(pool.connections)

        class Caller:
            head_only = False

        made = UpstreamConnection.connection_made

        def give_up_then(self, transport):
            made(self, transport)
            task.cancel()

        monkeypatch.setattr(UpstreamConnection, "connection_made", give_up_then)
        task = pool.connect(Caller(), fresh=True)
        await asyncio.wait({task})
        assert task.cancelled()
        await world.until(lambda: set(pool.connections) <= before)

    play(scene, backends=1, health={"interval": 100}, scrape={"interval": None})
