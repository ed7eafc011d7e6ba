"""The gateway: requests come in, the policy places them, the ledger follows what becomes of them.

Everything happens on one event loop, without a task per request: protocols call each other. Only connecting,
health checks, scrapes and the sweep of deadlines are tasks.
"""

import hmac
import os
from time import monotonic
from typing import Any

import msgspec

from fairlead.serve.backend import Backend
from fairlead.serve.backends import Backends
from fairlead.serve.decisions import Decider, PolicyFailed, load_routers
from fairlead.serve.descriptors import most_connections
from fairlead.serve.exchange import Exchange
from fairlead.serve.facts import STATELESS
from fairlead.serve.frontend import ClientConnection
from fairlead.serve.homes import Homes
from fairlead.serve.ledger import Ledger
from fairlead.serve.local import LocalAnswer
from fairlead.serve.logs import EventLog, JsonLines
from fairlead.serve.messages import error_body
from fairlead.serve.metrics import exposition
from fairlead.serve.placement import Placement
from fairlead.serve.prefixes import Prefixes
from fairlead.serve.prompt_tokens import PromptCounter
from fairlead.serve.queue import Queue
from fairlead.serve.records import decision_record, request_record
from fairlead.serve.request import Request, Sink
from fairlead.serve.settings import GatewaySettings
from fairlead.serve.tokens import PromptEstimate
from fairlead.serve.traces import Tracing

FORWARDED = (
    b"/v1/",
    b"/tokenize",
    b"/detokenize",
    b"/pooling",
    b"/classify",
    b"/score",
    b"/rerank",
    b"/v2/rerank",
)
"""Paths that are passed on; the rest is the gateway's own."""
READ_BEFORE_REFUSING = 65_536
"""A refused request with a smaller body is read to its end, so that the connection can be kept."""


