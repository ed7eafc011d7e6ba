"""A scenario's cluster as servers: one port for each replica."""

import asyncio
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from fairlead.emulate.clock import Clock
from fairlead.emulate.endpoint import Endpoint
from fairlead.emulate.engine import Engine
from fairlead.emulate.lengths import Lengths
from fairlead.errors import FairleadError
from fairlead.serve.frontend import ClientConnection
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.reference import from_fleet
from fairlead.workload.faults import Faults, plan
from fairlead.workload.scenario import Scenario

FAULTS_UNTIL_S = 24 * 3600.0
"""Faults that repeat do so for a day of the engines' time."""


@dataclass(eq=False)
class Server:
    """One replica's endpoint and the port that it listens on."""

    endpoint: Endpoint
    host: str
    port: int
    """0: any that is free, known once it listens."""
    _listener: asyncio.Server | None = field(default=None, repr=False)
    _restart: asyncio.TimerHandle | None = field(default=None, repr=False)
    _starting: "asyncio.Task[None] | None" = field(default=None, repr=False)

    async def start(self) -> None:
        """Listens.

        Raises:
            FairleadError: if the port is taken.
        """
        loop = asyncio.get_running_loop()
        try:
            self._listener = await loop.create_server(
                lambda: ClientConnection(self.endpoint), self.host, self.port, reuse_address=True
            )
        except OSError as error:
            raise FairleadError(
                f"cannot listen on {self.host}:{self.port}: {error.strerror or error}; choose another --port"
            ) from None
        self.port = cast(int, self._listener.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Closes the port and all connections at once; the engine loses everything."""
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self.endpoint.connections):
            connection.abort()
        self.endpoint.engine.reset()
        self.endpoint.load = 0

    def change(self, pace: float, up: bool) -> None:
        """What a fault of the scenario does: another pace; death if it is not `up`, return if it is."""
        self.endpoint.engine.pace = pace
        if not up:
            self.stop()
        elif self._listener is None and self._restart is None:
            self._starting = asyncio.get_running_loop().create_task(self.start())

    def kill(self, seconds: float) -> None:
        """Stops as `kill -9` would stop it, and starts again, empty, after `seconds` (of the wall)."""
        loop = asyncio.get_running_loop()

        def restart() -> None:
            self._restart = None
            self._starting = loop.create_task(self.start())

        def die() -> None:
            self.stop()
            self._restart = loop.call_later(seconds, restart)

        # The request that asks for it is answered first.
        loop.call_soon(die)


def build(
    scenario: Scenario, clock: Clock, *, host: str, port: int, seed: int, model: str | None = None
) -> list[Server]:
    """The servers of a scenario's replicas, at ports `port`, `port` + 1, ...; all free ones if it is 0.

    Args:
        scenario: the cluster, and the length of answers that nobody said the length of.
        clock: the time of all engines, and of the scenario's faults.
        host: the address to listen on.
        port: of the first replica.
        seed: of the drawn lengths and faults.
        model: the name to serve; default: the scenario's.
    """
    lengths = Lengths(scenario, seed)
    servers = []
    for index, spec in enumerate(from_fleet(build_fleet(scenario))):
        endpoint = Endpoint(Engine(index, spec, clock), model or scenario.model, lengths)
        server = Server(endpoint, host, port + index if port else 0)
        endpoint.kill = server.kill
        servers.append(server)
    faults = plan(scenario.faults, len(servers), FAULTS_UNTIL_S, seed, "evaluate")
    follow_faults(servers, faults, clock)
    return servers


def follow_faults(servers: list[Server], faults: Faults, clock: Clock) -> None:
    """Lets the faults happen when the clock comes to their times."""
    columns = (faults.time_s, faults.replica, faults.pace, faults.up)
    changes = deque(zip(*(column.tolist() for column in columns), strict=True))

    def happen() -> None:
        while changes and changes[0][0] <= clock.now():
            _, replica, pace, up = changes.popleft()
            servers[replica].change(pace, up)
        if changes:
            clock.call_at(changes[0][0], happen)

    happen()


async def serve(servers: list[Server], announce: Callable[[list[Server]], None]) -> None:
    """Runs the servers until SIGINT or SIGTERM.

    Args:
        servers: all of them listen, or none.
        announce: called once they listen.

    Raises:
        FairleadError: if a port is taken.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        for server in servers:
            await server.start()
        announce(servers)
        await stopped.wait()
    finally:
        for server in servers:
            server.stop()
