"""Metrics against closed forms and against slow, obvious loops."""

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.simulator.metrics import (
    METRICS,
    arrival_imbalance,
    measured_window,
    meets_slo,
    summarise,
    worst_mean_s,
)
from fairlead.simulator.outcomes import Outcomes


def steady(requests: int, *, rate: float = 2.0, replicas: int = 2) -> Outcomes:
    """Evenly spaced requests, round robin, TTFT 0.25 s, 10 more tokens of 0.1 s each."""
    arrival = np.arange(requests) / rate
    return Outcomes(
        arrival_s=arrival,
        prompt_tokens=np.full(requests, 100),
        output_tokens=np.full(requests, 11),
        replica=np.arange(requests) % replicas,
        first_token_s=arrival + 0.25,
        finish_s=arrival + 1.25,
        preemptions=np.zeros(requests, dtype=np.int64),
        num_replicas=replicas,
    )


def with_ttft(ttft_s: np.ndarray) -> Outcomes:
    """One-token requests, one a second, with the given times to first token."""
    arrival = np.arange(len(ttft_s), dtype=np.float64)
    ones = np.ones(len(ttft_s), dtype=np.int64)
    end = arrival + ttft_s
    return Outcomes(arrival, ones, ones, 0 * ones, end, end, 0 * ones, 1)


def test_closed_form_of_a_steady_run() -> None:
    summary = summarise(steady(100), slo_ttft_s=1.0, slo_tpot_s=0.11)
    assert tuple(summary) == METRICS
    for name in ("ttft_mean_s", "ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "ttft_worst_mean_s"):
        assert summary[name] == pytest.approx(0.25)
    for name in ("e2e_mean_s", "e2e_p50_s", "e2e_p90_s", "e2e_p99_s"):
        assert summary[name] == pytest.approx(1.25)
    assert summary["tpot_mean_s"] == pytest.approx(0.1)
    assert summary["tpot_p99_s"] == pytest.approx(0.1)
    # In a stable cluster as many requests leave as arrive.
    assert summary["throughput_rps"] == pytest.approx(2.0, abs=0.05)
    assert summary["goodput_rps"] == summary["throughput_rps"]
    # An arrival finds the two requests before it, one on each replica (the third before it left 0.25 s ago).
    assert summary["imbalance"] == pytest.approx(0.0, abs=1e-12)


def test_the_scheduling_delay_is_the_time_to_the_first_batch_not_to_the_first_token() -> None:
    outcomes = steady(100)
    assert summarise(outcomes, 1.0, 0.11)["scheduling_delay_p99_s"] == 0.0  # not recorded
    late = np.where(np.arange(100) % 20 == 0, 0.2, 0.05)
    recorded = replace(outcomes, scheduled_s=outcomes.arrival_s + late)
    assert summarise(recorded, 1.0, 0.11)["scheduling_delay_p99_s"] == pytest.approx(0.2)


def test_pitfall_24_percentiles_are_of_requests() -> None:
    ttft = np.full(1000, 0.1)
    ttft[::50] = 0.9  # 2 % of the requests are slow: p99 sees them, p99 of a running mean could not
    outcomes = with_ttft(ttft)
    summary = summarise(outcomes, 1.0, 0.05)
    assert summary["ttft_p99_s"] == pytest.approx(0.9)
    assert summary["ttft_p90_s"] == pytest.approx(0.1)
    running_mean = np.cumsum(ttft) / np.arange(1, 1001)
    assert np.percentile(running_mean[100:950], 99) < 0.2


def test_the_worst_mean_is_that_of_the_longest_two_percent() -> None:
    ttft = np.random.default_rng(1).permutation(np.arange(1000.0))
    summary = summarise(with_ttft(ttft), 1.0, 0.05, warmup=0.0, cooldown=0.0)
    assert summary["ttft_worst_mean_s"] == np.arange(980.0, 1000.0).mean()
    assert worst_mean_s(ttft[:3]) == ttft[:3].max()  # of at least one


def test_percentiles_follow_the_order_statistics() -> None:
    values = np.random.default_rng(0).permutation(np.arange(101.0))
    summary = summarise(with_ttft(values), 1e9, 1e9, warmup=0.0, cooldown=0.0)
    assert [summary[f"ttft_p{p}_s"] for p in (50, 90, 99)] == pytest.approx([50, 90, 99])
    assert [summary[f"e2e_p{p}_s"] for p in (50, 90, 99)] == pytest.approx([50, 90, 99])


def test_only_the_window_is_measured() -> None:
    ttft = np.ones(100)
    ttft[:10] = 50.0
    ttft[95:] = 70.0
    summary = summarise(with_ttft(ttft), 2.0, 2.0)
    assert summary["ttft_mean_s"] == pytest.approx(1.0)
    ttft[10] = ttft[94] = 86.0  # the first and the last request that count
    assert summarise(with_ttft(ttft), 2.0, 2.0)["ttft_mean_s"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("requests", "first", "end"), [(100, 10, 95), (30, 3, 29), (10, 1, 10), (15, 2, 15), (20, 2, 19)]
)
def test_window_indices(requests: int, first: int, end: int) -> None:
    window = measured_window(requests, 0.1, 0.05)
    assert (window.start, window.stop) == (first, end)


def test_too_few_requests_are_an_error() -> None:
    with pytest.raises(FairleadError, match="too few"):
        summarise(steady(1), 1.0, 1.0)


def test_tpot_leaves_out_single_tokens() -> None:
    outcomes = Outcomes(
        arrival_s=[0.0, 1.0, 2.0],  # type: ignore[arg-type]
        prompt_tokens=[1, 1, 1],  # type: ignore[arg-type]
        output_tokens=[1, 2, 5],  # type: ignore[arg-type]
        replica=[0, 0, 0],  # type: ignore[arg-type]
        first_token_s=[0.5, 1.5, 2.5],  # type: ignore[arg-type]
        finish_s=[0.5, 1.7, 4.5],  # type: ignore[arg-type]
        preemptions=[0, 0, 0],  # type: ignore[arg-type]
        num_replicas=1,
    )
    summary = summarise(outcomes, 1.0, 0.3, warmup=0.0, cooldown=0.0)
    assert summary["tpot_mean_s"] == pytest.approx((0.2 + 0.5) / 2)
    assert meets_slo(outcomes, 1.0, 0.3).tolist() == [True, True, False]
    assert meets_slo(outcomes, 0.4, 0.3).tolist() == [False, False, False]


def test_single_token_runs_are_finite() -> None:
    summary = summarise(with_ttft(np.full(50, 0.2)), 1.0, 0.05)
    assert summary["tpot_mean_s"] == summary["tpot_p99_s"] == 0.0
    assert summary["goodput_rps"] == summary["throughput_rps"] == pytest.approx(1.0, abs=0.05)


def test_throughput_of_an_overloaded_cluster_is_its_capacity() -> None:
    # One server of 1 request/s, 2 arrivals/s: the queue grows and the drain must not count.
    finish = np.arange(1.0, 401.0)
    arrival = (finish - 1.0) / 2.0
    ones = np.ones(400, dtype=np.int64)
    summary = summarise(Outcomes(arrival, ones, ones, 0 * ones, finish, finish, 0 * ones, 1), 5.0, 1.0)
    assert summary["throughput_rps"] == pytest.approx(1.0, rel=0.02)
    assert summary["goodput_rps"] == 0.0


def test_throughput_when_everything_arrives_at_once() -> None:
    finish = np.arange(1.0, 101.0)
    ones = np.ones(100, dtype=np.int64)
    summary = summarise(Outcomes(0.0 * finish, ones, ones, 0 * ones, finish, finish, 0 * ones, 1), 5.0, 1.0)
    assert summary["throughput_rps"] == pytest.approx(1.0)


def test_imbalance_closed_forms() -> None:
    # Everything piles up on one of four replicas: after the first arrival the coefficient is sqrt(4 - 1).
    ones = np.ones(5, dtype=np.int64)
    arrival = np.arange(5.0)
    piled = Outcomes(arrival, ones, ones, 2 * ones, arrival + 100, arrival + 100, 0 * ones, 4)
    np.testing.assert_allclose(arrival_imbalance(piled), [0, *[np.sqrt(3)] * 4])
    # Each request leaves before the next arrives: the cluster is always found empty.
    empty = Outcomes(arrival, ones, ones, 2 * ones, arrival + 1, arrival + 1, 0 * ones, 4)
    np.testing.assert_array_equal(arrival_imbalance(empty), np.zeros(5))


def imbalance_by_loop(outcomes: Outcomes) -> np.ndarray:
    values = []
    for i in range(len(outcomes)):
        counts = np.zeros(outcomes.num_replicas)
        for j in range(i):
            if outcomes.finish_s[j] > outcomes.arrival_s[i]:
                counts[outcomes.replica[j]] += 1
        values.append(counts.std() / counts.mean() if counts.any() else 0.0)
    return np.array(values)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 5),
    # Small integers make ties between arrivals and finishes, and requests of no duration, frequent.
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=40),
)
def test_imbalance_equals_the_brute_force_loop(replicas: int, raw: list[tuple[int, int, int]]) -> None:
    gaps, durations, choices = np.array(raw).T
    arrival = np.cumsum(gaps).astype(np.float64)
    ones = np.ones(len(raw), dtype=np.int64)
    finish = arrival + durations
    outcomes = Outcomes(arrival, ones, ones, choices % replicas, finish, finish, 0 * ones, replicas)
    np.testing.assert_allclose(arrival_imbalance(outcomes), imbalance_by_loop(outcomes), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(20, 200))
