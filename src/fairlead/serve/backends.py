"""The backends that there are: they come and go, fail and return, and some of them may be given a request."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.serve.backend import Backend, pool_for
from fairlead.serve.homes import Homes
from fairlead.serve.ledger import Ledger
from fairlead.serve.logs import EventLog
from fairlead.serve.prefixes import Prefixes
from fairlead.serve.settings import BackendSettings, GatewaySettings
from fairlead.serve.tokens import PromptEstimate
from fairlead.serve.upstream import Pool


class Backends:
    """All of them, in the order in which they came, and those that leave until they have finished."""

    def __init__(
        self,
        settings: GatewaySettings,
        ledger: Ledger,
        prefixes: Prefixes,
        homes: Homes,
        prompts: PromptEstimate,
        events: EventLog,
        released: Callable[[], None],
    ) -> None:
        """None yet, those in the settings included: `add` takes them up.

        Args:
            settings: of the gateway, until `apply`.
            ledger: has a row for each.
            prefixes: what each may have cached, by these rows.
            homes: whose conversations are where, by these rows.
            prompts: how large tokens are.
            events: where what happens is written down.
            released: called when one of them may take a request that none could take before.
        """
        self._settings = settings
        self._ledger = ledger
        self._prefixes = prefixes
        self._homes = homes
        self._prompts = prompts
        self._events = events
        self._released = released
        self._all: list[Backend] = []
        self._random = rng.stream(settings.policy.seed, "gateway", "slow return")

    def __iter__(self) -> Iterator[Backend]:
        """Each of them."""
        return iter(self._all)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._all)

    def find(self, name: str) -> Backend:
        """The backend called `name`.

        Raises:
            FairleadError: if there is none.
        """
        for backend in self._all:
            if backend.name == name:
                return backend
        known = ", ".join(backend.name for backend in self._all)
        raise FairleadError(f"there is no backend called {name}; known: {known}")

    # They come and go.

    def add(
        self, settings: BackendSettings, *, discovered: bool = False, pool: Pool | None = None
    ) -> Backend:
        """Take up a backend; one that was `discovered` stays when the settings are read again.

        Raises:
            FairleadError: if one of this name is there already, or its certificates cannot be used (unless
                they are in a `pool` already).
        """
        if any(backend.name == settings.label for backend in self._all):
            raise FairleadError(f"there is a backend called {settings.label} already")
        backend = Backend(settings, self._ledger, pool or pool_for(settings, self._settings.timeouts))
        self._prefixes.taken_over(backend.row)
        self._homes.taken_over(backend.row)
        self.fit_prefixes(backend)
        backend.discovered = discovered
        self._all.append(backend)
        self._released()
        return backend

    def drain(self, backend: Backend, *, remove: bool) -> None:
        """Give `backend` no more requests; forget it when it has finished, if `remove`."""
        backend.draining = True
        backend.leaving = remove
        self._forget_drained(backend)
        if remove:  # nobody may be known to serve its models now: then any will do
            self._released()

    def keep(self, backend: Backend) -> None:
        """Give `backend` requests again."""
        backend.draining = backend.leaving = False
        self._released()

    def replace(self, old: Backend, settings: BackendSettings, pool: Pool | None = None) -> Backend:
        """Take up a backend in place of `old`, which finishes what it has, under another name.

        Raises:
            FairleadError: as `add`; then `old` stays.
        """
        name, names = old.name, {backend.name for backend in self._all}
        again = (f"{name} (replaced{f' {count}' if count else ''})" for count in range(len(names) + 1))
        old.name = next(each for each in again if each not in names)  # the new one may have its name
        try:
            new = self.add(settings, discovered=old.discovered, pool=pool)
        except FairleadError:
            old.name = name
            raise
        old.discovered = False
        self.drain(old, remove=True)
        return new

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Several come and go: who waits is told when all of them have.

        Else a request could be sent to any backend, for want of one that serves its model and comes next.
        """
        released, self._released = self._released, lambda: None
        try:
            yield
        finally:
            self._released = released
            released()

    def _forget_drained(self, backend: Backend) -> None:
        """Let go of `backend` if it is to leave and has nothing in flight."""
        if backend.leaving and backend.in_flight == 0 and backend in self._all:
            self._all.remove(backend)
            backend.close()
            self._ledger.remove(backend.row)  # another may have it from now on
            self._events("backend_removed", backend=backend.name)

    # The settings are read again.

    def new_pools(self, settings: GatewaySettings) -> dict[str, Pool]:
        """Connections to the backends that `settings` list and that are new or described anew, by name.

        Raises:
            FairleadError: if a certificate cannot be used.
        """
        there = {backend.name: backend for backend in self._all}
        return {
            each.label: pool_for(each, settings.timeouts)
            for each in settings.backends
            if each.label not in there or there[each.label].settings != each
        }

    def apply(self, settings: GatewaySettings) -> None:
        """Go by other settings, those of the backends themselves aside."""
        self._settings = settings
        for backend in self._all:
            backend.pool.connect_timeout = settings.timeouts.connect
            backend.pool.idle_timeout = settings.timeouts.pool_idle

    def follow(self, listed: Sequence[BackendSettings], pools: dict[str, Pool]) -> None:
        """Have those that are `listed` now, besides those that were discovered; `pools` are of `new_pools`.

        Those that stay keep their connections and their place in the ledger.
        """
        there = {backend.name: backend for backend in self._all}
        wanted = {each.label for each in listed}
        with self.at_once():
            for backend in there.values():
                if backend.name not in wanted and not backend.discovered:
                    self.drain(backend, remove=True)
            # What is new first: one that is replaced gets a name that nobody has.
            for each in sorted(listed, key=lambda each: each.label in there):
                old, pool = there.get(each.label), pools.get(each.label)
                if old is None:
                    self.add(each, pool=pool)
                    continue
                if pool is not None:
                    old = self.replace(old, each, pool)
                elif old.leaving:  # it is wanted again; what was drained by hand stays so
                    self.keep(old)
                old.discovered = False

    # Who may be given a request.

    def candidates(self, model: str, excluded: Sequence[Backend] = ()) -> list[Backend]:
        """Backends that may be given a request for `model` now, limits left aside."""
        found = [
            backend
            for backend in self._all
            if backend.healthy
            and backend.ejected_until == 0.0
            and not backend.draining
            and (not backend.models or not model or model in backend.models)
            and backend not in excluded
        ]
        if not found and model and not any(model in each.models and not each.leaving for each in self._all):
            # Nobody is known to serve it: any backend will say so in its own words. One that is only drained
            # counts, as one that is ejected does: it comes back, and is worth waiting for. One that leaves
            # takes the model with it, however long it still works on what it has.
            found = [each for each in self._all if each.up and each not in excluded]
        return found

    def admitting(self, found: list[Backend], now: float) -> list[Backend]:
        """Of these, the backends under their limit; one that has just returned only now and then."""
        free = [backend for backend in found if backend.in_flight < backend.limit]
        slow = self._settings.health.slow_return_s
        offered = [each for each in free if each.share(now, slow) > self._random.random()]
        return offered or free

    def has_other(self, model: str, excluded: Sequence[Backend]) -> bool:
        """Whether a backend besides `excluded` could take a request for `model` now."""
        return any(each.in_flight < each.limit for each in self.candidates(model, excluded))

    def any_free(self) -> bool:
        """Whether one of them is under its limit, whatever else holds of it."""
        return any(each.in_flight < each.limit for each in self._all)

    # What is heard of them.

    def failed(self, backend: Backend, reason: str) -> None:
        """A request failed by the fault of `backend`."""
        if backend.failed(reason, monotonic(), self._settings.health):
            self._events("backend_ejected", backend=backend.name, reason=reason, ejections=backend.ejections)

    def went_wrong(self, backend: Backend) -> None:
        """`backend` has answered with a server error, which is passed on."""
        others = any(each.up for each in self._all if each is not backend)
        if backend.went_wrong(monotonic(), self._settings.health, others=others):
            self._events(
                "backend_ejected", backend=backend.name, reason="errors", ejections=backend.ejections
            )

    def restarted(self, backend: Backend) -> None:
        """Nothing that `backend` was sent is cached or being read there any more; moving averages stay."""
        self._prefixes.forget(backend.row)
        self._ledger.forget_pace(backend.row)

    def listed(self, backend: Backend, cards: list[dict[str, Any]]) -> None:
        """`backend` has told its models, each with an `id`; those that it was declared to serve stand."""
        backend.model_cards = cards
        models = frozenset(card["id"] for card in cards)
        if not backend.settings.models and backend.models != models:
            backend.models = models
            self._released()

    def fit_prefixes(self, backend: Backend) -> None:
        """Remember of what `backend` was sent in proportion to its KV cache, if its size is known."""
        read = 0 if backend.reading is None else backend.reading.kv_capacity_tokens
        if capacity := backend.settings.kv_capacity_tokens or read:
            own = capacity / self._settings.gateways
            self._prefixes.fit(backend.row, own, self._prompts.bytes_per_token(backend.models))

    def sweep(self, now: float) -> None:
        """Let time pass: some have finished and are forgotten, some come back from an ejection."""
        for backend in list(self._all):
            self._forget_drained(backend)
            if backend.sweep(now):
                self._events("backend_returned", backend=backend.name)
                self._released()
