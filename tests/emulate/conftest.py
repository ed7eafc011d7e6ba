"""A clock that stands still until it is told to go on, and a listener that writes down what it hears."""

import heapq
import itertools
from collections.abc import Callable

import pytest


class ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Time passes only in `run_until`, from event to event."""

    def __init__(self) -> None:
        self._now = 0.0
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._count = itertools.count()

    def now(self) -> float:
        return self._now

    def call_at(self, when_s: float, callback: Callable[[], None]) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (when_s, next(self._count), timer))
        return timer

    def run_until(self, end_s: float) -> None:
        while self._timers and self._timers[0][0] <= end_s:
            when_s, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when_s)
            if timer.callback is not None:
                timer.callback()
        if end_s != float("inf"):
            self._now = max(self._now, end_s)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
