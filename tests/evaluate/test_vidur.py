"""Routers inside Vidur: what is refused is tested everywhere, the rest where Vidur is installed."""

from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate import vidur
from fairlead.evaluate.report import render_report
from fairlead.evaluate.results import load_results
from fairlead.evaluate.tournament import run_tournament
from fairlead.policy.catalogue import Entry, find_router
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.schema import REPLICA_COLUMNS, View
from fairlead.workload.scenario import Scenario, generate, load_scenario

EQUAL = load_scenario("chat-equal")
UNEQUAL = load_scenario("chat-unequal")


@pytest.fixture
def installed(monkeypatch):
    """As if Vidur were there: nothing of it runs in the tests that ask for this."""
    monkeypatch.setattr(vidur, "check_installed", lambda: None)


def test_lookahead_is_refused(installed):
    with pytest.raises(FairleadError, match=r"lookahead@0\.3 forecasts with Fairlead's own engine"):
        vidur.check([EQUAL], [find_router("lookahead@0.3")])


def test_a_scenario_with_more_than_vidur_has_is_refused(installed):
    with pytest.raises(FairleadError, match="chat-equal: Vidur cannot simulate routers = 2"):
        vidur.check([EQUAL.replace(routers=2)], [find_router("lor")])
    vidur.check([EQUAL, UNEQUAL], [find_router("lor")])


def test_a_stand_in_for_the_scheduler_is_told():
    (note,) = vidur.notes([EQUAL])
    assert "sarathi" in note
    assert "chat-equal" in note


def test_what_counts_differently_in_the_prompt_batches_of_vllm_v0_is_told():
    (note,) = vidur.notes([EQUAL.replace(engine={"scheduler": "vllm_v0"})])
    assert "longest times their number" in note


def test_without_vidur_nothing_is_written(tmp_path: Path, monkeypatch):
    def missing() -> None:
        raise FairleadError("the simulator Vidur is not installed")

    monkeypatch.setattr(vidur, "check_installed", missing)
    with pytest.raises(FairleadError, match="not installed"):
        run_tournament([EQUAL], [0.5], ["lor"], [0, 1], 50, tmp_path / "x", simulator="vidur")
    assert not (tmp_path / "x").exists()


@pytest.mark.vidur
def test_a_tournament_in_vidur_has_the_usual_files(tmp_path: Path):
    results = run_tournament(
        [UNEQUAL], [0.5], ["lor", "weighted_lor"], [0, 1], 60, tmp_path, simulator="vidur"
    )
    assert results.configuration.simulator == "vidur 0.0.26"
    assert load_results(tmp_path).rows == results.rows
    page = render_report(tmp_path).read_text()
    assert "Simulated by vidur 0.0.26" in page
    assert "stands in for it in chat-unequal" in page


class _Recorded:
    """Round robin that keeps the views it saw."""

    name = "recorded"

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        self.views: list[np.ndarray] = []
        self.replicas = replicas

    def route(self, view: View) -> np.ndarray:
        self.views.append(view.replicas[0].copy())
        return np.array([(len(self.views) - 1) % self.replicas])


@pytest.mark.vidur
def test_the_view_inside_vidur_is_that_of_fairlead_at_the_same_moments():
    """Columns agree but for the small difference of the iteration times."""
    router = _Recorded()
    seen = vidur.simulate(UNEQUAL, 0.5, Entry("recorded", "heuristic", "", router), [1], 150)[0]
    theirs = np.array(router.views)
    requests = generate(UNEQUAL, requests=150, rate=0.5 * capacity_rps(UNEQUAL), seed=1, split="evaluate")
    clusters = Clusters([build_fleet(UNEQUAL)], [requests])
    ours = []
    for i in range(150):
        ours.append(clusters.observe().replicas[0].copy())
        clusters.route(np.array([i % 4]))
    clusters.drain()
    np.testing.assert_array_equal(seen.arrival_s, requests.arrival_s)
    for column, name in enumerate(each.name for each in REPLICA_COLUMNS):
        a, b = theirs[:, :, column], np.array(ours)[:, :, column]
        # A scrape shortly before or after an event finds another whole number.
        allowed = 0.10 if name.startswith("scraped") else 0.03
        assert np.abs(a - b).mean() <= allowed * np.abs(b).mean() + 1e-9, name
    assert seen.e2e_s.mean() == pytest.approx(clusters.outcomes(0).e2e_s.mean(), rel=0.02)


@pytest.mark.vidur
def test_preemption_in_vidur_is_an_error_that_says_so():
    tight: Scenario = EQUAL.replace(engine={"num_gpu_blocks": 700})
    with pytest.raises(FairleadError, match=r"raise num_gpu_blocks"):
        vidur.simulate(tight, 0.9, find_router("round_robin"), [0], 120)


@pytest.mark.vidur
def test_a_trained_policy_routes_inside_vidur(tmp_path: Path):
    """An exported network, as `fairlead train` writes it."""
    pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")
    from fairlead.policy.export import export_onnx
    from fairlead.policy.network import RouterNetwork

    network = RouterNetwork(seed=3)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.score_head.layer_2.weight)
    choices = []
    for sign in ("likes", "dislikes"):
        file = tmp_path / f"{sign}.onnx"
        export_onnx(network, file, config={}, training={})
        entry = find_router(str(file))
        vidur.check([UNEQUAL], [entry])
        (served,) = vidur.simulate(UNEQUAL, 0.4, entry, [0], 40)
        assert len(served) == 40
        choices.append(served.replica)
        with torch.no_grad():
            network.score_head.layer_2.weight.neg_()
    # What one likes best, the other likes least.
    assert choices[0][0] != choices[1][0]
