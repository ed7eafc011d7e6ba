"""Contests measured: what was run once is kept, and what changes is run again."""

from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.contest import METRICS
from fairlead.evaluate.quality import Plan, check, is_unequal, measure
from fairlead.policy.export import export_onnx
from fairlead.policy.heuristics import HEURISTICS
from fairlead.policy.network import RouterNetwork
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload import load_scenario
from fairlead.workload.suites import load_scenarios

SMALL = load_scenario("uniform-lengths").replace(loads=[0.6])


def policy(path: Path, seed: int = 0) -> Path:
    export_onnx(RouterNetwork(seed=seed), path, config={}, training={"seed": seed})
    return path


def plan(tmp_path: Path, **more) -> Plan:
    first = policy(tmp_path / "first.onnx")
    content = {
        "policies": (str(first),),
        "dials": (0.0,),
        "seeds": (1, 2),
        "requests": 60,
        "lookahead": False,
    }
    return check(Plan(**{**content, **more}), [SMALL])


def test_more_seeds_than_a_recorded_trace_has_runs_for_are_refused_before_any_is_run(tmp_path):
    log = tmp_path / "log.csv"
    rows = [f"{i},9,5" for i in range(200)]
    log.write_text("\n".join(["arrived_at,num_prefill_tokens,num_decode_tokens", *rows]))
    replayed = {"arrivals": {"kind": "replay", "path": log}, "lengths": {"kind": "trace", "path": log}}
    chosen = plan(tmp_path)
    with pytest.raises(
        FairleadError, match="2 runs of 60 requests need 120 recorded arrivals, and 100 are for"
    ):
        check(chosen, [SMALL, SMALL.replace(name="log", workload=replayed)])


def test_every_router_is_run_once_and_kept(tmp_path):
    ran: list[str] = []
    chosen = plan(tmp_path)
    found = measure(chosen, SMALL, tmp_path / "kept", ran.append)
    assert ran == ["first@0", f"first@{DEFAULT_FAVOR}", *HEURISTICS]
    assert chosen.dials == (0.0, DEFAULT_FAVOR)  # the default is always among them
    assert list(found.heuristics) == list(HEURISTICS) and set(found.learned) == {0.0, DEFAULT_FAVOR}
    assert found.lookahead == {} and found.specialist == {}
    assert {v[m].shape for v in found.heuristics.values() for m in METRICS} == {(1, 2)}
    again = measure(chosen, SMALL, tmp_path / "kept", ran.append)
    assert len(ran) == 2 + len(HEURISTICS)
    for metric in METRICS:
        np.testing.assert_array_equal(again.heuristics["lor"][metric], found.heuristics["lor"][metric])


def test_a_new_policy_costs_its_own_runs_only(tmp_path):
    measure(plan(tmp_path), SMALL, tmp_path / "kept")
    ran: list[str] = []
    chosen = plan(tmp_path, policies=(str(policy(tmp_path / "second.onnx", seed=3)),))
    measure(chosen, SMALL, tmp_path / "kept", ran.append)
    assert ran == ["second@0", f"second@{DEFAULT_FAVOR}"]
    ran.clear()
    measure(plan(tmp_path, seeds=(1, 3)), SMALL, tmp_path / "kept", ran.append)
    assert len(ran) == 2 + len(HEURISTICS)


def test_specialists_are_found_by_the_scenarios_name(tmp_path):
    folder = tmp_path / "specialists"
    folder.mkdir()
    policy(folder / f"{SMALL.name}.onnx", seed=4)
    ran: list[str] = []
    (tmp_path / "newer").mkdir()
    both = plan(tmp_path, specialists=(tmp_path / "newer", folder))
    found = measure(both, SMALL, tmp_path / "kept", ran.append)
    assert set(found.specialist) == {0.0, DEFAULT_FAVOR} and f"{SMALL.name}@{DEFAULT_FAVOR}" in ran
    policy(tmp_path / "newer" / f"{SMALL.name}.onnx", seed=5)
    assert both.specialist_of(SMALL) == tmp_path / "newer" / f"{SMALL.name}.onnx"
    with pytest.raises(FairleadError, match="no such folder"):
        plan(tmp_path, specialists=(tmp_path / "none",))


def test_a_folder_has_a_policy_for_each_scenario(tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    with pytest.raises(FairleadError, match=f"no policy for {SMALL.name}: there is no {SMALL.name}.onnx"):
        plan(tmp_path, policies=(str(folder),))
    policy(folder / f"{SMALL.name}.onnx", seed=4)
    ran: list[str] = []
    found = measure(plan(tmp_path, policies=(str(folder),)), SMALL, tmp_path / "kept", ran.append)
    assert len(found.learned[0.0]) == 1 and f"{SMALL.name}@0" in ran


def test_larger_clusters_serve_more_requests(tmp_path):
    (large,) = load_scenarios("chat-equal:32")
    assert plan(tmp_path).requests_in(large) == 8 * 60
    assert plan(tmp_path).requests_in(SMALL) == 60


def test_unequal_hardware_is_told_by_the_groups():
    assert not is_unequal(load_scenario("chat-equal"))
    assert is_unequal(load_scenario("chat-unequal")) and is_unequal(load_scenario("chat-mixed-gpus"))


def test_what_cannot_be_measured_is_said_before_anything_runs(tmp_path):
    with pytest.raises(FairleadError, match="at least 2 evaluation seeds"):
        plan(tmp_path, seeds=(1,))
    with pytest.raises(FairleadError, match="no policy file"):
        plan(tmp_path, policies=("none.onnx",))
    with pytest.raises(FairleadError, match="favor 2"):
        plan(tmp_path, dials=(2.0,))
