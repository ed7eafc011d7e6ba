"""Who gets a request: the policy over the view, its fallback, and a shadow that only watches.

A policy runs inside the event loop (one decision takes tens of microseconds). It cannot be interrupted, so
the deadline is checked when it returns: a decision that came too late counts as failed like one that raised.
"""

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.policy import forward
from fairlead.policy.catalogue import find_router
from fairlead.policy.router import Router
from fairlead.serve.backend import Histogram
from fairlead.serve.settings import Policy
from fairlead.view.features import features_batch
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View

DECISION_BUCKETS = (
    0.00001,
    0.000025,
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.05,
    0.1,
)
FAIL = "fail"


class PolicyFailed(Exception):
    """The policy gave no usable decision, and the configuration says to refuse the request then."""


class Choice(NamedTuple):
    """The outcome of a decision."""

    row: int
    """The chosen row of the view."""
    by: str
    """The name of the router that decided."""
    seconds: float
    """How long it took."""


def gateway_router(text: str, favor: float, seed: int) -> Router:
    """The router called `text`, ready to decide for one cluster.

    Raises:
        FairleadError: for an unknown name, an unusable policy file, and for `lookahead`, which needs more
        than the view.
    """
    entry = find_router(text, favor)
    if not isinstance(entry.router, Router):
        raise FairleadError(f"{entry.name} needs a simulator beside the view: it cannot serve live traffic")
    router = entry.router
    router.reset(1, 1, seed)
    _warm(router)
    router.reset(1, 1, seed)
    return router


def _warm(router: Router) -> None:
    """Compile and allocate before the first request comes, for a few numbers of backends."""
    for count in (1, 2, 4):
        router.route(View(np.ones((1, count, NUM_REPLICA_COLUMNS)), np.ones((1, NUM_REQUEST_COLUMNS))))


def warm_learned() -> None:
    """Compile what trained policies are run by: one that is switched to in traffic must not halt it."""
    features_batch(View(np.ones((1, 1, NUM_REPLICA_COLUMNS)), np.ones((1, NUM_REQUEST_COLUMNS))), 0.5)
    weights = np.zeros(9, np.float32)  # 1 feature -> 2 -> 1 -> 1, with biases
    smallest = forward.Actor(weights, np.ones(1, np.float32), 0, 2, 1, False, 0, 0, 1, -1)
    forward.logits(smallest, np.ones((1, 1, 1), np.float32))
    forward.best_by_parts(*forward.parts(smallest), np.ones((1, 1, 1), np.float32))


class Room(NamedTuple):
    """A view to be written into, and its parts."""

    view: View
    replicas: npt.NDArray[np.float64]
    """(R, columns)."""
    request: Any
    """(columns,) memory of the request's columns: single numbers are written faster through it."""


class Routers(NamedTuple):
    """What decides, what stands in for it, what only watches."""

    router: Router
    fallback: Router | None
    shadow: Router | None


def load_routers(settings: Policy) -> Routers:
    """The routers that `settings` name.

    Raises:
        FairleadError: as `gateway_router`.
    """
    return Routers(
        gateway_router(settings.router, settings.favor, settings.seed),
        None
        if settings.on_policy_error == FAIL
        else gateway_router(settings.on_policy_error, settings.favor, settings.seed),
        gateway_router(settings.shadow, settings.shadow_favor, settings.seed) if settings.shadow else None,
    )


class Decider:
    """Decides with the policy in force; can be given another one while running."""

    def __init__(self, settings: Policy) -> None:
        """Load what `settings` name.

        Raises:
            FairleadError: as `gateway_router`.
        """
        self.decisions: dict[str, int] = {}
        """By the router that decided."""
        self.errors: dict[str, int] = {}
        """Failed decisions by reason: `error`, `deadline`."""
        self.seconds = Histogram(DECISION_BUCKETS)
        self.shadow_decisions = 0
        self.shadow_agreed = 0
        self.shadow_errors = 0
        self._rooms: dict[int, Room] = {}
        warm_learned()
        self.replace(settings)

    def replace(self, settings: Policy) -> None:
        """Decide by `settings` from now on; on an error everything stays as it was.

        Raises:
            FairleadError: as `gateway_router`.
        """
        self.install(settings, load_routers(settings))

    def install(self, settings: Policy, routers: Routers) -> None:
        """Decide by `settings` from now on, with `routers` loaded for them (in a thread, say)."""
        self.settings = settings
        self.router, self.fallback, self.shadow = routers
        self.rests_until = 0.0
        """The policy is not asked before this time (s, monotonic): the fallback decides."""
        self.last_error = ""

    def room(self, count: int) -> Room:
        """Room for a view of `count` backends, used again for every decision."""
        room = self._rooms.get(count)
        if room is None:
            view = View(np.zeros((1, count, NUM_REPLICA_COLUMNS)), np.zeros((1, NUM_REQUEST_COLUMNS)))
            room = self._rooms[count] = Room(view, view.replicas[0], view.request[0].data)
        return room

    def choose(self, view: View, now: float) -> Choice:
        """The choice for a view of one cluster.

        Raises:
            PolicyFailed: if the policy fails and `on_policy_error` is `fail`.
        """
        count = view.replicas.shape[1]
        began = perf_counter()
        if now >= self.rests_until:
            try:
                index = int(self.router.route(view)[0])
                if not 0 <= index < count:
                    raise IndexError(f"it chose backend {index} of {count}")
                took = perf_counter() - began
                if took <= self.settings.deadline:
                    return self._decided(index, self.router.name, took)
                self._failed("deadline", f"a decision took {took * 1000:.1f} ms", now)
            except Exception as error:  # whatever a policy raises, the configured behaviour follows, counted
                self._failed("error", f"{type(error).__name__}: {error}", now)
        if self.fallback is None:
            raise PolicyFailed(self.last_error)
        index = int(self.fallback.route(view)[0])
        return self._decided(index, self.fallback.name, perf_counter() - began)

    def compare(self, view: View) -> int:
        """What the shadow would have chosen, -1 if it failed; nothing is done with it."""
        assert self.shadow is not None
        self.shadow_decisions += 1
        try:
            choices: npt.NDArray[np.int64] = self.shadow.route(view)
            return int(choices[0])
        except Exception:  # a shadow must not be able to do harm; its errors are counted
            self.shadow_errors += 1
            return -1

    def _decided(self, index: int, by: str, took: float) -> Choice:
        self.decisions[by] = self.decisions.get(by, 0) + 1
        self.seconds.observe(took)
        return Choice(index, by, took)

    def _failed(self, reason: str, text: str, now: float) -> None:
        self.errors[reason] = self.errors.get(reason, 0) + 1
        self.last_error = text
        if self.fallback is not None:
            self.rests_until = now + self.settings.rest