def test_laws_of_the_summary(seed: int, requests: int) -> None:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(size=requests))
    first = arrival + rng.exponential(size=requests)
    finish = first + rng.exponential(size=requests)
    output = rng.integers(2, 50, requests)
    replica = rng.integers(0, 3, requests)
    zeros = np.zeros(requests, dtype=np.int64)
    summary = summarise(Outcomes(arrival, output, output, replica, first, finish, zeros, 3), 1.0, 0.1)
    assert all(np.isfinite(value) and value >= 0 for value in summary.values())
    for kind in ("ttft", "e2e"):
        assert summary[f"{kind}_p50_s"] <= summary[f"{kind}_p90_s"] <= summary[f"{kind}_p99_s"]
    assert summary["goodput_rps"] <= summary["throughput_rps"]
    assert summary["ttft_mean_s"] <= summary["e2e_mean_s"]
    assert summary["imbalance"] <= np.sqrt(2) + 1e-12


def test_pitfall_29_metrics_are_not_quadratic() -> None:
    rng = np.random.default_rng(0)
    size = 300_000  # a quadratic pass over this would take hours
    arrival = np.cumsum(rng.exponential(size=size))
    finish = arrival + rng.exponential(100.0, size=size)
    ones = np.ones(size, dtype=np.int64)
    replica = rng.integers(0, 64, size)
    outcomes = Outcomes(arrival, ones, 2 * ones, replica, arrival + 0.0, finish, 0 * ones, 64)
    started = time.perf_counter()
    summarise(outcomes, 1.0, 1.0)
    assert time.perf_counter() - started < 10.0
