"""Headroom: the steps, the words, the cache; and that the suite has some (pitfall 1)."""

from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate import headroom as module
from fairlead.evaluate.headroom import DIALS, Headroom, MetricHeadroom, Step, headroom, headroom_of_all
from fairlead.evaluate.tournament import simulate
from fairlead.policy.catalogue import find_router
from fairlead.policy.heuristics import HEURISTICS
from fairlead.simulator.metrics import summarise
from fairlead.workload.scenario import load_scenario
from fairlead.workload.suites import load_suite

PAGE = Path(__file__).parents[2] / "docs" / "scenarios.md"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "cache_directory", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def step(verdict: str, relative: float) -> Step:
    return Step.model_validate(
        {"router": "lor", "value": 1, "relative": relative, "ci_low": -1, "ci_high": 1, "verdict": verdict}
    )


def setting(heuristic: Step, lookahead: Step) -> Headroom:
    metric = MetricHeadroom(
        metric="ttft_mean_s",
        round_robin=1,
        heuristic=heuristic,
        lookahead=lookahead,
        true_lengths=step("better", -0.5),
    )
    return Headroom(scenario="s", load=0.5, rate_rps=1, metrics=(metric,))


def test_a_step_is_a_ratio_paired_by_seed() -> None:
    """A seed that doubles both routers' latency changes nothing; a router that halves it gains 50 %."""
    reference = np.array([1.0, 2.0, 40.0])
    found = module._step("a", reference / 2, reference)
    assert found.relative == pytest.approx(-0.5)
    assert found.verdict == "better" and found.worthwhile
    assert found.value == pytest.approx((reference / 2).mean())
    worse = module._step("a", reference * np.array([1.1, 1.2, 1.15]), reference)
    assert worse.ci_low < worse.relative < worse.ci_high and worse.ci_low > 0 and worse.verdict == "worse"


def test_headroom_is_where_a_step_is_certain_and_large_enough() -> None:
    nothing, small, large = step("undecided", -0.01), step("better", -0.02), step("better", -0.2)
    assert setting(nothing, small).places == []
    assert setting(small, nothing).in_words == (
        "has no headroom: no step of 3 % or more, so any router will do"
    )
    for found in (setting(large, nothing), setting(nothing, large)):
        assert found.places == ["ttft_mean_s"] and found.in_words == "has headroom on mean TTFT"
    assert "too wide to tell" in setting(step("undecided", -0.2), nothing).in_words


def test_a_setting_is_measured_step_by_step_and_then_kept(cache: Path) -> None:
    scenario = load_scenario("chat-unequal").replace(loads=[0.7])
    told: list[tuple[float, float]] = []
    found = headroom_of_all(
        [scenario], seeds=[0, 1], requests=150, progress=lambda _, done, total: told.append((done, total))
    )[0]
    assert [metric.metric for metric in found.metrics] == list(DIALS)
    assert found.load == 0.7 and found.rate_rps > 1
    for metric, dial in zip(found.metrics, DIALS.values(), strict=True):
        assert metric.heuristic.router in HEURISTICS
        assert metric.heuristic.relative <= 0, "round robin is itself among the heuristics"
        assert metric.lookahead.router == f"lookahead@{dial:g}"
        assert metric.true_lengths.router == f"lookahead:true-lengths@{dial:g}"
    # Each value is that of a run of its own.
    runs = simulate(scenario, 0.7, find_router("round_robin"), [0, 1], 150)
    values = [summarise(run, 1, 1)["e2e_mean_s"] for run in runs]
    assert found.metrics[0].round_robin == pytest.approx(np.mean(values))
    assert told == [(1, 1)]

    assert len(list(cache.iterdir())) == 1
    again = headroom_of_all([scenario], seeds=[0, 1], requests=150, progress=lambda *_: told.append((0, 0)))
    assert again == [found] and told == [(1, 1)], "known: nothing to wait for"
    headroom(scenario, 0.7, seeds=[0, 1], requests=151)
    assert len(list(cache.iterdir())) == 2


def test_a_broken_cache_is_measured_again_and_one_that_cannot_be_written_is_an_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = load_scenario("chat-equal")
    first = headroom(scenario, 0.5, seeds=[0, 1], requests=60)
    (kept,) = cache.iterdir()
    kept.write_text("{}")
    assert headroom(scenario, 0.5, seeds=[0, 1], requests=60) == first
    monkeypatch.setattr(module, "cache_directory", lambda: kept)
    with pytest.raises(FairleadError, match="cannot keep the measured headroom"):
        headroom(scenario, 0.5, seeds=[0, 1], requests=60)


def test_one_seed_gives_no_interval(cache: Path) -> None:
    with pytest.raises(FairleadError, match="at least two seeds"):
        headroom(load_scenario("chat-equal"), 0.5, seeds=[0], requests=50)


@pytest.mark.parametrize("name", load_suite("standard").scenarios)
def test_pitfall_01_every_scenario_of_the_suite_has_a_load_with_headroom(name: str) -> None:
    """At its highest load, some heuristic is clearly ahead of round robin on some metric."""
    scenario = load_scenario(name)
    load = scenario.loads[-1]
    values = {}
    for router in ("round_robin", "least_prefill", "least_work", "weighted_lor"):
        runs = simulate(scenario, load, find_router(router), range(4), 1500)
        rows = [summarise(run, 1, 1) for run in runs]
        values[router] = np.log([[row[metric] for metric in DIALS] for row in rows]).mean(axis=0)
    best = np.min([values[router] for router in values], axis=0)
    assert np.exp(best - values["round_robin"]).min() < 0.95


def test_the_page_shows_every_scenario_of_the_suite_at_every_load() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, teaches in load_suite("standard").scenarios.items():
        scenario = load_scenario(name)
        assert f"## {name}\n\n{teaches}" in text, f"run benchmarks/suite.py --page {PAGE.name}"
        section = text.split(f"## {name}\n")[1].split("\n## ")[0]
        for load in scenario.loads:
            assert f"\n| {load:g} | " in section
