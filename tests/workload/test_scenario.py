from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fairlead.errors import FairleadError
from fairlead.workload import (
    Requests,
    Scenario,
    check_load,
    check_runs,
    generate,
    load_scenario,
    scenario_names,
)
from fairlead.workload.arrivals import Gamma, Poisson
from fairlead.workload.lengths import Empirical, Fixed
from fairlead.workload.scenario import SLO, ReplicaGroup, ViewOptions, Workload

REPLICAS = "replicas: [{device: a100-80g, count: 2}]"
MIXTURE = "workload: {arrivals: {kind: poisson}, lengths: {kind: mixture, parts: [%s]}}"
WORKLOAD = "workload: {arrivals: {kind: poisson}, lengths: {kind: fixed, prompt: 30, output: 4}}"


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def equal(left: Requests, right: Requests) -> bool:
    names = ("arrival_s", "prompt_tokens", "output_tokens")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in names)


def run(
    scenario: Scenario, requests: int = 400, rate: float = 5, seed: int = 3, split: str = "train"
) -> Requests:
    return generate(scenario, requests=requests, rate=rate, seed=seed, split=split)


@pytest.mark.parametrize("name", scenario_names())
def test_every_shipped_scenario_loads_describes_itself_and_generates(name: str):
    scenario = load_scenario(name)
    assert scenario.name == name
    assert 20 < len(scenario.description) < 300
    assert scenario.num_replicas >= 2
    requests = run(scenario, requests=20_000)
    assert len(requests) / requests.arrival_s[-1] == pytest.approx(5, rel=0.15)


def test_the_two_scenarios_of_the_demo():
    equal_replicas, unequal = load_scenario("chat-equal"), load_scenario("chat-unequal")
    assert equal_replicas.replicas == (ReplicaGroup(device="a100-80g", count=4),)
    assert [(group.count, group.slowdown) for group in unequal.replicas] == [(2, 1.0), (2, 2.5)]
    assert unequal.view.speeds_declared
    for scenario in (equal_replicas, unequal):
        assert scenario.model == "llama-3-8b"
        assert scenario.loads == (0.5, 0.7, 0.9)
        assert scenario.workload.lengths == Empirical(table="azure-conversation-2023")
        assert scenario.workload.arrivals == Poisson()


def test_the_shipped_scenarios_exercise_every_kind_that_needs_no_file():
    scenarios = [load_scenario(name) for name in scenario_names()]
    arrivals = {each.workload.arrivals.kind for each in scenarios if each.workload.arrivals}
    assert arrivals == {"poisson", "gamma", "deterministic", "mmpp", "diurnal", "flash_crowd"}
    lengths = {each.workload.lengths.kind for each in scenarios if each.workload.lengths}
    assert lengths == {"empirical", "lognormal", "uniform", "zipf", "mixture"}


def test_pitfall_02_no_shipped_scenario_makes_all_requests_alike():
    for name in scenario_names():
        requests = run(load_scenario(name))
        assert len(np.unique(requests.prompt_tokens)) > 50
        assert len(np.unique(requests.output_tokens)) > 30


def test_pitfall_04_training_and_evaluation_never_share_a_stream():
    scenario = load_scenario("chat-equal")
    splits = ("train", "validate", "evaluate")
    runs = [run(scenario, seed=seed, split=split) for seed in range(5) for split in splits]
    for index, left in enumerate(runs):
        for right in runs[:index]:
            assert not np.intersect1d(left.arrival_s, right.arrival_s).size
            assert not np.array_equal(left.prompt_tokens, right.prompt_tokens)
            assert not np.array_equal(left.output_tokens, right.output_tokens)


def test_the_same_arguments_give_the_same_requests():
    scenario = load_scenario("chat-bursty")
    assert equal(run(scenario), run(load_scenario("chat-bursty")))
    assert equal(run(scenario, requests=100), run(scenario)[:100])


