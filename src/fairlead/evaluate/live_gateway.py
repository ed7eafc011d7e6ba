"""A gateway in this process before live servers, for measuring them and for learning on them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fairlead.errors import FairleadError
from fairlead.serve.descriptors import most_connections
from fairlead.serve.logs import EventLog, JsonLines
from fairlead.serve.probe import Finding
from fairlead.serve.server import Server
from fairlead.serve.settings import GatewaySettings
from fairlead.workload.requests import Requests

POLL_S = 0.05
FRESH_S = 10.0
"""Until the gateway knows its backends."""


@dataclass(frozen=True)
class Bounds:
    """How far work on live servers may go."""

    run_minutes: float = 60.0
    """The whole of it may take so long; what would take longer by its arrivals alone is not begun."""
    request_s: float = 300.0
    """A request that takes longer has failed."""
    drain_s: float = 120.0
    """For the servers to become idle before each run."""


class Answers(JsonLines):
    """The gateway's log of requests, kept: who answered the request of each number."""

    def __init__(self) -> None:
        """Nothing answered yet."""
        self.backend: dict[int, str | None] = {}
        self.attempts: dict[int, int] = {}

    def write(self, record: dict[str, Any]) -> None:
        """Keep what matters of a line."""
        number = int(record["id"])
        self.backend[number] = record["backend"]
        self.attempts[number] = record["attempts"]

    def flush(self) -> None:
        """Nothing is written."""

    def close(self) -> None:
        """Nothing is open."""


class _Silent(EventLog):
    """Events that nobody waits for: what they mean shows in the requests."""

    def __call__(self, event: str, **details: Any) -> None:
        pass


@asynccontextmanager
async def private_gateway(settings: GatewaySettings, log: JsonLines | None = None) -> AsyncIterator[Server]:
    """A gateway on a free loopback port, without keys, admin API or logs of its own; closed at the end.

    Args:
        settings: its backends and policy, and everything else.
        log: where it writes a record of every request; nowhere by default.
    """
    logs = settings.logs.model_copy(update={"requests": False, "decisions": None})
    connections = min(settings.limits.max_connections, most_connections())
    limits = settings.limits.model_copy(update={"max_connections": connections})
    changes: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "logs": logs, "limits": limits}
    changes |= {"tls": None, "admin": None, "api_keys": ()}
    server = Server(settings.model_copy(update=changes))
    server.gateway.requests_log = log
    server.gateway.events = _Silent()
    try:
        await server.start()
        yield server
    finally:
        await server.close()


async def wait_until_idle(server: Server, drain_s: float, where: str) -> None:
    """Return when every server has been read, and none has anything to do.

    Raises:
        FairleadError: if one does not answer, or is busy for longer than `drain_s`; the message begins with
            `where`.
    """
    start = time.monotonic()
    scraped = server.gateway.settings.scrape.interval is not None
    backends = server.gateway.backends
    while True:
        elapsed = time.monotonic() - start
        unread = [b for b in backends if scraped and b.reading is None]
        silent = [b.name for b in backends if not b.up or not b.model_cards or b in unread]
        busy = [b.name for b in backends if b.reading is not None and b.reading.running + b.reading.waiting]
        if not silent and not busy:
            return
        if silent and elapsed > FRESH_S:
            raise FairleadError(
                f"{where}: {', '.join(silent)}: not up, or /metrics cannot be used; "
                "`fairlead probe` tells more"
            )
        if elapsed > drain_s:
            raise FairleadError(
                f"{where}: {', '.join(busy)} is still busy after {drain_s:g} s: somebody else uses it"
            )
        await asyncio.sleep(POLL_S)


def shared_model(findings: Sequence[Finding], wanted: str) -> str:
    """The model to ask for: `wanted` if all servers have it, otherwise the one that they share.

    Raises:
        FairleadError: if a server cannot be used, or they have no model in common.
    """
    for found in findings:
        if found.error or not found.healthy:
            raise FairleadError(f"{found.url}: {found.error or '/health does not answer with 200'}")
    common = set.intersection(*(set(found.models) for found in findings))
    if wanted not in common and len(common) != 1:
        offers = "; ".join(f"{found.url}: {', '.join(found.models) or 'none'}" for found in findings)
        raise FairleadError(f"the servers must share one model, or all serve {wanted}; they have {offers}")
    return wanted if wanted in common else common.pop()


def check_lengths(findings: Sequence[Finding], model: str, requests: Requests, scenario: str) -> None:
    """Refuse requests that are longer than `model` takes anywhere.

    Raises:
        FairleadError: if there are some.
    """
    longest = min((most for f in findings if (most := f.models[model]) is not None), default=None)
    tokens = requests.prompt_tokens + requests.output_tokens
    if longest is not None and (most := int(tokens.max())) > longest:
        raise FairleadError(
            f"{int((tokens > longest).sum())} of {len(requests)} requests of {scenario} are longer than "
            f"{model} takes ({most} tokens, {longest} allowed): set workload.max_tokens in a scenario file "
            "of your own"
        )
