"""Help pages, exit codes and the one line that an error is."""

import subprocess
import sys
import time

import pytest

from fairlead import __version__
from fairlead.cli import scenarios
from fairlead.errors import FairleadError
from fairlead.view.preference import DEFAULT_FAVOR

VERBS = ("scenarios", "simulate", "train", "evaluate", "report", "serve", "replay-log", "emulate", "bench")


def one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1 and text.endswith("\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(fairlead, verb):
    ended = fairlead(verb, "--help")
    assert ended.code == 0
    assert ended.err == ""
    assert "Example" in ended.out and f"fairlead {verb}" in ended.out.split("Example")[1]


@pytest.mark.parametrize("verb", ["simulate", "evaluate", "serve"])
def test_the_default_of_the_dial_is_the_one_that_is_used(fairlead, verb):
    shown = " ".join(fairlead(verb, "--help").out.replace("│", " ").split())
    assert f"Default: {DEFAULT_FAVOR:g}: end-to-end latency, but no long waits" in shown


def test_help_keeps_what_stands_in_brackets(fairlead):
    shown = "".join(fairlead("evaluate", "--help").out.replace("│", " ").split())
    assert "pipinstall'fairlead[vidur]'" in shown


def test_without_a_verb_all_are_listed(fairlead):
    for args in ((), ("--help",), ("-h",)):
        ended = fairlead(*args)
        assert ended.code == 0
        assert all(verb in ended.out for verb in VERBS)


def test_version(fairlead):
    assert fairlead("--version") == (0, f"fairlead {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (("scenario",), "scenarios"),  # a misspelt verb: the right one is named
        (("simulate",), "--scenario"),
        (("simulate", "--scenario", "chat-equal", "--seed", "x"), "--seed"),
        (("evaluate", "--scenario", "chat-equal"), "--out"),
        (("bench", "nothing"), "decision"),
        (("evaluate", "--scenario", "chat-equal", "--out", "x", "--seeds", "1"), "--seeds"),
        (("simulate", "--no-such-option"), "--no-such-option"),
    ],
)
def test_a_usage_error_is_one_line_that_points_to_help(fairlead, args, hint):
    ended = fairlead(*args)
    assert (ended.code, ended.out) == (2, "")
    assert one_line(ended.err) and hint in ended.err and "--help" in ended.err


def test_a_mendable_error_is_one_line(fairlead, monkeypatch):
    def fail(*_: object) -> None:
        raise FairleadError("this is wrong;\n  do that instead")

    monkeypatch.setattr(scenarios, "_list", fail)
    assert fairlead("scenarios") == (2, "", "error: this is wrong; do that instead\n")


def test_a_bug_is_not_dressed_up_as_a_user_error(monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scenarios, "_list", fail)
    from fairlead.cli import main

    with pytest.raises(RuntimeError, match="a bug"):
        main(["scenarios"])


def test_ctrl_c_says_what_was_saved(fairlead, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fairlead.evaluate.tournament.simulate_once", interrupted)
    ended = fairlead("simulate", "--scenario", "chat-equal")
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.endswith("interrupted: nothing was saved\n")  # after what is said of compiling


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom fairlead.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(len({'numpy', 'numba', 'pydantic', 'torch', 'yaml', 'matplotlib'} & set(sys.modules)))"
    )
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
    assert time.perf_counter() - began < 3.0  # 0.2 s on an idle machine


def test_python_dash_m_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "fairlead", "--version"], capture_output=True, text=True)
    assert done.stdout == f"fairlead {__version__}\n"
