"""The tournament end to end on a small scale."""

from pathlib import Path

import numpy as np
import pytest

from fairlead.env.run import run
from fairlead.errors import FairleadError
from fairlead.evaluate.per_request import read_requests
from fairlead.evaluate.results import load_results
from fairlead.evaluate.tournament import run_tournament, simulate, simulate_once
from fairlead.policy.catalogue import find_router
from fairlead.policy.heuristics import Heuristic
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.workload.scenario import generate, load_scenario

EQUAL = load_scenario("chat-equal")


def test_results_are_complete_and_repeatable(tmp_path: Path) -> None:
    scenarios = [EQUAL, load_scenario("chat-unequal")]
    runs = [
        run_tournament(scenarios, [0.6], ["lor", "random", "lookahead@0.3"], [0, 1], 120, tmp_path / name)
        for name in ("a", "b")
    ]
    assert [row.model_dump() for row in runs[0].rows] == [row.model_dump() for row in runs[1].rows]
    assert len(runs[0].rows) == 2 * 3 * 2
    assert load_results(tmp_path / "a").rows == runs[0].rows
    assert (tmp_path / "a" / "requests.parquet").is_file()


def test_every_router_serves_the_same_requests() -> None:
    first, second = (simulate(EQUAL, 0.5, find_router(r), [3], 100)[0] for r in ("lor", "random"))
    np.testing.assert_array_equal(first.arrival_s, second.arrival_s)
    np.testing.assert_array_equal(first.output_tokens, second.output_tokens)
    assert (first.replica != second.replica).any()


def test_a_run_does_not_depend_on_the_seeds_beside_it() -> None:
    alone = simulate(EQUAL, 0.5, find_router("least_work"), [4], 100)[0]
    among = simulate(EQUAL, 0.5, find_router("least_work"), [4, 5], 100)[0]
    np.testing.assert_array_equal(alone.finish_s, among.finish_s)


def test_runs_that_would_share_recorded_arrivals_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    rows = [f"{i},{i % 90 + 1},5" for i in range(400)]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]))
    replayed = {"arrivals": {"kind": "replay", "path": log}, "lengths": {"kind": "trace", "path": log}}
    scenario = EQUAL.replace(workload=replayed)
    with pytest.raises(
        FairleadError, match=r"3 runs of 100 requests need 300 .* at most 2 seeds, or 66 requests"
    ):
        run_tournament([EQUAL, scenario.replace(name="log")], [0.6], ["lor"], [0, 1, 2], 100, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(FairleadError, match="runs that share arrivals are not independent"):
        simulate(scenario, 0.6, find_router("lor"), [0, 1, 2], 100)
    first, second = simulate(scenario, 0.6, find_router("lor"), [0, 1], 100)
    assert (first.output_tokens == 5).all()
    assert (np.diff(first.arrival_s) > 0).all() and len(second.arrival_s) == 100


HUGE = {"arrivals": {"kind": "poisson"}, "lengths": {"kind": "fixed", "prompt": 10_000_000, "output": 1}}


@pytest.mark.parametrize(
    ("scenario", "loads", "requests", "message"),
    [
        (EQUAL, [0.6], 1, "1 requests are too few to measure"),
        (EQUAL, [0.6, 0.60], 100, "the same load is given twice"),
        (EQUAL.replace(workload=HUGE), [0.6], 100, "needs 10000000 tokens of KV cache"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_folder_is_made(
    tmp_path: Path, monkeypatch, scenario, loads, requests: int, message: str
) -> None:
    monkeypatch.setattr("fairlead.evaluate.tournament.capacity_rps", lambda scenario: 10.0)
    with pytest.raises(FairleadError, match=message):
        run_tournament([scenario], loads, ["lor"], [0, 1], requests, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_compiled_and_stepped_runs_agree() -> None:
    """The compiled loop is the step-by-step loop, up to rounding: it leaps over more iterations at once."""

    class Stepped:
        """Hides from `run` that this is a heuristic."""

        name = "stepped"

        def __init__(self, name: str) -> None:
            self.inner = Heuristic(name)
            self.reset, self.route = self.inner.reset, self.inner.route

    wanted = [generate(EQUAL, requests=150, rate=20.0, seed=s, split="evaluate") for s in range(3)]
    for name in ("random", "round_robin", "p2c", "lor", "least_prefill"):
        finishes = []
        for router in (Heuristic(name), Stepped(name)):
            clusters = Clusters([build_fleet(EQUAL)] * 3, wanted)
            run(clusters, router, seed=2)
            finishes.append(clusters.state.requests["finish"].copy())
        np.testing.assert_allclose(finishes[0], finishes[1], rtol=1e-12)


def test_pitfall_25_evaluation_does_not_explore() -> None:
    """A policy decides the same twice, whatever the seed of the run."""
    network = RouterNetwork(seed=1)
    for parameter in network.score_head.parameters():
        parameter.data.normal_(0, 1)
    actions = []
    for seed in (0, 1):
        clusters = Clusters(
            [build_fleet(EQUAL)], [generate(EQUAL, requests=80, rate=20.0, seed=0, split="evaluate")]
        )
        run(clusters, NetworkRouter(network), seed=seed)
        actions.append(clusters.outcomes(0).replica)
    np.testing.assert_array_equal(actions[0], actions[1])


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    run_tournament([EQUAL], [0.5], ["lor", "p2c"], [0, 1], 60, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(FairleadError, match="already holds another run"):
        run_tournament([EQUAL], [0.5], ["lor", "p2c"], [0, 1], 60, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize(
    ("load", "router", "message"),
    [(0.0, "lor", "load 0 is not between"), (1.5, "lor", "load 1.5"), (0.5, "best", "unknown router 'best'")],
)
def test_bad_requests_fail_before_anything_is_written(
    tmp_path: Path, load: float, router: str, message: str
) -> None:
    with pytest.raises(FairleadError, match=message):
        run_tournament([EQUAL], [load], [router], [0, 1], 60, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_simulate_once_names_every_metric() -> None:
    metrics = simulate_once(EQUAL, 0.5, "lor", 100, 0)
    assert metrics["ttft_mean_s"] <= metrics["e2e_mean_s"]


def test_requests_are_kept_one_by_one(tmp_path: Path) -> None:
    results = run_tournament([EQUAL], [0.5], ["lor", "p2c"], [0, 1], 60, tmp_path)
    assert len(read_requests(tmp_path, "chat-equal", 0.5, "p2c")["finish_s"]) == 2 * 60
    assert results.configuration.requests == 60
