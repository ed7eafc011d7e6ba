"""Where the time goes: a stopwatch per phase, always on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

PHASES = ("simulate", "forward", "copy", "learn", "teacher", "evaluate", "checkpoint")


class Profiler:
    """Seconds by phase. A phase inside another counts for itself only."""

    def __init__(self) -> None:
        """All clocks at zero."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase: str | None = None
        self._since = 0.0

    def _switch(self, phase: str | None) -> None:
        now = time.perf_counter()
        if self._phase is not None:
            self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside as that of `name`, one of `PHASES`."""
        if name not in self.seconds:
            raise ValueError(f"unknown phase {name!r}; the phases are {', '.join(PHASES)}")
        outer = self._phase
        self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    @property
    def total(self) -> float:
        """Seconds in all phases."""
        return sum(self.seconds.values())

    def shares(self) -> dict[str, float]:
        """Each phase's share of the total, largest first, without the empty ones."""
        total = self.total or 1.0
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        return {phase: seconds / total for phase, seconds in ordered if seconds > 0}

    def summary(self) -> str:
        """One line, e.g. `learn 61 % (12.3 s), forward 20 % (4.0 s)`."""
        parts = (f"{p} {100 * share:.0f} % ({self.seconds[p]:.1f} s)" for p, share in self.shares().items())
        return ", ".join(parts)
