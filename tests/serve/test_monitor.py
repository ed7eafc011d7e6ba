"""When backends are looked at; what is found: `test_backends.py`, `test_faults.py`, `test_gateway.py`."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fairlead.serve import monitor
from fairlead.serve.backend import Backend
from fairlead.serve.gateway import Gateway
from fairlead.serve.settings import parse_settings

LOOKS = 4
METRICS = b"""vllm:num_requests_running 3
vllm:num_requests_waiting 2
vllm:kv_cache_usage_perc 0.5
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000"} 1
"""


@pytest.mark.parametrize("task", ["_check_for_ever", "_scrape_for_ever"])
def test_backends_that_are_met_together_are_not_looked_at_together(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first pause is a random part of the interval; from then on the interval is kept."""
    interval = 3.0
    settings = parse_settings(
        {
            "backends": [{"url": "http://127.0.0.1:9"}],
            "health": {"interval": interval},
            "scrape": {"interval": interval},
        },
        "test",
    )

    async def pauses() -> list[float]:
        found: list[float] = []

        async def sleep(seconds: float) -> None:
            found.append(seconds)
            if len(found) == LOOKS:
                raise asyncio.CancelledError

        async def nobody(*_: Any) -> tuple[int, bytes]:
            raise OSError("nobody listens")

        monkeypatch.setattr(monitor, "asyncio", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(monitor, "get", nobody)
        gateway = SimpleNamespace(settings=settings)
        backend = SimpleNamespace(name="b", scrape_errors=0, models_due=0.0, checked=lambda *_: False)
        watcher = monitor.Monitor(cast(Gateway, gateway))
        with pytest.raises(asyncio.CancelledError):
            await getattr(watcher, task)(cast(Backend, backend))
        return found

    runs = [asyncio.run(pauses()) for _ in range(5)]
    assert all(run[1:] == [interval] * (LOOKS - 1) for run in runs)
    first = [run[0] for run in runs]
    assert len(set(first)) == len(first) and all(0.0 <= pause < interval for pause in first)


@pytest.mark.parametrize("what", ["check", "scrape"])
def test_a_look_at_a_backend_that_fails_in_an_unforeseen_way_is_told_and_not_the_last(
    what, play, monkeypatch
):
    looks = 0

    async def scene(world):
        def broken(*_: Any) -> None:
            nonlocal looks
            looks += 1
            raise ArithmeticError("nobody thought of this")

        told: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(world.gateway, "events", lambda event, **fields: told.append((event, fields)))
        where = {"check": (Backend, "checked"), "scrape": (monitor, "read_metrics")}[what]
        monkeypatch.setattr(*where, broken)
        await world.until(lambda: looks >= 3)
        failed = [fields for event, fields in told if event == f"{what}_failed"]
        assert failed[0]["error"] == "ArithmeticError: nobody thought of this"
        assert failed[0]["backend"] in {each.name for each in world.gateway.backends}

    play(scene)


def test_whoever_waits_is_told_when_another_backend_lists_the_model(play, prompt, monkeypatch):
    monkeypatch.setattr(monitor, "MODELS_EVERY_S", 0.0)

    def before(backends):
        backends[1].models = ["n"]

    async def scene(world):
        gate = world.backends[0].gate = asyncio.Event()
        await world.until(lambda: all(each.models for each in world.gateway.backends))
        asking = [asyncio.ensure_future(world.ask(body=prompt)) for _ in range(2)]
        await world.until(lambda: len(world.gateway.queue) == 1)
        world.backends[1].models = ["n", "m"]
        await world.until(lambda: len(world.backends[1].requests) == 1, "its turn")
        gate.set()
        assert [(await each).status for each in asking] == [200, 200]

    play(scene, before=before, per_backend={"max_in_flight": 1}, queue={"timeout": 3.0})


def test_nothing_is_heard_of_a_backend_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row in the ledger may be another's by then, whatever was about to be read."""

    async def scene() -> None:
        listed = [{"url": f"http://127.0.0.1:{port}", "name": str(port)} for port in (8, 9)]
        health = {"interval": 0.001, "fail_after": 1}
        old, new = (parse_settings({"backends": [each], "health": health}, "test") for each in listed)
        gateway = Gateway(old)
        watcher = monitor.Monitor(gateway)
        (gone,) = gateway.backends
        answers = dict[str, asyncio.Future[tuple[int, bytes]]]()
        asked = list[str]()

        async def answer(backend: Backend, path: str, timeout: float) -> tuple[int, bytes]:
            asked.append(backend.name)
            answers[path] = asyncio.get_running_loop().create_future()
            return await answers[path]

        monkeypatch.setattr(monitor, "get", answer)
        watcher.follow()
        await asyncio.sleep(0)
        assert list(answers) == ["/health", "/metrics"]
        answers["/health"].set_result((503, b""))
        while answers["/health"].done():
            await asyncio.sleep(0.001)
        # Everything comes in the very moment in which it goes.
        answers["/health"].set_result((200, b""))
        answers["/metrics"].set_result((200, METRICS))
        gateway.reload(new)
        (there,) = gateway.backends
        assert there.row == gone.row
        gateway.prefixes.sent(there.row, np.ones(1, np.uint64), 0)
        before = gateway.ledger.rows[there.row].copy(), gateway.prefixes._memory.sent_ends[there.row].copy()
        for _ in range(5):
            await asyncio.sleep(0.002)
        assert gateway.ledger.scraped_at[there.row] == -np.inf
        assert (gateway.ledger.rows[there.row] == before[0]).all()
        assert (gateway.prefixes._memory.sent_ends[there.row] == before[1]).all()
        assert asked.count(gone.name) == 3 and gone.reading is None
        await watcher.stop()

    asyncio.run(scene())