def test_arrivals_do_not_depend_on_the_lengths_nor_lengths_on_the_arrivals():
    scenario = load_scenario("chat-equal")
    fixed = Fixed(prompt=3, output=2)
    other = scenario.replace(workload=Workload(arrivals=Poisson(), lengths=fixed))
    np.testing.assert_array_equal(run(other).arrival_s, run(scenario).arrival_s)
    bursty = scenario.replace(workload=Workload(arrivals=Gamma(cv=3), lengths=scenario.workload.lengths))
    np.testing.assert_array_equal(run(bursty).prompt_tokens, run(scenario).prompt_tokens)
    np.testing.assert_array_equal(run(bursty).output_tokens, run(scenario).output_tokens)


def test_another_rate_only_stretches_the_arrival_times():
    scenario = load_scenario("chat-equal")
    slow, fast = run(scenario, rate=2), run(scenario, rate=8)
    np.testing.assert_allclose(slow.arrival_s, 4 * fast.arrival_s, rtol=1e-14)
    np.testing.assert_array_equal(slow.prompt_tokens, fast.prompt_tokens)
    np.testing.assert_array_equal(slow.output_tokens, fast.output_tokens)


def test_max_tokens_stops_outputs_and_touches_nothing_else():
    scenario = load_scenario("chat-equal")
    workload = scenario.workload
    limited = scenario.replace(
        workload=Workload(arrivals=workload.arrivals, lengths=workload.lengths, max_tokens=100)
    )
    np.testing.assert_array_equal(run(limited).output_tokens, np.minimum(run(scenario).output_tokens, 100))
    np.testing.assert_array_equal(run(limited).prompt_tokens, run(scenario).prompt_tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"requests": 0}, "requests = 0; at least 1"),
        ({"rate": 0}, "rate = 0 requests/s"),
        ({"rate": float("nan")}, "rate = nan requests/s"),
        ({"rate": float("inf")}, "rate = inf requests/s"),
        ({"seed": -1}, "seed = -1; it must not be negative"),
        ({"split": "test"}, "unknown split 'test'; known: train, validate, evaluate"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(FairleadError) as error:
        run(load_scenario("chat-equal"), **arguments)
    assert message in str(error.value)


def test_a_users_file_is_taken_wherever_a_name_is_and_its_paths_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    rows = [f"{2 * i},{i + 1},{i + 2}" for i in range(40)]
    write(tmp_path / "mine" / "log.csv", "arrived_at,num_prefill_tokens,num_decode_tokens", *rows)
    path = write(
        tmp_path / "mine" / "my-service.yaml",
        REPLICAS,
        "workload: {arrivals: {kind: replay, path: log.csv}, lengths: {kind: trace, path: ./log.csv}}",
    )
    monkeypatch.chdir(tmp_path)
    for name in (str(path), path, "mine/my-service.yaml"):
        scenario = load_scenario(name)
        assert scenario.name == "my-service"
    # Each request keeps its own time: row i came at 2 i s, with i + 1 prompt tokens.
    requests = run(scenario, requests=20, rate=4, split="evaluate")
    assert requests.prompt_tokens[0] == 21
    np.testing.assert_allclose(requests.arrival_s, np.arange(1, 21) / 4)
    np.testing.assert_array_equal(requests.output_tokens, requests.prompt_tokens + 1)
    with pytest.raises(FairleadError, match=r"21 requests asked for.*of which 20 for evaluate"):
        run(scenario, requests=21, split="evaluate")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([REPLICAS, WORKLOAD, "lods: [1]"], "unknown key 'lods'; did you mean loads"),
        ([REPLICAS, WORKLOAD, "slo: {ttft: 1}"], "slo: unknown key 'ttft'; did you mean ttft_s"),
        (
            ["replicas: [{device: a10, slow_down: 2}]", WORKLOAD],
            "replicas.0: unknown key 'slow_down'; did you",
        ),
        (
            ["replicas: [{device: a10, slowdown: -2}]", WORKLOAD],
            "replicas.0.slowdown: input should be greater",
        ),
        (["replicas: []", WORKLOAD], "replicas: should not be empty"),
        (["replicas: a10", WORKLOAD], "replicas: should be a list"),
        ([REPLICAS], "workload: is missing"),
        ([REPLICAS, WORKLOAD, "loads: [0]"], "load 0 is not between 0 and 1.5"),
        ([REPLICAS, WORKLOAD, "loads: [0.5, 1.5]"], "load 1.5 is not between 0 and 1.5"),
        ([REPLICAS, WORKLOAD, "loads: [high]"], "loads.0: input should be a valid number"),
        ([REPLICAS, WORKLOAD, "loads: []"], "loads: should not be empty"),
        (
            [REPLICAS, WORKLOAD.replace("poisson", "posson")],
            "workload.arrivals: unknown kind 'posson'; did you mean poisson",
        ),
        ([REPLICAS, WORKLOAD.replace("kind: poisson", "")], "workload.arrivals: give it a kind"),
        (
            [REPLICAS, WORKLOAD.replace("{kind: poisson}", "poisson")],
            "workload.arrivals: should be a mapping",
        ),
        ([REPLICAS, WORKLOAD.replace("prompt: 30", "prompt: 0")], "workload.lengths.prompt: input should be"),
        ([REPLICAS, WORKLOAD.replace("prompt: 30, ", "")], "workload.lengths.prompt: is missing"),
        (
            [REPLICAS, WORKLOAD.replace("fixed, prompt: 30, output: 4", "empirical, table: azure-cod-2023")],
            "unknown length table 'azure-cod-2023'; did you mean azure-code-2023",
        ),
        (
            [REPLICAS, WORKLOAD.replace("kind: poisson", "kind: replay, path: log.csv")],
            "workload.arrivals.path: there is no file log.csv in",
        ),
        (
            [REPLICAS, MIXTURE % "{weight: 0, lengths: {kind: fixed, prompt: 3, output: 4}}"],
            "workload.lengths.parts.0.weight: input should be greater than 0",
        ),
        (
            [REPLICAS, MIXTURE % "{weight: 1, lengths: {kind: fixed, prompt: 0, output: 4}}"],
            "workload.lengths.parts.0.lengths.prompt: input should be greater",
        ),
        (
            [REPLICAS, MIXTURE % "{weight: 1, lengths: {kind: fxed}}"],
            "workload.lengths.parts.0.lengths: unknown kind 'fxed'; did you mean fixed",
        ),
        (
            [REPLICAS, MIXTURE % "{weight: 1, lengths: {kind: mixture, parts: []}}"],
            "workload.lengths.parts.0.lengths: a mixture inside a mixture; list its parts in the outer one",
        ),
        ([REPLICAS, MIXTURE % ""], "workload.lengths.parts: should not be empty"),
        (
            [REPLICAS, WORKLOAD, "engine: {max_num_seqs: 4096}"],
            "engine: max_num_batched_tokens (2048) must be at least max_num_seqs (4096)",
        ),
        ([REPLICAS, WORKLOAD, REPLICAS], "line 3: not valid YAML: the key replicas is given twice"),
        ([REPLICAS, "workload: ["], "not valid YAML"),
        (["- 1"], "a scenario is a mapping of keys"),
        ([""], "a scenario is a mapping of keys"),
    ],
)
def test_a_bad_scenario_file_is_refused_in_one_line_that_names_file_and_key(
    tmp_path: Path, lines: list[str], message: str
):
    path = write(tmp_path / "bad.yaml", *lines)
    with pytest.raises(FairleadError) as error:
        load_scenario(str(path))
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chat-eqal", "unknown scenario 'chat-eqal'; did you mean chat-equal"),
        ("no/such.yaml", "cannot read the scenario file no/such.yaml: No such file"),
        ("elsewhere/chat-equal", "cannot read the scenario file elsewhere/chat-equal: No such file"),
    ],
)
def test_a_scenario_that_is_not_there(name: str, message: str):
    with pytest.raises(FairleadError) as error:
        load_scenario(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_scenario_file_that_is_not_text(tmp_path: Path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(FairleadError, match="it is not UTF-8 text"):
        load_scenario(path)


def test_scenarios_are_frozen():
    scenario = load_scenario("chat-equal")
    with pytest.raises(ValidationError):
        scenario.model = "other"


def test_replace_validates():
    scenario = load_scenario("chat-equal")
    assert scenario.replace(loads=[0.8]).loads == (0.8,)
    assert scenario.loads == (0.5, 0.7, 0.9)
    with pytest.raises(FairleadError, match=r"load 2 is not between 0 and 1\.5"):
        scenario.replace(loads=[2])
    with pytest.raises(FairleadError, match="unknown key 'load'; did you mean loads"):
        scenario.replace(load=0.5)


@pytest.mark.parametrize("load", [0, -0.1, 1.5, 2, float("nan"), float("inf")])
def test_a_load_must_be_a_sensible_fraction_of_capacity(load: float):
    with pytest.raises(FairleadError, match=r"is not between 0 and 1\.5: give a fraction of capacity"):
        check_load(load)
    assert check_load(1.49) == 1.49


def test_the_hash_is_stable_and_ignores_what_changes_no_result(tmp_path: Path):
    scenario = load_scenario("chat-equal")
    assert scenario.hash() == load_scenario("chat-equal").hash()
    assert len(scenario.hash()) == 16
    int(scenario.hash(), 16)
    assert scenario.replace(name="other", description="other").hash() == scenario.hash()
    # Written out in full or left to defaults: the same scenario.
    short = write(tmp_path / "a.yaml", REPLICAS, WORKLOAD)
    long = write(tmp_path / "b.yaml", WORKLOAD, REPLICAS, "model: llama-3-8b", "engine: {block_size: 16}")
    assert load_scenario(short).hash() == load_scenario(long).hash()


def test_the_hash_changes_with_anything_that_changes_a_result():
    scenario = load_scenario("chat-equal")
    lengths = scenario.workload.lengths
    changes: list[dict[str, Any]] = [
        {"model": "llama-3-70b"},
        {"replicas": [{"device": "a100-80g", "count": 5}]},
        {"replicas": [{"device": "a100-80g", "count": 4, "slowdown": 1.1}]},
        {"engine": {"num_gpu_blocks": 100}},
        {"workload": Workload(arrivals=Gamma(cv=1), lengths=lengths)},
        {"workload": Workload(arrivals=Poisson(), lengths=lengths, max_tokens=7)},
        {"workload": Workload(arrivals=Poisson(), lengths=Empirical(table="azure-code-2023"))},
        {"loads": [0.5]},
        {"view": ViewOptions(scrape_interval_s=2)},
        {"slo": SLO(ttft_s=2)},
    ]
    hashes = [scenario.hash()] + [scenario.replace(**change).hash() for change in changes]
    assert len(set(hashes)) == len(hashes)
    assert len({load_scenario(name).hash() for name in scenario_names()}) == len(scenario_names())


def test_the_hash_can_cover_some_keys_only():
    scenario = load_scenario("chat-equal")
    keys = {"model", "replicas", "engine", "workload"}
    assert scenario.replace(loads=[0.8]).hash(keys) == scenario.hash(keys)
    assert scenario.replace(engine={"num_gpu_blocks": 99}).hash(keys) != scenario.hash(keys)
    assert load_scenario("chat-unequal").hash(keys) != scenario.hash(keys)


VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens"


def recorded(tmp_path: Path, workload: str, rows: int = 8000) -> Scenario:
    write(tmp_path / "log.csv", VIDUR, *(f"{i},{i % 90 + 1},5" for i in range(rows)))
    row = '{"timestamp": %d, "input_length": 9, "output_length": 5, "hash_ids": [%d]}'
    write(tmp_path / "log.jsonl", *(row % (i, i) for i in range(rows)))
    return load_scenario(write(tmp_path / "mine.yaml", REPLICAS, f"workload: {workload}"))


REPLAYED = "{arrivals: {kind: replay, path: log.csv}, lengths: {kind: trace, path: log.csv}}"


@pytest.mark.parametrize("workload", [REPLAYED, "{trace: {kind: mooncake, path: log.jsonl}}"])
def test_runs_that_would_share_recorded_arrivals_are_refused(tmp_path: Path, workload: str):
    scenario = recorded(tmp_path, workload)
    with pytest.raises(FairleadError) as error:
        check_runs(scenario, requests=2000, rate=1.0, seeds=range(10))
    assert str(error.value) == (
        "mine: 10 runs of 2,000 requests need 20,000 recorded arrivals, and 4,000 are for evaluation: ask "
        "for at most 2 seeds, or 400 requests each; runs that share arrivals are not independent"
    )
    check_runs(scenario, requests=400, rate=1.0, seeds=range(7, 17))
    check_runs(scenario, requests=2000, rate=1.0, seeds=(4, 5), split="validate")
    with pytest.raises(FairleadError, match=r"make 2 runs, and of the seeds 1, 3 some replay the same one"):
        check_runs(scenario, requests=2000, rate=1.0, seeds=(1, 3))
    with pytest.raises(FairleadError, match=r"4001 requests asked for.*at most 4000"):
        check_runs(scenario, requests=4001, rate=1.0, seeds=(1, 2))


def test_runs_that_share_recorded_lengths_alone_are_not_refused(tmp_path: Path):
    scenario = recorded(tmp_path, "{arrivals: {kind: poisson}, lengths: {kind: trace, path: log.csv}}")
    check_runs(scenario, requests=2000, rate=1.0, seeds=range(10))
    assert scenario.workload.is_recorded
    assert not load_scenario("chat-equal").workload.is_recorded


CONVERSATIONS = (
    "{sessions: {starts: {kind: replay, path: log.csv}, turns: {kind: uniform, min: 1, max: 3}, "
    "lengths: {kind: fixed, prompt: 9, output: 5}, think_time: {mean_s: 1, median_s: 1}}}"
)


def test_of_recorded_starts_sessions_are_counted(tmp_path: Path):
    scenario = recorded(tmp_path, CONVERSATIONS)
    check_runs(scenario, requests=1000, rate=1.0, seeds=range(6))
    with pytest.raises(FairleadError, match=r"7 runs of 1,000 requests \(616 sessions\) need 4,312 recorded"):
        check_runs(scenario, requests=1000, rate=1.0, seeds=range(7))
    with pytest.raises(FairleadError, match="or fewer requests"):
        check_runs(scenario, requests=1000, rate=500.0, seeds=range(6))


def test_prefixes_are_remembered_only_where_they_are_cached(tmp_path: Path):
    lines = (REPLICAS, WORKLOAD, "view: {prefix_memory_blocks: 9}")
    with pytest.raises(FairleadError, match=r"view\.prefix_memory_blocks: no prefix is cached here"):
        load_scenario(write(tmp_path / "mine.yaml", *lines))
    load_scenario(write(tmp_path / "mine.yaml", *lines, "engine: {enable_prefix_caching: true}"))


def test_a_load_is_named_once(tmp_path: Path):
    path = write(tmp_path / "mine.yaml", REPLICAS, WORKLOAD, "loads: [0.5, 0.7, 0.50]")
    with pytest.raises(FairleadError, match=r"loads: 0\.5 is given twice: name each load once"):
        load_scenario(path)


def test_one_trace_has_one_share_for_training(tmp_path: Path):
    with pytest.raises(FairleadError, match=r"workload: the times of log.csv have train_share 0.3"):
        recorded(
            tmp_path,
            "{arrivals: {kind: replay, path: log.csv, train_share: 0.3}, "
            "lengths: {kind: trace, path: log.csv, train_share: 0.6}}",
        )


def test_the_hash_follows_the_content_of_files_not_their_place(tmp_path: Path):
    hashes = []
    for folder, last in (("a", "3,5,5"), ("b", "3,5,5"), ("c", "3,5,6")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "log.csv", "arrived_at,num_prefill_tokens,num_decode_tokens", "0,1,1", last)
        path = write(
            tmp_path / folder / "s.yaml",
            REPLICAS,
            "workload: {arrivals: {kind: poisson}, lengths: {kind: trace, path: log.csv}}",
        )
        hashes.append(load_scenario(path).hash())
    assert hashes[0] == hashes[1] != hashes[2]
    mixed = [
        write(
            tmp_path / folder / "m.yaml",
            REPLICAS,
            MIXTURE % "{weight: 1, lengths: {kind: trace, path: log.csv}}",
        )
        for folder in ("a", "b", "c")
    ]
    hashes = [load_scenario(each).hash() for each in mixed]
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "c" / "log.csv").unlink()
    with pytest.raises(FairleadError, match="there is no file log"):
        load_scenario(path)
