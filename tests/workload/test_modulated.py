"""Laws of arrivals whose rate changes over seconds; tolerances are about five standard errors."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from fairlead.workload.arrivals import Arrivals
from fairlead.workload.modulated import Diurnal, FlashCrowd, MarkovModulated, MarkovState

Modulated = MarkovModulated | Diurnal | FlashCrowd

TWO_STATES = MarkovModulated(states=(MarkovState(rate=1, mean_s=6), MarkovState(rate=5, mean_s=2)))
THREE_STATES = MarkovModulated(
    states=(
        MarkovState(rate=0, mean_s=3),
        MarkovState(rate=2, mean_s=5),
        MarkovState(rate=7, mean_s=1.5),
    )
)
CROWDS = FlashCrowd(multiplier=4, duration_s=5, every_s=40)
DAY = Diurnal(period_s=300, amplitude=0.6)
ALL: tuple[Modulated, ...] = (TWO_STATES, THREE_STATES, CROWDS, DAY)


def kind(arrivals: Any) -> str:
    return f"{arrivals.kind}-{len(getattr(arrivals, 'states', ()))}"


def counts(
    arrivals: Modulated, rate: float, window_s: float, span_s: float = 300.0, runs: int = 60
) -> npt.NDArray[np.int64]:
    """Arrivals in windows of that length, (runs, windows), in runs of `span_s` seconds."""
    found = []
    for seed in range(runs):
        # Four times as many as should come: none of the processes is ever that much busier than its mean.
        times = arrivals.times(int(4 * rate * span_s), rate, seed, "train")
        assert times[-1] > span_s
        found.append(np.histogram(times, np.arange(0, span_s + 1e-9, window_s))[0])
    return np.array(found)


def within(values: npt.NDArray[np.float64], expected: float) -> bool:
    """Whether the mean of independent values is within five standard errors of what is expected."""
    return bool(abs(values.mean() - expected) < 5 * values.std(ddof=1) / len(values) ** 0.5)


@pytest.mark.parametrize("arrivals", ALL, ids=kind)
@pytest.mark.parametrize("rate", [2.0, 20.0])
def test_the_mean_rate_is_the_one_asked_for_from_the_first_second_on(arrivals: Modulated, rate: float):
    """Stationary: the first windows are like the others (over seeds; a day has its phase)."""
    seen = counts(arrivals, rate, 5.0) / 5.0
    assert within(seen.mean(axis=1), rate)
    assert within(seen[:, 0], rate)


@pytest.mark.parametrize("arrivals", ALL, ids=kind)
def test_pitfall_03_a_higher_rate_really_brings_more_requests_in_the_same_weather(arrivals: Modulated):
    """Twice the rate: half the time for as many requests, and twice as many in the same bursts."""
    light, heavy = arrivals.times(4000, 10, 3, "train"), arrivals.times(8000, 20, 3, "train")
    np.testing.assert_allclose(arrivals.times(8000, 10, 3, "train")[:4000], light)
    span = min(light[-1], heavy[-1])
    windows = np.arange(0, span, 5.0)
    few, many = np.histogram(light, windows)[0], np.histogram(heavy, windows)[0]
    assert many.sum() / few.sum() == pytest.approx(2, rel=0.1)
    assert np.corrcoef(few, many)[0, 1] > 0.6


@pytest.mark.parametrize("arrivals", ALL, ids=kind)
def test_pitfall_04_splits_and_seeds_never_share_an_arrival(arrivals: Modulated):
    runs = [arrivals.times(500, 10, seed, split) for seed in range(3) for split in ("train", "evaluate")]
    for index, left in enumerate(runs):
        for right in runs[:index]:
            assert not np.intersect1d(left, right).size


@settings(max_examples=30, deadline=None)
@given(
    arrivals=st.sampled_from(ALL),
    count=st.integers(1, 200),
    rate=st.floats(1e-3, 1e4),
    seed=st.integers(0, 2**40),
)
def test_times_are_finite_and_sorted_and_more_requests_continue_the_run(
    arrivals: Modulated, count: int, rate: float, seed: int
):
    times = arrivals.times(count, rate, seed, "train")
    assert times.shape == (count,)
    assert np.isfinite(times).all() and (times >= 0).all() and (np.diff(times) >= 0).all()
    np.testing.assert_array_equal(arrivals.times(count + 7, rate, seed, "train")[:count], times)


@pytest.mark.parametrize("window_s", [1.0, 4.0, 15.0])
def test_the_variance_of_two_states_is_that_of_the_cookbook(window_s: float):
    """Index of dispersion of the counts in a window, Fischer and Meier-Hellstern (1993), equation 23."""
    rate, r1, r2 = 12.0, 1 / 6, 1 / 2
    # Shares 3/4 and 1/4, relative rates 1 and 5: a mean of 2.
    l1, l2 = rate * 1 / 2, rate * 5 / 2
    turnover = r1 + r2
    burst = 2 * (l1 - l2) ** 2 * r1 * r2 / (turnover**2 * (l1 * r2 + l2 * r1))
    expected = 1 + burst * (1 - (1 - np.exp(-turnover * window_s)) / (turnover * window_s))
    variances = ((counts(TWO_STATES, rate, window_s) - rate * window_s) ** 2).mean(axis=1)
    assert within(variances / (rate * window_s), expected)


@pytest.mark.parametrize("window_s", [5.0, 50.0])
def test_the_variance_of_a_day_is_that_of_its_sine(window_s: float):
    """a sin(omega t + phase), over a window w, has variance (2 a / omega sin(omega w / 2))^2 / 2."""
    rate, omega = 20.0, 2 * np.pi / DAY.period_s
    swing = rate * DAY.amplitude * 2 / omega * np.sin(omega * window_s / 2)
    variances = ((counts(DAY, rate, window_s) - rate * window_s) ** 2).mean(axis=1)
    assert within(variances, rate * window_s + swing**2 / 2)


def test_three_states_rule_for_their_shares_and_are_silent_where_the_rate_is_zero():
    """Long gaps come from the silent state only: they are as frequent as its visits."""
    rate = 1000.0
    times = np.concatenate([THREE_STATES.times(50_000, rate, seed, "train") for seed in range(10)])
    silent = np.diff(times)[np.diff(times) > 0.2]
    # Exponential with mean 3 s beyond the cut, by the lack of memory.
    assert within(silent, 3.2)


def test_crowds_exceed_the_usual_rate_by_the_multiplier_and_last_as_long_as_they_should():
    rate = 400.0
    calm, crowd = CROWDS.factors
    assert crowd == pytest.approx(4 * calm)
    assert calm * 35 / 40 + crowd * 5 / 40 == pytest.approx(1)
    busy = counts(CROWDS, rate, 0.25, span_s=100.0, runs=40) > 0.25 * rate * (calm + crowd) / 2
    assert within(busy.mean(axis=1), 5 / 40)
    # The busiest 4.5 seconds lie within a crowd.
    times = CROWDS.times(20_000, rate, 1, "train")
    starts = np.searchsorted(times, times + 4.5) - np.arange(len(times))
    assert starts.max() == pytest.approx(4.5 * crowd * rate, rel=0.05)


def test_the_day_has_its_peak_its_trough_and_a_phase_of_its_own_for_each_seed():
    rate = 100.0
    phases = []
    for seed in range(12):
        times = DAY.times(30_000, rate, seed, "train")
        angle = 2 * np.pi * times / DAY.period_s
        # The first Fourier coefficient of a rate 1 + a sin(wt + phase) is a/2 at the angle phase - pi/2.
        first = np.exp(1j * angle).mean().conjugate()
        assert abs(first) == pytest.approx(DAY.amplitude / 2, abs=5 / 30_000**0.5)
        phases.append(np.angle(first))
    assert np.std(phases) > 0.5
    seen = np.histogram(times, np.linspace(0, 300, 31))[0] / 10 / rate
    assert seen.max() == pytest.approx(1.6, abs=0.15)
    assert seen.min() == pytest.approx(0.4, abs=0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "mmpp", "states": [{"rate": 1, "mean_s": 2}]}, "needs at least 2"),
        ({"kind": "mmpp", "states": [{"rate": 0, "mean_s": 2}] * 2}, "nobody would ever arrive"),
        ({"kind": "mmpp", "states": [{"rate": -1, "mean_s": 2}] * 2}, "greater than or equal to 0"),
        ({"kind": "mmpp", "states": [{"rate": 1, "mean": 2}] * 2}, "did you mean mean_s"),
        ({"kind": "flash_crowd", "multiplier": 1, "duration_s": 1, "every_s": 9}, "greater than 1"),
        ({"kind": "flash_crowd", "multiplier": 3, "duration_s": 9, "every_s": 9}, "no time between crowds"),
        ({"kind": "flash_crowd", "multiplier": 3, "duration_s": 0, "every_s": 9}, "greater than or equal to"),
        ({"kind": "diurnal", "amplitude": 1}, "less than 1"),
        ({"kind": "diurnal", "amplitude": 0.5, "period_s": float("nan")}, "finite number"),
    ],
)
def test_bad_settings_are_refused(content: dict[str, Any], message: str):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Arrivals).validate_python(content)
