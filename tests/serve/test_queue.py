"""Requests that wait: who is refused, who is placed when there is room, and what waiting costs."""

import asyncio
import time
from typing import Any, cast

import pytest

from fairlead.serve.backends import Backends
from fairlead.serve.facts import Facts
from fairlead.serve.queue import Queue
from fairlead.serve.settings import Queue as Settings


class Room:
    """Backends with room for so many requests, by model."""

    def __init__(self, **places: int) -> None:
        self.places = places

    def any_free(self) -> bool:
        return any(self.places.values())

    def has_other(self, model: str, excluded: object) -> bool:
        return self.places[model] > 0


class Request:
    """Takes a place when it is told that there may be one."""

    def __init__(self, model: str, room: Room, log: list[str]) -> None:
        self.facts: Facts | None = Facts(model, False, 0, 0, 0, "", b"", False)
        self.waiting = False
        self.deadline = float("inf")
        self.failed: tuple[int, str, Any] | None = None
        self._room = room
        self._log = log

    def dispatch(self) -> None:
        assert self.facts is not None and not self.waiting
        self._room.places[self.facts.model] -= 1
        self._log.append(self.facts.model)

    def fail(self, status: int, message: str, reason: str, headers: Any = ()) -> None:
        self.failed = (status, reason, headers)


def waits_in(queue: Queue, models: str, room: Room, log: list[str]) -> list[Request]:
    requests = [Request(model, room, log) for model in models]
    for request in requests:
        queue.wait(request, 100.0)
    return requests


def test_a_model_whose_backends_are_full_holds_up_no_other() -> None:
    room, log = Room(a=0, b=0), list[str]()
    queue = Queue(Settings(), cast(Backends, room))
    waits_in(queue, "aabab", room, log)
    queue.released()
    assert log == [] and len(queue) == 5
    room.places["b"] = 1
    queue.released()
    assert log == ["b"] and len(queue) == 4
    room.places |= {"a": 2, "b": 5}
    queue.released()
    assert log == ["b", "a", "a", "b"]  # first come, first served
    assert len(queue) == 1


@pytest.mark.parametrize("reason", ["queue_full", "queue_timeout"])
def test_who_is_refused_is_counted_and_told_when_to_come_again(reason: str) -> None:
    room, log = Room(a=0), list[str]()
    queue = Queue(Settings(max_requests=1, timeout=5.0, retry_after=7), cast(Backends, room))
    first, second = waits_in(queue, "aa", room, log)
    assert (first.waiting, first.deadline, second.waiting) == (True, 105.0, False)
    if reason == "queue_timeout":
        queue.gave_up(first)
    refused = first if reason == "queue_timeout" else second
    assert refused.failed == (503, reason, ((b"Retry-After", b"7"),))
    assert not refused.waiting
    assert (queue.refused, len(queue)) == ((2, 0) if reason == "queue_timeout" else (1, 1))


async def hang(backend, client, asked):
    await client.reader.read()
    backend.cancelled += 1
    return False


def test_all_backends_are_down_and_one_comes_back(play, prompt):
    async def scene(world):
        for backend in world.backends:
            await backend.stop()
        await world.until(lambda: not any(each.up for each in world.gateway.backends))
        assert (await world.ask("/ready")).status == 503
        waiting = asyncio.ensure_future(world.ask(body=prompt))
        await world.until(lambda: len(world.gateway.queue) == 1)
        await world.backends[0].start()
        assert (await waiting).status == 200

    play(scene, queue={"timeout": 15.0})


def test_nobody_waits_any_more_when_the_last_to_serve_a_model_leaves(play, prompt):
    """Then any backend will say that it does not serve it."""

    async def scene(world):
        gate = world.backends[0].gate = asyncio.Event()
        first, second = world.gateway.backends
        first.models, second.models = frozenset("m"), frozenset("n")
        asking = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(2)]
        await world.until(lambda: len(world.gateway.queue) == 1)
        world.gateway.backends.drain(first, remove=True)
        await world.until(lambda: len(world.backends[1].requests) == 1, "its turn")
        gate.set()
        assert [(await each).status for each in asking] == [200, 200]

    def before(backends):
        backends[0].models, backends[1].models = ["m"], ["n"]

    play(scene, before=before, per_backend={"max_in_flight": 1}, queue={"timeout": 3.0})


def test_a_full_queue_is_told(play, prompt):
    async def scene(world):
        gate = world.backends[0].gate = asyncio.Event()
        clients = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(5)]
        await world.until(lambda: len(world.gateway.queue) == 3)
        answer = await world.ask(body=prompt)
        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert world.gateway.backends.find("b0").in_flight == 2
        gate.set()
        assert [(await each).status for each in clients] == [200] * 5
        # And one that waits for too long is told as well; one whose client leaves is forgotten.
        world.backends[0].gate = asyncio.Event()
        clients = [await world.client() for _ in range(4)]
        for client in clients:
            client.request(body=prompt)
        await world.until(lambda: len(world.gateway.queue) == 2)
        clients[3].close()
        await world.until(lambda: len(world.gateway.queue) == 1)
        assert (await clients[2].answer()).status == 503

    play(
        scene,
        backends=1,
        per_backend={"max_in_flight": 2},
        queue={"max_requests": 3, "timeout": 1.0, "retry_after": 7},
    )


def test_requests_that_are_given_up_together_are_not_sent_first(play, prompt):
    """One sweep ends a request in flight, and those in the queue: who got its place is not ended as well."""

    async def scene(world):
        backend = world.gateway.backends.find("b0")
        world.backends[0].behave = hang
        asking = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(6)]
        await world.until(lambda: len(world.gateway.queue) == 5 and world.backends[0].requests)
        world.backends[0].behave = None
        now = time.monotonic()
        for exchange in world.gateway.exchanges:
            exchange.deadline = now
        world.server.monitor.sweep(now)
        statuses = [(await each).status for each in asking]
        assert statuses.count(504) == 1 and set(statuses) <= {200, 503, 504}
        assert backend.errors == {"timeout": 1}
        assert len(world.backends[0].requests) == 1 + statuses.count(200)

    play(scene, backends=1, per_backend={"max_in_flight": 1}, timeouts={"first_byte": 60})


def test_a_full_queue_costs_nothing_where_nothing_is_free(play, prompt):
    """Otherwise each request that ends would ask for every one that waits, under overload of all times."""

    async def scene(world):
        backends, queue = world.gateway.backends, world.gateway.queue
        first, second = backends
        for backend in world.backends:
            backend.gate = asyncio.Event()
        asking = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(30)]
        await world.until(lambda: len(queue) == 28)
        asked = []
        has_other = backends.has_other

        def ask(model, excluded):
            asked.append(model)
            return has_other(model, excluded)

        backends.has_other = ask
        queue.released()
        assert asked == []
        first.draining = True  # below its limit in a moment, and yet for none of them
        first.limit = 2
        second.limit = 1
        queue.released()
        assert len(asked) == 1
        first.draining = False
        for backend in world.backends:
            backend.gate.set()
        assert {(await each).status for each in asking} == {200}

    play(scene, per_backend={"max_in_flight": 1}, queue={"max_requests": 100})
