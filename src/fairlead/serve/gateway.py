"""The gateway: requests come in, the policy places them, the ledger follows what becomes of them.

Everything happens on one event loop, without a task per request: protocols call each other. Only connecting,
health checks, scrapes and the sweep of deadlines are tasks.
"""

import hmac
import os
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

import msgspec

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.serve.backend import Backend, pool_for
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
from fairlead.serve.prefixes import Prefixes, answer_chunks
from fairlead.serve.prompt_tokens import PromptCounter
from fairlead.serve.records import decision_record, request_record
from fairlead.serve.request import Request, Sink
from fairlead.serve.settings import BackendSettings, GatewaySettings
from fairlead.serve.tokens import PromptEstimate
from fairlead.serve.traces import Tracing
from fairlead.serve.upstream import Pool

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
        self.backends: list[Backend] = []
        self.queue: deque[Exchange] = deque()
        self.events = EventLog()
        self.started_at = monotonic()
        self.queue_refused = 0
        self.requests: dict[tuple[str, int], int] = {}
        """Answered, by path class and status."""
        logs = settings.logs
        self.requests_log = JsonLines(None, events=self.events) if logs.requests else None
        self.decisions_log = (
            JsonLines(logs.decisions, logs.decisions_max_bytes, self.events) if logs.decisions else None
        )
        self.traces = Tracing(settings.traces) if settings.traces is not None else None
        self._random = rng.stream(settings.policy.seed, "gateway", "slow return")
        self._id_prefix = os.urandom(6).hex().encode()
        self._id_count = 0
        self._releasing = False
        self._count_with(self._new_counter(settings))
        self._apply(settings)
        for backend in settings.backends:
            self.add(backend)

    def _new_counter(self, settings: GatewaySettings) -> PromptCounter | None:
        if settings.tokens.prompts == "estimate":
            return None
        return PromptCounter(settings.tokens, lambda: self.backends, self.events)

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
        for backend in self.backends:
            backend.pool.connect_timeout = settings.timeouts.connect
            backend.pool.idle_timeout = settings.timeouts.pool_idle

    # Backends come and go.

    def add(
        self, settings: BackendSettings, *, discovered: bool = False, pool: Pool | None = None
    ) -> Backend:
        """Take up a backend; one that was `discovered` stays when the settings are read again.

        Raises:
            FairleadError: if one of this name is there already, or its certificates cannot be used (unless
                they are in a `pool` already).
        """
        if any(backend.name == settings.label for backend in self.backends):
            raise FairleadError(f"there is a backend called {settings.label} already")
        backend = Backend(settings, self.ledger, pool or pool_for(settings, self.timeouts))
        self.prefixes.taken_over(backend.row)
        self.homes.taken_over(backend.row)
        self.fit_prefixes(backend)
        backend.discovered = discovered
        self.backends.append(backend)
        self.released()
        return backend

    def find(self, name: str) -> Backend:
        """The backend called `name`.

        Raises:
            FairleadError: if there is none.
        """
        for backend in self.backends:
            if backend.name == name:
                return backend
        known = ", ".join(backend.name for backend in self.backends)
        raise FairleadError(f"there is no backend called {name}; known: {known}")

    def drain(self, backend: Backend, *, remove: bool) -> None:
        """Give `backend` no more requests; forget it when it has finished, if `remove`."""
        backend.draining = True
        backend.leaving = remove
        self.forget_drained(backend)

    def keep(self, backend: Backend) -> None:
        """Give `backend` requests again."""
        backend.draining = backend.leaving = False
        self.released()

    def replace(self, old: Backend, settings: BackendSettings, pool: Pool | None = None) -> Backend:
        """Take up a backend in place of `old`, which finishes what it has, under another name.

        Raises:
            FairleadError: as `add`; then `old` stays.
        """
        pool = pool or pool_for(settings, self.timeouts)
        names = {backend.name for backend in self.backends}
        again = (f"{old.name} (replaced{f' {count}' if count else ''})" for count in range(len(names) + 1))
        old.name = next(name for name in again if name not in names)
        discovered, old.discovered = old.discovered, False
        self.drain(old, remove=True)
        return self.add(settings, discovered=discovered, pool=pool)

    def forget_drained(self, backend: Backend) -> None:
        """Let go of `backend` if it is to leave and has nothing in flight."""
        if backend.leaving and backend.in_flight == 0 and backend in self.backends:
            self.backends.remove(backend)
            backend.pool.close()
            self.ledger.remove(backend.row)
            self.events("backend_removed", backend=backend.name)

    def reload(self, settings: GatewaySettings) -> None:
        """Take over new settings: backends that stay keep their connections and their place in the ledger.

        Raises:
            FairleadError: if the policy, a tokenizer or a certificate cannot be loaded; then nothing has
                changed.
        """
        again = settings.tokens != self.settings.tokens
        there = {backend.name: backend for backend in self.backends}
        pools = {
            each.label: pool_for(each, settings.timeouts)
            for each in settings.backends
            if each.label not in there or there[each.label].settings != each
        }
        routers = load_routers(settings.policy) if settings.policy != self.settings.policy else None
        counter = self._new_counter(settings) if again else None
        # From here on nothing can fail.
        if routers is not None:
            self.decider.install(settings.policy, routers)
        if again:
            self._count_with(counter)
        self._apply(settings)
        wanted = {each.label for each in settings.backends}
        for backend in there.values():
            if backend.name not in wanted and not backend.discovered:
                self.drain(backend, remove=True)
        for each in settings.backends:
            old, pool = there.get(each.label), pools.get(each.label)
            if old is None:
                self.add(each, pool=pool)
                continue
            if pool is not None:
                old = self.replace(old, each, pool)
            elif old.leaving:  # it is wanted again; what was drained by hand stays so
                self.keep(old)
            old.discovered = False
        self.released()

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

    def candidates(self, model: str, excluded: Sequence[Backend] = ()) -> list[Backend]:
        """Backends that may be given a request for `model` now, limits left aside."""
        found = [
            backend
            for backend in self.backends
            if backend.healthy
            and backend.ejected_until == 0.0
            and not backend.draining
            and (not backend.models or not model or model in backend.models)
            and backend not in excluded
        ]
        if not found and model and not any(model in backend.models for backend in self.backends):
            # Nobody is known to serve it: any backend will say so in its own words.
            found = [each for each in self.backends if each.up and each not in excluded]
        return found

    def has_other(self, model: str, excluded: Sequence[Backend]) -> bool:
        """Whether a backend besides `excluded` could take a request for `model` now."""
        return any(each.in_flight < each.limit for each in self.candidates(model, excluded))

    def place(self, exchange: Exchange) -> Backend | None:
        """Choose a backend for `exchange`; None if it has to wait or has been answered with an error."""
        facts = exchange.facts
        assert facts is not None
        now = monotonic()
        found = self.candidates(facts.model, exchange.tried)
        slow = self.settings.health.slow_return_s
        # A list comprehension for each condition costs; mostly none of them holds.
        for each in found:
            if each.in_flight >= each.limit or now - each.returned_at < slow:
                found = self._admitting(found, now)
                break
        if not found:
            if exchange.tried:
                exchange.fail(502, "no other backend is available", "no_backend")
            elif not self.backends:
                exchange.fail(503, "there are no backends", "no_backend", self._retry_after())
            else:
                self._wait(exchange, now)
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

    def remember(self, exchange: Exchange, backend: Backend) -> None:
        """It has been sent to `backend`, which may keep its prompt cached: its conversation is there now."""
        if exchange.keys is not None:
            if backend.reading is None or backend.reading.caches_prefixes:
                self.prefixes.sent(backend.row, exchange.keys, exchange.session)
            else:
                exchange.keys = None
        self.homes.sent(exchange.session, backend.row)

    def let_go(self, exchange: Exchange, backend: Backend, answer: int) -> None:
        """It is not at `backend` any more, where `answer` tokens were generated for it."""
        if exchange.keys is not None:
            assert exchange.facts is not None
            chunks = answer_chunks(exchange.facts, exchange.prompt_estimate, answer)
            self.prefixes.answered(backend.row, exchange.keys, exchange.session, chunks)
            exchange.keys = None

    def _admitting(self, found: list[Backend], now: float) -> list[Backend]:
        """Of these, the backends under their limit; one that has just returned only now and then."""
        free = [backend for backend in found if backend.in_flight < backend.limit]
        slow = self.settings.health.slow_return_s
        offered = [each for each in free if each.share(now, slow) > self._random.random()]
        return offered or free

    # The queue.

    def _wait(self, exchange: Exchange, now: float) -> None:
        if len(self.queue) >= self.settings.queue.max_requests:
            self.queue_refused += 1
            exchange.fail(
                503, "all backends are busy and the queue is full", "queue_full", self._retry_after()
            )
            return
        exchange.waiting = True
        exchange.deadline = now + self.settings.queue.timeout
        self.queue.append(exchange)

    def gave_up_waiting(self, exchange: Exchange) -> None:
        """A request has been in the queue for too long."""
        self.queue.remove(exchange)
        exchange.waiting = False
        self.queue_refused += 1
        exchange.fail(503, "no backend could take the request in time", "queue_timeout", self._retry_after())

    def _retry_after(self) -> tuple[tuple[bytes, bytes], ...]:
        return ((b"Retry-After", b"%d" % self.settings.queue.retry_after),)

    def released(self) -> None:
        """A backend may take more: place requests that wait, first come, first served.

        One that no backend can take now (its model's are full) does not hold up the others.
        """
        if not self.queue or self._releasing or not self._any_free():
            return
        self._releasing = True
        full: set[str] = set()  # models that no backend can take a request for: asked about once
        try:
            for exchange in list(self.queue):
                assert exchange.facts is not None
                model = exchange.facts.model
                if model in full or not exchange.waiting:
                    continue
                if not self.has_other(model, ()):
                    full.add(model)
                    continue
                self.queue.remove(exchange)
                exchange.dispatch_again()
                if not self._any_free():
                    break
        finally:
            self._releasing = False

    def _any_free(self) -> bool:
        return any(each.in_flight < each.limit for each in self.backends)

    # What becomes of them.

    def failed(self, backend: Backend, reason: str) -> None:
        """A request failed by the fault of `backend`."""
        if backend.failed(reason, monotonic(), self.settings.health):
            self.events("backend_ejected", backend=backend.name, reason=reason, ejections=backend.ejections)

    def went_wrong(self, backend: Backend) -> None:
        """`backend` has answered with a server error."""
        others = any(each.up for each in self.backends if each is not backend)
        if backend.went_wrong(monotonic(), self.settings.health, others=others):
            self.events("backend_ejected", backend=backend.name, reason="errors", ejections=backend.ejections)

    def restarted(self, backend: Backend) -> None:
        """Nothing that `backend` was sent is cached or being read there any more; moving averages stay."""
        self.prefixes.forget(backend.row)
        self.ledger.forget_pace(backend.row)

    def fit_prefixes(self, backend: Backend) -> None:
        """Remember of what `backend` was sent in proportion to its KV cache, if its size is known."""
        read = 0 if backend.reading is None else backend.reading.kv_capacity_tokens
        if capacity := backend.settings.kv_capacity_tokens or read:
            own = capacity / self.settings.gateways
            self.prefixes.fit(backend.row, own, self.prompts.bytes_per_token(backend.models))

    def ended(self, exchange: Exchange, backend: Backend | None) -> None:
        """Book an exchange that is over; `backend` is where it was last."""
        self.exchanges.discard(exchange)
        if exchange.waiting:
            exchange.waiting = False
            self.queue.remove(exchange)
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
            return (
                (200, b"application/json", b'{"ready":true}')
                if self.ready
                else (
                    503,
                    b"application/json",
                    b'{"ready":false}',
                )
            )
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
