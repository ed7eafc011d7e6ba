"""The admin API and the dashboard: a small application of its own on a loopback port, behind a token.

GET    /                       the dashboard (a page without data; it asks for the token)
GET    /status                 everything that the dashboard shows
POST   /backends               take up a backend: a section as under `backends` in the settings
POST   /backends/NAME/drain    give it no more requests
POST   /backends/NAME/resume   give it requests again
DELETE /backends/NAME          drain it, then forget it
POST   /policy                 another policy: keys as under `policy` in the settings; others stay
"""

import asyncio
import hmac
from collections.abc import Callable
from importlib import resources
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from pydantic import ValidationError

from fairlead.errors import FairleadError
from fairlead.section import first_problem
from fairlead.serve.backend import Histogram
from fairlead.serve.decisions import load_routers
from fairlead.serve.frontend import ClientConnection
from fairlead.serve.gateway import Gateway
from fairlead.serve.messages import NOT_JSON, answer, error_body
from fairlead.serve.monitor import Monitor
from fairlead.serve.request import Request, Sink
from fairlead.serve.settings import BackendSettings, Limits, Policy
from fairlead.view import schema

Reply = tuple[int, bytes, bytes]
"""Status, content type, body."""
JSON = b"application/json"

_Part = TypeVar("_Part", Policy, BackendSettings)


class Administration:
    """The application behind the admin port."""

    draining = False

    def __init__(self, gateway: Gateway, monitor: Monitor, token: str) -> None:
        """For `gateway`; `token` is what callers must send."""
        self.gateway = gateway
        self.connections: set[ClientConnection] = set()
        self.limits = Limits(max_body_bytes=1024 * 1024, max_connections=100)
        self.timeouts = gateway.timeouts
        self._monitor = monitor
        self._token = token.encode()
        self._tasks: set[asyncio.Task[None]] = set()

    def handle(self, request: Request) -> Sink:
        """Take charge of a request."""
        return _Call(self, request)

    def authorised(self, request: Request) -> bool:
        """Whether the request carries the token."""
        scheme, _, token = request.header(b"authorization").partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)

    def reply(self, request: Request, body: bytes, send: Callable[[Reply], None]) -> None:
        """Answer a complete request through `send`, now or when it is done."""
        method, path = request.method.decode("latin-1"), unquote(request.path.decode("latin-1"))
        if (method, path) == ("GET", "/"):
            page = resources.files("fairlead.serve").joinpath("dashboard.html").read_bytes()
            send((200, b"text/html; charset=utf-8", page))
        elif not self.authorised(request):
            send(_error(401, "the admin token is needed, as Authorization: Bearer ..."))
        elif (method, path) == ("GET", "/status"):
            send((200, JSON, msgspec.json.encode(self.status())))
        else:
            task = asyncio.get_running_loop().create_task(self._change(method, path, body, send))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _change(self, method: str, path: str, body: bytes, send: Callable[[Reply], None]) -> None:
        try:
            send(await self._changed(method, path, body))
        except FairleadError as error:
            send(_error(422, str(error)))
        except Exception as error:  # a caller is told, whatever it is
            send(_error(500, f"{type(error).__name__}: {error}"))

    async def _changed(self, method: str, path: str, body: bytes) -> Reply:
        gateway, backends = self.gateway, self.gateway.backends
        parts = path.strip("/").split("/")
        if method == "POST" and path == "/policy":
            settings = _parse(Policy, gateway.decider.settings.model_dump() | _decode(body), "policy")
            routers = await asyncio.to_thread(load_routers, settings)  # loading may take a while
            gateway.decider.install(settings, routers)
            gateway.events("policy_replaced", policy=settings.router, shadow=settings.shadow)
        elif method == "POST" and path == "/backends":
            backend = backends.add(_parse(BackendSettings, _decode(body), "backend"))
            self._monitor.follow()
            gateway.events("backend_added", backend=backend.name, url=backend.settings.url)
        elif len(parts) == 2 and parts[0] == "backends" and method == "DELETE":
            backends.drain(backends.find(parts[1]), remove=True)
        elif len(parts) == 3 and parts[0] == "backends" and method == "POST" and parts[2] == "drain":
            backends.drain(backends.find(parts[1]), remove=False)
        elif len(parts) == 3 and parts[0] == "backends" and method == "POST" and parts[2] == "resume":
            backends.keep(backends.find(parts[1]))
        else:
            return _error(404, f"there is no {method} {path} here")
        return 200, JSON, msgspec.json.encode(self.status())

    def status(self) -> dict[str, Any]:
        """What the dashboard shows, as plain data."""
        gateway, now = self.gateway, monotonic()
        decider, ledger = gateway.decider, gateway.ledger
        backends = []
        for backend in gateway.backends:
            row = ledger.rows[backend.row]
            age = now - ledger.scraped_at[backend.row]
            backends.append(
                {
                    "name": backend.name,
                    "url": backend.settings.url,
                    "state": backend.state,
                    "models": sorted(backend.models),
                    "requests": backend.requests,
                    "errors": backend.errors,
                    "answers": {str(status): count for status, count in backend.answers.items()},
                    "cancelled": backend.cancelled,
                    "retries": backend.retries,
                    "ejections": backend.ejections,
                    "output_tokens": backend.output_tokens,
                    "ttft_s": _quantiles(backend.ttft),
                    "itl_s": _quantiles(backend.itl),
                    "e2e_s": _quantiles(backend.e2e),
                    "scrape_age_s": round(float(age), 3) if age < float("inf") else None,
                    "view": {
                        column.name: float(row[i])
                        for i, column in enumerate(schema.REPLICA_COLUMNS)
                        if column.source != "scraped" or age < float("inf")
                    },
                }
            )
        return {
            "uptime_s": round(now - gateway.started_at, 3),
            "ready": gateway.ready,
            "draining": gateway.draining,
            "policy": decider.settings.model_dump(),
            "policy_rests": now < decider.rests_until,
            "policy_errors": decider.errors,
            "last_policy_error": decider.last_error,
            "decisions": decider.decisions,
            "decision_s": _quantiles(decider.seconds),
            "shadow": {"decisions": decider.shadow_decisions, "agreed": decider.shadow_agreed},
            "queue": len(gateway.queue),
            "queue_refused": gateway.queue.refused,
            "in_flight": len(gateway.exchanges),
            "connections": len(gateway.connections),
            "expected_output_tokens": ledger.expected_output(),
            "requests": [
                {"path": path, "status": status, "count": count}
                for (path, status), count in gateway.requests.items()
            ],
            "backends": backends,
        }


