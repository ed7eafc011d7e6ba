"""`fairlead evaluate` and `fairlead report`, from the command line."""

import json
from importlib.metadata import PackageNotFoundError

import pytest
from tests.emulated import emulated

from fairlead.policy import packaged
from fairlead.policy.catalogue import ALL_HEURISTICS
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.workload.scenario import load_scenario

SMALL = ("evaluate", "--scenario", "uniform-lengths", "--load", "0.7", "--requests", "60", "--seeds", "2")
FILES = ("results.json", "requests.parquet", "report.html")


def test_it_writes_results_requests_and_a_report_and_prints_a_table(fairlead, tmp_path):
    out = tmp_path / "run"
    ended = fairlead(*SMALL, "--routers", "lor,least_work", "--routers", "random", "--out", str(out))
    assert ended.code == 0
    assert all((out / name).stat().st_size > 0 for name in FILES)
    assert all(router in ended.out for router in ("lor", "least_work", "random"))
    assert str(out / "report.html") in ended.err
    results = json.loads((out / "results.json").read_text())
    assert len(results["rows"]) == 3 * 2


def test_by_default_all_heuristics_and_the_generalist_compete(fairlead, tmp_path, monkeypatch):
    export_onnx(RouterNetwork(), tmp_path / "generalist.onnx", config={}, training={})
    monkeypatch.setattr(packaged, "DIRECTORY", tmp_path)
    ended = fairlead(*SMALL, "--out", str(tmp_path / "run"), "--json")
    assert ended.code == 0, ended.err
    routers = json.loads(ended.out)["configuration"]["routers"]
    assert [each["name"] for each in routers] == [*ALL_HEURISTICS, "generalist"]


def test_the_dependence_of_a_policy_with_a_memory_is_refused_before_anything_runs(fairlead, tmp_path):
    file = tmp_path / "remembers.onnx"
    export_onnx(RouterNetwork(gru_layers=1), file, config={}, training={})
    out = tmp_path / "run"
    ended = fairlead(*SMALL, "--routers", f"lor,{file}", "--dependence", "--out", str(out))
    assert (ended.code, ended.out) == (2, "")
    assert "error: remembers has a memory" in ended.err
    assert not out.exists()


def test_json_on_stdout_is_the_results_file(fairlead, tmp_path):
    out = tmp_path / "run"
    ended = fairlead(*SMALL, "--routers", "lor,random", "--out", str(out), "--json")
    assert ended.code == 0
    assert json.loads(ended.out) == json.loads((out / "results.json").read_text())


def test_a_folder_that_holds_a_run_is_left_alone(fairlead, tmp_path):
    run = (*SMALL, "--routers", "lor,random", "--out", str(tmp_path / "run"))
    assert fairlead(*run).code == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    ended = fairlead(*run, "--seed", "7")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_the_report_can_be_rendered_again(fairlead, tmp_path):
    out = tmp_path / "run"
    assert fairlead(*SMALL, "--routers", "lor,random", "--out", str(out)).code == 0
    (out / "report.html").unlink()
    ended = fairlead("report", str(out))
    assert ended.code == 0 and ended.out.strip() == str(out / "report.html")
    assert (out / "report.html").is_file()


def test_a_report_of_nothing_is_an_error(fairlead, tmp_path):
    ended = fairlead("report", str(tmp_path))
    assert ended.code == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1


@pytest.mark.parametrize("options", [("--routers", "lor,lor2"), ("--load", "2"), ("--routers", "none.onnx")])
def test_nothing_is_written_when_the_request_makes_no_sense(fairlead, tmp_path, options):
    out = tmp_path / "run"
    ended = fairlead(*SMALL, *options, "--out", str(out))
    assert ended.code == 2 and not out.exists()


def test_a_training_log_is_drawn_into_the_report(fairlead, tmp_path):
    log = tmp_path / "training.csv"
    log.write_text("iteration,charts/decisions,evaluation/objective\n0,1000,6.5\n1,2000,\n2,3000,5.9\n")
    out = tmp_path / "run"
    options = ("--routers", "lor,random", "--out", str(out), "--training-log")
    ended = fairlead(*SMALL, *options, str(tmp_path / "none.csv"))
    assert ended.code == 2 and "none.csv" in ended.err and not out.exists()
    assert fairlead(*SMALL, *options, str(log)).code == 0
    assert "held-out objective" in (out / "report.html").read_text()


def test_without_vidur_its_option_says_what_to_install(fairlead, tmp_path, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("fairlead.vidur.offline.version", absent)
    ended = fairlead("evaluate", "-s", "chat-equal", "--simulator", "vidur", "--out", str(tmp_path / "x"))
    assert ended.code == 2
    assert ended.err == (
        "error: the simulator Vidur is not installed: pip install 'fairlead[vidur]' (Linux on x86-64)\n"
    )


def test_live_servers_are_measured(fairlead, tmp_path):
    scenario = tmp_path / "tiny.yaml"
    scenario.write_text(
        "replicas: [{device: a100-80g, count: 2}]\n"
        "workload:\n  arrivals: {kind: poisson}\n"
        "  lengths: {kind: uniform, prompt: {min: 5, max: 9}, output: {min: 2, max: 5}}\n"
    )
    out = tmp_path / "run"
    with emulated(load_scenario(scenario)) as urls:
        servers = [option for url in urls for option in ("--backend", url)]
        run = ("evaluate", *servers, "-s", str(scenario), "--routers", "lor,random", "--seeds", "2")
        ended = fairlead(*run, "--requests", "10", "--rate", "40", "--out", str(out))
        assert ended.code == 0, ended.err
        ended_again = fairlead(*run, "--rate", "1", "--minutes", "1", "--out", str(tmp_path / "long"))
    assert "note: measured on live servers" in ended.err and (out / "report.html").is_file()
    assert ended_again.code == 2 and "--minutes" in ended_again.err and not (tmp_path / "long").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--rate", "1"),
        ("--minutes", "1"),
        ("--backend", "http://127.0.0.1:1", "--simulator", "vidur"),
        ("--backend", "http://127.0.0.1:1", "--dependence"),
        ("--backend", "http://127.0.0.1:1"),
        ("--backend", "nonsense"),
        ("--backend", "http://127.0.0.1:1", "--rate", "2"),
    ],
)
def test_live_options_that_make_no_sense_are_one_line(fairlead, tmp_path, options):
    ended = fairlead(*SMALL, "--routers", "lor", "--out", str(tmp_path / "run"), *options)
    assert ended.code == 2 and ended.err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()
