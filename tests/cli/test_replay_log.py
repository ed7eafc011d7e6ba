"""`fairlead replay-log`: the load that it writes is the one at which the log's own rate comes back."""

import json

import numpy as np
import pytest

from fairlead.simulator.capacity import capacity_rps
from fairlead.workload.scenario import generate, load_scenario


@pytest.fixture
def log(tmp_path):
    """`log(gap)` -> a decision log of 40 requests, one every `gap` seconds."""

    def write(gap):
        path = tmp_path / "decisions.jsonl"
        record = {"prompt_tokens": 500, "output_tokens": 100, "outcome": "ok", "status": 200}
        lines = [json.dumps({**record, "at_s": 1000.0 + gap * i}) for i in range(40)]
        path.write_text("\n".join(lines) + "\n")
        return str(path)

    return write


def test_the_load_gives_back_the_rate_of_the_log(fairlead, log, tmp_path):
    out = tmp_path / "mine"
    ended = fairlead("replay-log", log(0.125), "--scenario", "chat-equal", "--out", str(out))
    assert ended.code == 0
    scenario = load_scenario(str(out / "scenario.yaml"))
    (load,) = scenario.loads
    assert f"load {load:g} of the measured capacity" in ended.err
    rate = load * capacity_rps(scenario)
    arrivals = generate(scenario, requests=20, rate=rate, seed=0, split="evaluate").arrival_s
    np.testing.assert_allclose(np.diff(arrivals), 0.125, rtol=6e-3)  # the load has three digits


@pytest.mark.parametrize(("gap", "why"), [(1e-4, "out of range"), (0.0, "a single moment has no rate")])
def test_a_rate_that_is_no_load_leaves_the_loads_alone(fairlead, log, tmp_path, gap, why):
    out = tmp_path / "mine"
    ended = fairlead("replay-log", log(gap), "--scenario", "chat-equal", "--out", str(out))
    assert ended.code == 0
    assert why in ended.err
    assert "the loads are those of chat-equal: 0.5" in ended.err
    assert load_scenario(str(out / "scenario.yaml")).loads == load_scenario("chat-equal").loads