class _Call:
    """One request to the admin API."""

    def __init__(self, application: Administration, request: Request) -> None:
        self._application = application
        self._request = request
        self._parts: list[bytes] = []
        self._gone = False

    def body(self, data: bytes) -> None:
        self._parts.append(data)

    def end(self) -> None:
        self._application.reply(self._request, b"".join(self._parts), self._send)

    def client_left(self) -> None:
        self._gone = True

    def client_slow(self, slow: bool) -> None:
        pass

    def _send(self, reply: Reply) -> None:
        if self._gone:
            return
        status, content_type, body = reply
        request = self._request
        headers = ((b"Cache-Control", b"no-store"), (b"X-Content-Type-Options", b"nosniff"))
        request.connection.write(
            answer(
                status,
                body,
                content_type=content_type,
                headers=headers,
                close=request.close,
                head_only=request.method == b"HEAD",
            )
        )
        request.connection.answered(request)


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    """Upper bounds of the buckets that hold the median and the 99th percentile, s; None where unknown."""
    total = sum(histogram.counts)
    found: dict[str, float | None] = {"p50": None, "p99": None}
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        seen = 0
        for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
            seen += count
            if total and seen >= share * total:
                found[name] = bound
                break
    return found


def _decode(body: bytes) -> dict[str, Any]:
    try:
        content = msgspec.json.decode(body)
    except NOT_JSON as error:
        raise FairleadError(f"the body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FairleadError("the body must be a JSON object")
    return content


def _parse(kind: type[_Part], content: dict[str, Any], where: str) -> _Part:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise first_problem(error, where) from None


def _error(status: int, message: str) -> Reply:
    return status, JSON, error_body(status, message, "invalid_request_error")
