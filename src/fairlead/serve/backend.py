"""One backend: where it is, whether it can be used, and what has been counted about it."""

import asyncio
from typing import Any, Literal

from fairlead.serve.ledger import UNKNOWN_KV_CAPACITY, Ledger
from fairlead.serve.scraping import Reading
from fairlead.serve.settings import BackendSettings, Health, Timeouts
from fairlead.serve.upstream import Pool

State = Literal["up", "unhealthy", "ejected", "draining"]

# Upper bounds of the histograms, s: those of vLLM's own, shortened.
TTFT_BUCKETS = (
    0.005,
    0.01,
    0.02,
    0.04,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
)
ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0, 2.5)
E2E_BUCKETS = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
    120.0,
    240.0,
)


class Histogram:
    """Counts in buckets, as Prometheus has them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: upper ends, ascending; one more bucket takes the rest."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.total += value
        i = 0
        for bound in self.bounds:  # most values are small: faster than bisection
            if value <= bound:
                break
            i += 1
        self.counts[i] += 1


def pool_for(settings: BackendSettings, timeouts: Timeouts) -> Pool:
    """Connections to the backend that `settings` describe.

    Raises:
        FairleadError: if its certificates cannot be used.
    """
    return Pool(settings.url, timeouts.connect, timeouts.pool_idle, settings.ca)


class Backend:
    """One server behind the gateway."""

    def __init__(self, settings: BackendSettings, ledger: Ledger, pool: Pool) -> None:
        """Known from now on, taken to be healthy until it shows otherwise; `pool` is of `pool_for`."""
        self.settings = settings
        self.name = settings.label
        self.pool = pool
        self.watchers: list[asyncio.Task[None]] = []
        """What looks at it from time to time; ended with it."""
        rest = settings.url.partition("://")[2]
        authority, slash, path = rest.partition("/")
        self.authority = authority.encode()
        self.prefix = (slash + path).encode() if path else b""
        """Put before the target of every request."""
        self.authorization = f"Bearer {settings.api_key}".encode() if settings.api_key else b""
        self.models: frozenset[str] = frozenset(settings.models)
        """Empty: not known, so it is taken to serve all."""
        self.row = ledger.add(
            speed=settings.speed,
            prefill_tokens_per_s=settings.prefill_tokens_per_s,
            decode_iteration_s=settings.decode_iteration_s,
            kv_capacity_tokens=settings.kv_capacity_tokens or UNKNOWN_KV_CAPACITY,
            max_num_seqs=settings.max_num_seqs,
        )
        self.limit = settings.max_in_flight or 2**31
        self.in_flight = 0
        self.healthy = True
        self.draining = False
        """Given no more requests."""
        self.leaving = False
        """Forgotten once it has finished those it has."""
        self.discovered = False
        """Found by name, not listed in the settings."""
        self.model_cards: list[dict[str, Any]] = []
        """What its `/v1/models` listed last."""
        self.models_due = 0.0
        """When they are to be read again (s, monotonic)."""
        self.reading: Reading | None = None
        """The last reading of its metrics."""
        self.ejected_until = 0.0
        """Not used before this time (s, monotonic) because requests failed."""
        self.returned_at = float("-inf")
        """When it came back (s, monotonic)."""
        self.failures = 0
        """Failed requests since the last good one."""
        self.server_errors = 0
        """Answers that say that something is wrong with it, since the last other one."""
        self.failed_checks = 0
        """Failed health checks since the last good one."""
        self.ejections_in_row = 0
        # Counted since the start, for /metrics.
        self.requests = 0
        self.answers: dict[int, int] = {}
        self.errors: dict[str, int] = {}
        self.cancelled = 0
        self.ejections = 0
        self.retries = 0
        self.scrape_errors = 0
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ttft = Histogram(TTFT_BUCKETS)
        self.itl = Histogram(ITL_BUCKETS)
        self.e2e = Histogram(E2E_BUCKETS)

    def close(self) -> None:
        """It is gone: from now on nothing is sent to it, and nothing heard of it."""
        for task in self.watchers:
            task.cancel()
        self.pool.close()

    @property
    def state(self) -> State:
        """`up` or why not."""
        if self.draining:
            return "draining"
        if not self.healthy:
            return "unhealthy"
        return "ejected" if self.ejected_until > 0.0 else "up"

    @property
    def up(self) -> bool:
        """Whether it may be given requests (a limit aside)."""
        return self.healthy and not self.draining and self.ejected_until == 0.0

    def succeeded(self) -> None:
        """A request was answered."""
        self.failures = self.server_errors = 0
        if self.ejections_in_row:
            self.ejections_in_row = 0

    def went_wrong(self, now: float, health: Health, *, others: bool) -> bool:
        """It has answered with a server error; whether that took it out, which needs `others` that are up."""
        self.server_errors += 1
        if not health.eject_after_errors or self.server_errors < health.eject_after_errors or not others:
            return False
        return self._eject(now, health)

    def failed(self, reason: str, now: float, health: Health) -> bool:
        """A request failed by the backend's fault; whether that took it out."""
        self.errors[reason] = self.errors.get(reason, 0) + 1
        self.failures += 1
        return self.failures >= health.eject_after and self._eject(now, health)

    def _eject(self, now: float, health: Health) -> bool:
        if self.ejected_until > 0.0:
            return False
        wait = min(health.eject_s * 2.0**self.ejections_in_row, health.max_eject_s)
        self.ejected_until = now + wait
        self.ejections_in_row = min(self.ejections_in_row + 1, 30)
        self.ejections += 1
        return True

    def checked(self, good: bool, now: float, health: Health) -> bool:
        """The outcome of a health check; whether that changed anything. No counter of requests does."""
        before = self.healthy
        if good:
            self.failed_checks = 0
            if not self.healthy:
                self.healthy = True
                self.returned_at = now
        else:
            self.failed_checks += 1
            if self.failed_checks >= health.fail_after:
                self.healthy = False
        return self.healthy is not before

    def sweep(self, now: float) -> bool:
        """Let time pass; whether it has come back from an ejection."""
        self.pool.sweep(now)
        if 0.0 < self.ejected_until <= now:
            self.ejected_until = 0.0
            self.failures = self.server_errors = 0
            self.returned_at = now
            return True
        return False

    def share(self, now: float, slow_return_s: float) -> float:
        """The share of decisions that it is offered: 1, or less for a while after it has come back."""
        since = now - self.returned_at
        return 1.0 if since >= slow_return_s else max(0.1, since / slow_return_s)
