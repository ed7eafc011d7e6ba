"""`fairlead simulate`, from the command line."""

import json

import pytest

METRICS = {
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p90_s",
    "ttft_p99_s",
    "tpot_mean_s",
    "tpot_p99_s",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p90_s",
    "e2e_p99_s",
    "throughput_rps",
    "goodput_rps",
    "imbalance",
    "retries_mean",
    "prefix_hit_rate",
    "scheduling_delay_p99_s",
    "ttft_worst_mean_s",
}
RUN = ("simulate", "--scenario", "uniform-lengths", "--requests", "200")


def test_json_has_every_metric_and_stands_alone(fairlead):
    ended = fairlead(*RUN, "--load", "0.7", "--router", "least_work", "--seed", "3", "--json")
    assert ended.code == 0
    result = json.loads(ended.out)
    assert set(result) >= METRICS
    assert (result["load"], result["router"], result["seed"]) == (0.7, "least_work", 3)


def test_the_table_has_every_metric(fairlead):
    ended = fairlead(*RUN)
    assert ended.code == 0
    assert all(metric in ended.out for metric in METRICS)
    assert "load 0.5" in ended.out  # the first of the scenario's own


def test_the_same_options_give_the_same_bytes(fairlead):
    assert fairlead(*RUN, "--json").out == fairlead(*RUN, "--json").out


def test_another_seed_gives_other_numbers(fairlead):
    assert fairlead(*RUN, "--json").out != fairlead(*RUN, "--json", "--seed", "1").out


def test_a_scenario_file_of_ones_own(fairlead, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(fairlead("scenarios", "uniform-lengths").out.replace("count: 2", "count: 3"))
    ended = fairlead("simulate", "--scenario", str(file), "--requests", "50", "--json")
    assert ended.code == 0 and json.loads(ended.out)["scenario"] == "uniform-lengths"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--load", "0"), "load"),
        (("--load", "1.5"), "load"),
        (("--load", "0.5,0.7"), "one --load"),
        (("--router", "leastwork"), "least_work"),
        (("--router", "none.onnx"), "none.onnx"),
        (("--router", "lookahead", "--favor", "2"), "favor"),
        (("--scenario", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_simulated_is_one_line(fairlead, options, named):
    ended = fairlead(*RUN, *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert named in ended.err


def test_variants_of_a_scenario_can_be_simulated(fairlead):
    ended = fairlead("simulate", "--scenario", "uniform-lengths:3~1", "--requests", "50", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["scenario"] == "uniform-lengths:3~1"
