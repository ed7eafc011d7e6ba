"""Clusters side by side: independence, determinism, errors, capacity."""

import numpy as np
import pytest

from fairlead.env.run import run
from fairlead.errors import FairleadError
from fairlead.policy.heuristics import Heuristic, Lookahead
from fairlead.simulator import capacity
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.preference import Weights
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import generate, load_scenario

SCENARIO = load_scenario("chat-unequal")


def wanted(seed: int, count: int = 300, rate: float = 12.0) -> Requests:
    return generate(SCENARIO, requests=count, rate=rate, seed=seed, split="evaluate")


def test_clusters_do_not_disturb_each_other() -> None:
    fleet = build_fleet(SCENARIO)
    together = Clusters([fleet] * 3, [wanted(s) for s in range(3)])
    run(together, Heuristic("least_work"))
    for seed in range(3):
        alone = Clusters([fleet], [wanted(seed)])
        run(alone, Heuristic("least_work"))
        np.testing.assert_array_equal(alone.outcomes(0).finish_s, together.outcomes(seed).finish_s)


def test_clusters_behind_one_and_several_routers_run_side_by_side() -> None:
    """One policy is trained on both; the ledgers of routers that are not there change nothing."""
    scenarios = [load_scenario(name) for name in ("chat-equal", "chat-routers", "chat-stale")]
    fleets = [build_fleet(each) for each in scenarios]
    asked = [generate(each, requests=300, rate=15.0, seed=1, split="evaluate") for each in scenarios]
    choices = np.random.default_rng(0).integers(0, 4, (300, 3))

    def views(clusters: Clusters, columns: slice) -> np.ndarray:
        seen = []
        for turn in choices[:, columns]:
            view = clusters.observe()
            seen.append(np.concatenate([view.replicas.reshape(clusters.K, -1), view.request], axis=1))
            clusters.route(turn)
        clusters.drain()
        return np.stack(seen, axis=1)

    together = Clusters(fleets, asked)
    seen = views(together, slice(0, 3))
    for c in range(3):
        alone = Clusters([fleets[c]], [asked[c]])
        np.testing.assert_array_equal(views(alone, slice(c, c + 1))[0], seen[c])
        np.testing.assert_array_equal(alone.outcomes(0).finish_s, together.outcomes(c).finish_s)


def test_the_same_seed_gives_the_same_run_and_loading_starts_anew() -> None:
    clusters = Clusters([build_fleet(SCENARIO)], [wanted(0)])
    finishes = []
    for seed in (7, 7, 8):
        clusters.load([wanted(0)], 0)
        run(clusters, Heuristic("random"), seed=seed)
        finishes.append(clusters.outcomes(0).finish_s)
    np.testing.assert_array_equal(finishes[0], finishes[1])
    assert (finishes[0] != finishes[2]).any()


def test_conservation_at_every_decision() -> None:
    """Requests routed = running + waiting + finished, blocks in use are those of running requests."""
    clusters = Clusters([build_fleet(SCENARIO)], [wanted(3, rate=18.0)])
    draw = np.random.default_rng(0)
    for i in range(clusters.N):
        clusters.observe()
        replicas, requests = clusters.state.replicas, clusters.state.requests[0]
        held = int((replicas["running"] + replicas["waiting"]).sum())
        assert held + np.isfinite(requests["finish"]).sum() == i
        assert (replicas["free_blocks"] >= 0).all()
        assert (replicas["free_blocks"][replicas["running"] == 0] == replicas["kv_blocks"][0]).all()
        clusters.route(draw.integers(0, 4, 1))
    clusters.drain()
    assert (clusters.state.replicas["free_blocks"] == clusters.state.replicas["kv_blocks"]).all()
    assert (clusters.state.phases == 0).all()
    assert (clusters.state.replicas["kv_tokens"] == 0).all()
    assert (clusters.state.ledgers["context_tokens"] == 0).all()


def test_a_request_that_never_fits_is_an_error() -> None:
    with pytest.raises(FairleadError, match=r"request 1 needs 9000009 tokens .* but a replica holds"):
        Clusters(
            [build_fleet(SCENARIO)],
            [Requests(np.array([0.0, 1.0]), np.array([5, 9_000_000]), np.array([5, 10]))],
        )


