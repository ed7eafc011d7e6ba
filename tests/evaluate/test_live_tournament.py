"""Routers before an emulated cluster, measured as before real servers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.emulated import emulated

from fairlead.errors import FairleadError
from fairlead.evaluate.live_gateway import Bounds
from fairlead.evaluate.live_tournament import Plan, rates, run_live_tournament
from fairlead.evaluate.per_request import read_requests
from fairlead.evaluate.report import render_report
from fairlead.evaluate.results import load_results
from fairlead.serve.settings import GatewaySettings, parse_settings
from fairlead.workload.scenario import Scenario, load_scenario

SPEED = 20.0
WORKLOAD = {
    "arrivals": {"kind": "poisson"},
    "lengths": {"kind": "uniform", "prompt": {"min": 20, "max": 200}, "output": {"min": 2, "max": 40}},
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("uniform-lengths").replace(workload=WORKLOAD)


@pytest.fixture(scope="module")
def urls(scenario: Scenario) -> Iterator[list[str]]:
    with emulated(scenario, SPEED, model="tiny") as found:
        yield found


def settings(urls: list[str], **more) -> GatewaySettings:
    backends = [{"url": url, "name": f"b{i}"} for i, url in enumerate(urls)]
    return parse_settings({"backends": backends, **more}, "test")


def plan(scenario: Scenario, rate: float = 20.0, requests: int = 30) -> Plan:
    return Plan(scenario, rates(scenario, None, rate), (0, 1), requests)


def test_all_routers_meet_the_same_requests(scenario, urls, tmp_path: Path):
    chosen = plan(scenario)
    out = tmp_path / "live"
    (load,) = chosen.rates
    results = run_live_tournament(chosen, settings(urls), ["lor", "round_robin"], out, speed=SPEED)
    assert load_results(out) == results
    assert results.configuration.simulator == "live servers (2)"
    assert all(any(url in note for note in results.configuration.notes) for url in urls)
    assert len(results.rows) == 4 and all(row.rate_rps == 20.0 for row in results.rows)
    requests = read_requests(out, scenario.name, load, "lor")
    arrivals = [chosen.arrivals(load, seed) for seed in (0, 1)]
    assert requests["prompt_tokens"].tolist() == [n for each in arrivals for n in each.prompt_tokens]
    assert requests["output_tokens"].tolist() == [n for each in arrivals for n in each.output_tokens]
    turns = read_requests(out, scenario.name, load, "round_robin")
    assert turns["arrival_s"].tolist() == requests["arrival_s"].tolist()
    assert sorted(turns["replica"].tolist()) == [0] * 30 + [1] * 30
    page = render_report(out).read_text(encoding="utf-8")
    assert "Measured on live servers (2)" in page


def test_a_failed_request_ends_it_and_nothing_is_written(scenario, urls, tmp_path: Path):
    bounds = Bounds(request_s=0.001)
    with pytest.raises(FairleadError, match=r"lor, load .*, seed 0: 30 of 30 requests failed"):
        run_live_tournament(
            plan(scenario), settings(urls), ["lor"], tmp_path / "x", bounds=bounds, speed=SPEED
        )
    assert not (tmp_path / "x" / "results.json").exists()
    assert not (tmp_path / "x" / "requests.parquet").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routers": ["lookahead"]}, "lookahead needs the simulator's full state"),
        ({"bounds": Bounds(run_minutes=0.001)}, "more than 0.001: take fewer"),
        ({"plan": "one seed"}, "at least 2 seeds"),
        ({"plan": "long"}, "are longer than tiny takes"),
        ({"plan": "recorded"}, "2 runs of 30 requests need 60 recorded arrivals, and 50 are for evaluation"),
        ({"settings": "absent"}, "127.0.0.1:1: no connection"),
        ({"settings": "no metrics"}, "metrics cannot be used"),
    ],
    ids=["lookahead", "time", "seeds", "long", "recorded", "absent", "metrics"],
)
def test_what_cannot_be_measured_is_refused(scenario, urls, tmp_path: Path, monkeypatch, change, message):
    chosen, gateway = plan(scenario), settings(urls)
    if change.get("plan") == "one seed":
        chosen = Plan(scenario, chosen.rates, (0,), 30)
    if change.get("plan") == "long":
        huge = {"kind": "uniform", "prompt": {"min": 10**6, "max": 10**6}, "output": {"min": 2, "max": 2}}
        chosen = Plan(
            scenario.replace(workload={**WORKLOAD, "lengths": huge}), chosen.rates, chosen.seeds, 30
        )
    if change.get("plan") == "recorded":
        log = tmp_path / "log.csv"
        log.write_text(
            "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i},9,5\n" for i in range(100))
        )
        replayed = {**WORKLOAD, "arrivals": {"kind": "replay", "path": log}}
        chosen = Plan(scenario.replace(workload=replayed), chosen.rates, chosen.seeds, 30)
    if change.get("settings") == "absent":
        gateway = settings(["http://127.0.0.1:1"])
    if change.get("settings") == "no metrics":
        monkeypatch.setattr("fairlead.evaluate.live_gateway.FRESH_S", 0.3)
        gateway = settings(urls, scrape={"path": "/nothing"})
    with pytest.raises(FairleadError, match=message):
        run_live_tournament(
            chosen,
            gateway,
            change.get("routers", ["lor"]),
            tmp_path / "x",
            bounds=change.get("bounds", Bounds()),
            speed=SPEED,
        )
    assert not (tmp_path / "x" / "results.json").exists()


def test_a_rate_becomes_a_load_and_back(scenario):
    (load,) = rates(scenario, None, 7.0)
    assert rates(scenario, None, 7.0)[load] == 7.0 and 0 < load < 1
    assert list(rates(scenario, [0.5], None)) == [0.5]
    with pytest.raises(FairleadError, match="give one of them"):
        rates(scenario, [0.5], 7.0)
    with pytest.raises(FairleadError, match="more than 0"):
        rates(scenario, None, -1.0)
