"""What goes on beside the requests: health checks, scrapes, the list of models, deadlines, log flushes."""

import asyncio
import random
from time import monotonic
from typing import Any

import msgspec

from fairlead.serve.backend import Backend
from fairlead.serve.fetch import get
from fairlead.serve.frontend import Application
from fairlead.serve.gateway import Gateway
from fairlead.serve.messages import NOT_JSON
from fairlead.serve.scraping import read_metrics

SWEEP_S = 0.1
"""How often deadlines are looked at: their granularity."""
MODELS_EVERY_S = 30.0


def _first_pause() -> float:
    """A part of the interval: backends that are met together are not looked at together ever after."""
    return random.random()


class Monitor:
    """Watches the backends, each in a task of its own, so that one that hangs holds up no other."""

    def __init__(self, gateway: Gateway) -> None:
        """For `gateway`; `start` begins."""
        self._gateway = gateway
        self.applications: list[Application] = [gateway]
        """Whose connections have deadlines."""
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; needs a running loop."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep_for_ever())
        self.follow()

    def follow(self) -> None:
        """Watch the backends that are new; those that go end it themselves."""
        loop = asyncio.get_running_loop()
        for backend in self._gateway.backends:
            if not backend.watchers:
                backend.watchers = [
                    loop.create_task(self._check_for_ever(backend)),
                    loop.create_task(self._scrape_for_ever(backend)),
                ]

    async def stop(self) -> None:
        """End all tasks."""
        tasks = [task for backend in self._gateway.backends for task in backend.watchers]
        if self._sweeper is not None:
            tasks.append(self._sweeper)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check_for_ever(self, backend: Backend) -> None:
        pause = _first_pause()
        while True:
            health = self._gateway.settings.health
            try:
                await self.check(backend)
            except Exception as error:  # whatever it is, the backend is looked at again
                self._failed("check", error, backend)
            await asyncio.sleep(health.interval * pause)
            pause = 1.0

    async def check(self, backend: Backend) -> None:
        """Ask once for a backend's health, and for its models if that is due."""
        health = self._gateway.settings.health
        try:
            status, _ = await get(backend, health.path, health.timeout)
            good = status == 200
        except OSError:
            good = False
        if backend.checked(good, monotonic(), health):
            self._gateway.events("backend_healthy" if good else "backend_unhealthy", backend=backend.name)
            if good:
                self._gateway.backends.restarted(backend)
            backend.models_due = 0.0
            self._gateway.queue.released()
        if good and monotonic() >= backend.models_due:
            await self._read_models(backend)
            backend.models_due = monotonic() + MODELS_EVERY_S

    async def _read_models(self, backend: Backend) -> None:
        try:
            status, body = await get(backend, "/v1/models", self._gateway.settings.health.timeout)
            listed: Any = msgspec.json.decode(body)["data"] if status == 200 else []
            cards = [card for card in listed if isinstance(card.get("id"), str)]
        except (OSError, *NOT_JSON, KeyError, TypeError, AttributeError):
            return  # asked again later; until then it is taken to serve all models
        self._gateway.backends.listed(backend, cards)

    async def _scrape_for_ever(self, backend: Backend) -> None:
        pause = _first_pause()
        while True:
            settings = self._gateway.settings.scrape
            if settings.interval is None:
                await asyncio.sleep(1.0)
                continue
            try:
                await self.scrape(backend)
            except Exception as error:  # as above
                self._failed("scrape", error, backend)
            await asyncio.sleep(settings.interval * pause)
            pause = 1.0

    async def scrape(self, backend: Backend) -> None:
        """Read a backend's metrics once; what fails is counted."""
        settings = self._gateway.settings.scrape
        try:
            status, body = await get(backend, settings.path, settings.timeout)
        except OSError:
            backend.scrape_errors += 1
            return
        reading = read_metrics(body, backend.reading) if status == 200 else None
        if reading is None:
            backend.scrape_errors += 1
            return
        before, backend.reading = backend.reading, reading
        if before is not None and reading.prefix_queries < before.prefix_queries:  # it counts anew
            self._gateway.backends.restarted(backend)
        if not reading.caches_prefixes:
            self._gateway.prefixes.forget(backend.row)
        if backend.settings.kv_capacity_tokens is not None:
            reading = reading._replace(kv_capacity_tokens=0)  # what was declared stands
        self._gateway.ledger.scraped(backend.row, reading, monotonic())
        self._gateway.backends.fit_prefixes(backend)

    async def _sweep_for_ever(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.sweep(monotonic())
            except Exception as error:  # whatever it is, the deadlines of all others still count
                self._failed("sweep", error)

    def _failed(self, what: str, error: Exception, backend: Backend | None = None) -> None:
        where = {} if backend is None else {"backend": backend.name}
        self._gateway.events(f"{what}_failed", **where, error=f"{type(error).__name__}: {error}")

    def sweep(self, now: float) -> None:
        """Act on every deadline that has passed."""
        gateway = self._gateway
        for exchange in [each for each in gateway.exchanges if each.deadline <= now]:
            if exchange.deadline <= now:  # still: what one gives up another may take
                exchange.expired()
        for application in self.applications:
            for connection in [each for each in application.connections if each.deadline <= now]:
                if connection.deadline <= now:
                    connection.expired()
        gateway.backends.sweep(now)
        self.follow()
        for log in (gateway.requests_log, gateway.decisions_log):
            if log is not None:
                log.flush()
