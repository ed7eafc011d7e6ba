"""An emulated cluster on a thread of its own, for tests whose subject has an event loop itself."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fairlead.emulate.clock import LoopClock
from fairlead.emulate.cluster import Server, build
from fairlead.workload.scenario import Scenario


@contextmanager
def emulated(scenario: Scenario, speed: float = 1.0, model: str | None = None) -> Iterator[list[str]]:
    """The addresses of the scenario's replicas, while they serve."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> list[Server]:
        servers = build(scenario, LoopClock(loop, speed), host="127.0.0.1", port=0, seed=0, model=model)
        for server in servers:
            await server.start()
        return servers

    async def stop(servers: list[Server]) -> None:
        for server in servers:
            server.stop()

    servers = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield [f"http://127.0.0.1:{server.port}" for server in servers]
    finally:
        asyncio.run_coroutine_threadsafe(stop(servers), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