class Gateway:
    """The state of one gateway process."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Take up backends and policy.

        Raises:
            FairleadError: for an unknown router or an unusable policy file.
        """
        self.settings = settings
        self.limits = settings.limits
        self.timeouts = settings.timeouts
        self.connections: set[ClientConnection] = set()
        self.exchanges: set[Exchange] = set()
        """Under way, those in the queue included."""
        self.draining = False
        self.ledger = Ledger(monotonic())
        self.ledger.warm()
        self.prefixes = Prefixes(settings.prefixes.chunks)
        self.decider = Decider(settings.policy)
        self.prompts = PromptEstimate(settings.tokens.bytes_per_token)
        self.homes = Homes()
        self.placement = Placement(self.ledger, self.prefixes, self.homes, self.decider, self.prompts)
        self.counter: PromptCounter | None = None
        self.events = EventLog()
        self.backends = Backends(
            settings,
            self.ledger,
            self.prefixes,
            self.homes,
            self.prompts,
            self.events,
            released=lambda: self.queue.released(),  # the queue needs the backends: it is made after them
        )
        self.queue = Queue(settings.queue, self.backends)
        self.started_at = monotonic()
        self.requests: dict[tuple[str, int], int] = {}
        """Answered, by path class and status."""
        logs = settings.logs
        self.requests_log = JsonLines(None, events=self.events) if logs.requests else None
        self.decisions_log = (
            JsonLines(logs.decisions, logs.decisions_max_bytes, self.events) if logs.decisions else None
        )
        self.traces = Tracing(settings.traces) if settings.traces is not None else None
        self._id_prefix = os.urandom(6).hex().encode()
        self._id_count = 0
        self._count_with(self._new_counter(settings))
        self._apply(settings)
        for backend in settings.backends:
            self.backends.add(backend)

    def _new_counter(self, settings: GatewaySettings) -> PromptCounter | None:
        if settings.tokens.prompts == "estimate":
            return None
        return PromptCounter(settings.tokens, self.backends, self.events)

    def _count_with(self, counter: PromptCounter | None) -> None:
        if self.counter is not None:
            self.counter.close()
        self.counter = counter

    def _apply(self, settings: GatewaySettings) -> None:
        """Take over what can change while running (backends and policy aside)."""
        self.settings = settings
        self.limits, self.timeouts = settings.limits, settings.timeouts
        if (most := most_connections()) < self.limits.max_connections:
            self.events("few_open_files", max_connections=most, wanted=self.limits.max_connections)
            self.limits = self.limits.model_copy(update={"max_connections": most})
        self.keyed = bool(settings.api_keys)
        self._keys = [key.encode() for key in settings.api_keys]
        self.attempts = settings.retries.attempts
        self.retry_statuses = frozenset(settings.retries.statuses)
        self.orca = settings.scrape.orca
        self.ask_usage = settings.tokens.ask_usage
        self.backends.apply(settings)
        self.queue.settings = settings.queue

    def reload(self, settings: GatewaySettings) -> None:
        """Take over new settings: backends that stay keep their connections and their place in the ledger.

        Raises:
            FairleadError: if the policy, a tokenizer or a certificate cannot be loaded; then nothing has
                changed.
        """
        again = settings.tokens != self.settings.tokens
        pools = self.backends.new_pools(settings)
        routers = load_routers(settings.policy) if settings.policy != self.settings.policy else None
        counter = self._new_counter(settings) if again else None
        # From here on nothing can fail.
        if routers is not None:
            self.decider.install(settings.policy, routers)
        if again:
            self._count_with(counter)
        self._apply(settings)
        self.backends.follow(settings.backends, pools)

    # Requests.

    def handle(self, request: Request) -> Sink:
        """Take charge of a request."""
        request_id = self._request_id(request)
        path = request.path
        if not path.startswith(FORWARDED):
            return LocalAnswer(request, lambda: self._own(path), request_id)
        # A browser asks beforehand, without a key, whether it may ask.
        if self.keyed and request.method != b"OPTIONS" and not self._authorised(request):
            return self._refuse(request, 401, "a valid API key is needed", request_id)
        if path not in STATELESS and (b".." in path or b"%2e" in path.lower()):
            return self._refuse(request, 400, "the path must not contain '..'", request_id)
        if path == b"/v1/models" and request.method in (b"GET", b"HEAD") and self._has_models():
            return LocalAnswer(request, self._models, request_id)
        exchange = Exchange(self, request, request_id)
        if self.traces is not None:
            exchange.span = self.traces.begin(request)
        self.exchanges.add(exchange)
        return exchange

    def _refuse(self, request: Request, status: int, message: str, request_id: bytes) -> Sink:
        body = error_body(status, message, "invalid_request_error")
        refusal = LocalAnswer(request, lambda: (status, b"application/json", body), request_id)
        if not 0 <= request.length <= READ_BEFORE_REFUSING:
            request.sink = refusal
            refusal.end()
        return refusal

    def _request_id(self, request: Request) -> bytes:
        given = request.header(b"x-request-id")
        if given and len(given) <= 128:
            return given
        self._id_count += 1
        return b"%b-%x" % (self._id_prefix, self._id_count)

    def _authorised(self, request: Request) -> bool:
        scheme, _, key = request.header(b"authorization").partition(b" ")
        good = False
        for each in self._keys:  # all are compared: the time tells nothing
            good |= hmac.compare_digest(each, key.strip())
        return good and scheme.lower() == b"bearer"

    def place(self, exchange: Exchange) -> Backend | None:
        """Choose a backend for `exchange`; None if it has to wait or has been answered with an error."""
        facts = exchange.facts
        assert facts is not None
        now = monotonic()
        found = self.backends.candidates(facts.model, exchange.tried)
        slow = self.settings.health.slow_return_s
        # A list comprehension for each condition costs; mostly none of them holds.
        for each in found:
            if each.in_flight >= each.limit or now - each.returned_at < slow:
                found = self.backends.admitting(found, now)
                break
        if not found:
            if exchange.tried:
                exchange.fail(502, "no other backend is available", "no_backend")
            elif not self.backends:
                exchange.fail(503, "there are no backends", "no_backend", self.queue.retry_after())
            else:
                self.queue.wait(exchange, now)
            return None
        try:
            return self.placement.choose(
                exchange,
                found,
                now,
                stale_after=self.settings.scrape.stale_after,
                keep_view=self.decisions_log is not None,
            )
        except PolicyFailed as failure:
            exchange.fail(500, f"the routing policy failed: {failure}", "policy")
            return None

    def ended(self, exchange: Exchange, backend: Backend | None) -> None:
        """Book an exchange that is over; `backend` is where it was last."""
        self.exchanges.discard(exchange)
        if exchange.waiting:
            self.queue.leave(exchange)
        request = exchange.request
        key = (_COUNTED.get(request.path, "other"), exchange.status)
        self.requests[key] = self.requests.get(key, 0) + 1
        if exchange.span is not None and self.traces is not None:
            self.traces.end(exchange.span, exchange, backend, key[0])
        if self.requests_log is not None:
            self.requests_log.write(request_record(exchange, backend))
        if self.decisions_log is not None and exchange.logged is not None:
            self.decisions_log.write(decision_record(exchange, backend, self.started_at))

    # The gateway's own answers.

    @property
    def ready(self) -> bool:
        """Whether requests can be served."""
        return not self.draining and any(backend.up for backend in self.backends)

    def _own(self, path: bytes) -> tuple[int, bytes, bytes]:
        if path == b"/health":
            return 200, b"application/json", b'{"status":"ok"}'
        if path == b"/ready":
            if self.ready:
                return 200, b"application/json", b'{"ready":true}'
            return 503, b"application/json", b'{"ready":false}'
        if path == b"/metrics":
            return 200, b"text/plain; version=0.0.4; charset=utf-8", exposition(self)
        message = "there is nothing here: the API is under /v1"
        return 404, b"application/json", error_body(404, message, "invalid_request_error")

    def _has_models(self) -> bool:
        return any(backend.model_cards for backend in self.backends if backend.up)

    def _models(self) -> tuple[int, bytes, bytes]:
        cards: dict[str, dict[str, Any]] = {}
        for backend in self.backends:
            if backend.up:
                for card in backend.model_cards:
                    cards.setdefault(card["id"], card)
        body = msgspec.json.encode({"object": "list", "data": list(cards.values())})
        return 200, b"application/json", body


_COUNTED = {
    path.encode(): path
    for path in (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/models",
        "/v1/messages",
    )
}
"""Paths that requests are counted by."""
