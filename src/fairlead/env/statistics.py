"""Numbers about what an environment went through since they were last asked for, by name."""

import numpy as np
import numpy.typing as npt

from fairlead.env.interval import Interval

Floats = npt.NDArray[np.float64]

PERFORMANCE: tuple[str, ...] = (
    "ttft_mean_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "e2e_p90_s",
    "e2e_p95_s",
    "e2e_p99_s",
    "throughput_rps",
    "throughput_tokens_per_s",
    "batch_size",
    "imbalance_std",
)
"""What requests and operators feel, next to the shaped reward. Percentiles are those of requests. Throughputs
are per cluster; `batch_size` is the mean number of running requests of a busy replica, `imbalance_std` the
standard deviation over replicas of requests in flight; both are seen at decisions."""


class Performance:
    """Latencies of completions, throughput, batch sizes and imbalance since the last `take`."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._ttft: list[Floats] = []
        self._tpot: list[Floats] = []
        self._e2e: list[Floats] = []
        self._tokens = self._seconds = self._running = self._spread = 0.0
        self._busy = self._decisions = 0

    def add(self, x: Interval, running: npt.NDArray[np.int64]) -> None:
        """Take in an interval, and the running requests of all replicas at its end."""
        self._ttft.append(x.ttft_s)
        self._tpot.append(x.tpot_s)
        self._e2e.append(x.e2e_s)
        self._tokens += float(x.output_tokens.sum())
        self._seconds += float(x.elapsed_s.sum())
        self._running += float(running.sum())
        self._busy += int(np.count_nonzero(running))
        self._spread += float(x.in_flight.std(1).sum())
        self._decisions += len(x.elapsed_s)

    def take(self) -> dict[str, float]:
        """The numbers so far, which are then forgotten; NaN where nothing completed."""
        ttft, tpot, e2e = (
            np.concatenate(each) if each else np.empty(0) for each in (self._ttft, self._tpot, self._e2e)
        )
        nothing = np.full(1, np.nan)
        ttft, tpot, e2e = (each if len(each) else nothing for each in (ttft, tpot, e2e))
        seconds = max(self._seconds, 1e-12)
        completed = sum(map(len, self._e2e))
        numbers = (
            float(ttft.mean()),
            *(float(p) for p in np.percentile(ttft, (90, 99))),
            float(np.percentile(tpot, 99)),
            float(e2e.mean()),
            *(float(p) for p in np.percentile(e2e, (90, 95, 99))),
            completed / seconds,
            self._tokens / seconds,
            self._running / max(self._busy, 1),
            self._spread / max(self._decisions, 1),
        )
        self.__init__()  # type: ignore[misc]
        return dict(zip(PERFORMANCE, numbers, strict=True))


PER_COMPONENT: tuple[str, ...] = ("raw_mean", "scaled_mean", "scaled_std", "variance_share")


class RewardLog:
    """Means and spreads of a reward's components, raw and scaled, since the last `take`.

    `variance_share` is the variance of the scaled component over the sum of the variances of all: a component
    near one is the whole signal, whatever the others' weights. `saturated` is the share of decisions whose
    total was clipped.
    """

    def __init__(self, components: tuple[str, ...]) -> None:
        """For components of these names."""
        self._components = components
        self._clear()

    def _clear(self) -> None:
        self._raw = np.zeros(len(self._components))
        self._sum, self._squares = np.zeros_like(self._raw), np.zeros_like(self._raw)
        self._count = self._saturated = 0
        self._totals: list[Floats] = []

    def add(self, raw: Floats, scaled: Floats, saturated: npt.NDArray[np.bool_]) -> None:
        """Take in one decision: components (C, K), and whether the total was clipped (K,)."""
        self._raw += raw.sum(1)
        self._sum += scaled.sum(1)
        self._squares += np.square(scaled).sum(1)
        self._count += raw.shape[1]
        self._saturated += int(np.count_nonzero(saturated))
        self._totals.append(scaled.sum(0))

    def totals(self) -> Floats:
        """Totals of all decisions since the last `take`, before any clip, for a histogram."""
        return np.concatenate(self._totals) if self._totals else np.empty(0)

    @staticmethod
    def names(components: tuple[str, ...]) -> tuple[str, ...]:
        """The keys of `take` for components of these names."""
        return (*(f"{c}/{each}" for c in components for each in PER_COMPONENT), "saturated")

    def take(self) -> dict[str, float]:
        """The numbers so far, which are then forgotten."""
        count = max(self._count, 1)
        mean = self._sum / count
        variance = np.maximum(self._squares / count - mean**2, 0.0)
        shares = variance / max(float(variance.sum()), 1e-300)
        rows = zip(self._raw / count, mean, np.sqrt(variance), shares, strict=True)
        numbers = [float(number) for row in rows for number in row]
        numbers.append(self._saturated / count)
        self._clear()
        return dict(zip(self.names(self._components), numbers, strict=True))
