"""The time of the emulated engines, which may run faster than that of the wall."""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that will be called."""

    def cancel(self) -> object:
        """It will not."""
        ...


class Clock(Protocol):
    """Seconds of the engines' time since the start."""

    def now(self) -> float:
        """The time, s; it never goes back."""
        ...

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` once, not before `when_s`."""
        ...


class LoopClock:
    """The wall's clock, `speed` times as fast, with the timers of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, speed: float = 1.0) -> None:
        """It is 0 s now."""
        self._loop = loop
        self._speed = speed
        self._start = time.perf_counter()

    def now(self) -> float:
        """The time, s."""
        return (time.perf_counter() - self._start) * self._speed

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` at `when_s` or up to a millisecond later.

        The loop counts whole milliseconds. Rounding up costs half of one on average; a timer that fires
        early would be set again and again until the time has come.
        """
        delay_s = when_s / self._speed - (time.perf_counter() - self._start)
        return self._loop.call_later(max(0.0, math.ceil(delay_s * 1000.0) / 1000.0), callback)
