"""The queue: requests that wait because no backend can take them."""

from collections import deque
from typing import Protocol

from fairlead.serve.backends import Backends
from fairlead.serve.facts import Facts
from fairlead.serve.settings import Queue as Settings


class Waiting(Protocol):
    """A request, as far as the queue knows it."""

    facts: Facts | None
    waiting: bool
    """In the queue, which alone sets it."""
    deadline: float
    """When the sweep ends it (s, monotonic)."""

    def dispatch(self) -> None:
        """A place may have become free for it."""

    def fail(
        self, status: int, message: str, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Answer it with an error."""


class Queue:
    """Requests in the order in which they came."""

    def __init__(self, settings: Settings, backends: Backends) -> None:
        """Nobody waits yet; `backends` are waited for."""
        self.settings = settings
        """Others may be put here while running."""
        self.refused = 0
        """Requests that did not fit in, or waited for too long."""
        self._backends = backends
        self._waiting: deque[Waiting] = deque()
        self._releasing = False

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def wait(self, request: Waiting, now: float) -> None:
        """Let `request` wait for a backend, or refuse it if too many do."""
        if len(self._waiting) >= self.settings.max_requests:
            self.refused += 1
            request.fail(503, "all backends are busy and the queue is full", "queue_full", self.retry_after())
            return
        request.waiting = True
        request.deadline = now + self.settings.timeout
        self._waiting.append(request)

    def leave(self, request: Waiting) -> None:
        """It does not wait any more."""
        self._waiting.remove(request)
        request.waiting = False

    def gave_up(self, request: Waiting) -> None:
        """It has waited for too long."""
        self.leave(request)
        self.refused += 1
        request.fail(503, "no backend could take the request in time", "queue_timeout", self.retry_after())

    def retry_after(self) -> tuple[tuple[bytes, bytes], ...]:
        """What tells a client that is refused when to come again."""
        return ((b"Retry-After", b"%d" % self.settings.retry_after),)

    def released(self) -> None:
        """A backend may take more: place requests that wait, first come, first served.

        One that no backend can take now (its model's are full) does not hold up the others.
        """
        if not self._waiting or self._releasing or not self._backends.any_free():
            return
        self._releasing = True
        full: set[str] = set()  # models that no backend can take a request for: asked about once
        try:
            for request in list(self._waiting):
                assert request.facts is not None
                model = request.facts.model
                if model in full or not request.waiting:
                    continue
                if not self._backends.has_other(model, ()):
                    full.add(model)
                    continue
                self.leave(request)
                request.dispatch()
                if not self._backends.any_free():
                    break
        finally:
            self._releasing = False