@pytest.mark.parametrize("actions", [[4], [-1], [0, 1]])
def test_an_action_that_is_no_replica_is_an_error(actions: list[int]) -> None:
    clusters = Clusters([build_fleet(SCENARIO)], [wanted(0)])
    clusters.observe()
    with pytest.raises(FairleadError, match="actions must be"):
        clusters.route(np.array(actions))


def test_lookahead_prefers_the_idle_and_the_fast() -> None:
    clusters = Clusters([build_fleet(SCENARIO)], [wanted(0, count=2000, rate=3.0)])
    run(clusters, Lookahead(Weights(1.0, 1.0, 0.0)))
    shares = np.bincount(clusters.outcomes(0).replica, minlength=4)
    assert shares[:2].min() > 2 * shares[2:].max()


def test_lookahead_with_a_weight_on_the_tail_shortens_it() -> None:
    worst = {}
    for tail in (0.0, 60.0):
        clusters = Clusters([build_fleet(SCENARIO)] * 2, [wanted(s, count=1500, rate=15.0) for s in (0, 1)])
        run(clusters, Lookahead(Weights(1.0, 1.0, tail)))
        worst[tail] = np.array([np.percentile(clusters.outcomes(c).ttft_s, 99) for c in range(2)])
    assert (worst[60.0] < 0.9 * worst[0.0]).all()


def test_capacity_is_what_the_cluster_can_sustain(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(capacity, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(capacity, "_memory", {})
    measured: list[int] = []
    rate = capacity.capacity_rps(SCENARIO, measuring=lambda: measured.append(1))
    # Twice the capacity offered: what comes out is the capacity.
    clusters = Clusters([build_fleet(SCENARIO)], [wanted(1, count=20_000, rate=2 * rate)])
    run(clusters, Heuristic("weighted_lor"))
    done = np.sort(clusters.outcomes(0).finish_s)
    assert (done[12_000] - done[6_000]) * rate == pytest.approx(6_000, rel=0.05)
    # Kept on disk and in memory: a second call does not measure.
    monkeypatch.setattr(capacity, "_memory", {})
    assert capacity.capacity_rps(SCENARIO, measuring=lambda: measured.append(1)) == rate
    assert measured == [1]


def test_capacity_does_not_depend_on_arrivals_not_even_on_few_recorded_ones(tmp_path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{i},{i + 1},{i % 7 + 1}" for i in range(45)]
    log.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]))
    replay = {"kind": "replay", "path": log, "train_share": 0.5}
    recorded = {"kind": "trace", "path": log, "train_share": 0.5}
    assert SCENARIO.workload.lengths is not None
    for lengths in (SCENARIO.workload.lengths, recorded):
        rates = [
            capacity.measure_capacity_rps(SCENARIO.replace(workload={"arrivals": each, "lengths": lengths}))
            for each in ({"kind": "poisson"}, replay)
        ]
        assert rates[0] == rates[1]


def test_a_damaged_capacity_cache_is_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(capacity, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(capacity, "_memory", {})
    rate = capacity.capacity_rps(SCENARIO)
    next(tmp_path.glob("*.json")).write_text("{")
    monkeypatch.setattr(capacity, "_memory", {})
    assert capacity.capacity_rps(SCENARIO) == rate


def test_clusters_with_different_numbers_of_routers_run_together() -> None:
    several = [SCENARIO.replace(routers=routers) for routers in (3, 1)]
    fleets = [build_fleet(s) for s in several]
    arrivals = [generate(s, requests=60, rate=12.0, seed=1, split="evaluate") for s in several]
    together = Clusters(fleets, arrivals)
    run(together, Heuristic("least_work"))
    for c in range(2):
        alone = Clusters([fleets[c]], [arrivals[c]])
        run(alone, Heuristic("least_work"))
        np.testing.assert_array_equal(alone.outcomes(0).finish_s, together.outcomes(c).finish_s)
    with pytest.raises(FairleadError, match="comes to router 2, but there are 1"):
        Clusters([fleets[1]], [arrivals[0]])
