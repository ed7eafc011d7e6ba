"""Backends found by name: every address that a DNS name has is one."""

import asyncio
import socket

from fairlead.errors import FairleadError
from fairlead.serve.backend import Backend
from fairlead.serve.gateway import Gateway
from fairlead.serve.settings import BackendSettings
from fairlead.serve.settings import Discovery as Settings

IDLE_S = 1.0
"""How often the settings are looked at while they name no host."""


async def resolve(host: str) -> list[str]:
    """The addresses that a name has now; `OSError` if it cannot be resolved."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(row[4][0]) for row in found})


class Discovery:
    """Keeps the gateway's backends in step with a name.

    A name that cannot be resolved changes nothing: a DNS server that is away must not take the backends
    with it, and whether they live is for the health checks to say.
    """

    def __init__(self, gateway: Gateway) -> None:
        """For `gateway`; `start` begins."""
        self._gateway = gateway
        self._found: dict[str, Backend] = {}
        self._task: asyncio.Task[None] | None = None
        self._failing = False

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._look_for_ever())

    async def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _look_for_ever(self) -> None:
        while True:
            settings = self._gateway.settings.discovery
            if settings is None:
                self.follow({})
                await asyncio.sleep(IDLE_S)
                continue
            await self.look(settings)
            await asyncio.sleep(settings.interval)

    async def look(self, settings: Settings) -> None:
        """Resolve the name once, and follow it."""
        try:
            addresses = await resolve(settings.host)
        except (OSError, UnicodeError) as error:  # the latter: a name that cannot be one, such as `a..b`
            if not self._failing:
                self._gateway.events("discovery_failed", host=settings.host, error=str(error))
            self._failing = True
            return
        self._failing = False
        hosts = [f"[{address}]" if ":" in address else address for address in addresses]
        try:
            self.follow({f"{host}:{settings.port}": settings.backend_at(host) for host in hosts})
        except FairleadError as error:  # certificates that cannot be used, say
            self._gateway.events("discovery_failed", host=settings.host, error=str(error))

    def follow(self, wanted: dict[str, BackendSettings]) -> None:
        """Take up the backends in `wanted` that are new; let go of those found before that are not in it."""
        backends = self._gateway.backends
        self._found = {
            name: each for name, each in self._found.items() if each in backends and each.discovered
        }
        with backends.at_once():
            for name, backend in list(self._found.items()):
                if name not in wanted and not backend.leaving:
                    backends.drain(backend, remove=True)
                elif name in wanted and backend.settings != wanted[name]:  # the template is another one now
                    self._found[name] = backends.replace(backend, wanted[name])
                elif name in wanted and backend.leaving:
                    backends.keep(backend)
            taken = {backend.name for backend in backends}
            for name, settings in wanted.items():
                if name not in taken:
                    self._found[name] = backends.add(settings, discovered=True)
                    self._gateway.events("backend_found", backend=name)
