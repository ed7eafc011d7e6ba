"""Results on stdout, everything else on stderr."""

import json

import numpy as np
import pytest
import typer

from fairlead.cli.output import INTERRUPTED, ProgressBar, on_interrupt, print_json, print_table


def test_json_takes_numpy_scalars_and_stands_alone_on_stdout(capsys):
    print_json({"mean": np.float64(0.5), "n": np.int64(3)})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"mean": 0.5, "n": 3}
    assert err == ""


def test_a_value_that_is_not_finite_is_never_printed_as_json():
    with pytest.raises(ValueError, match="JSON"):
        print_json({"mean": float("nan")})


def test_a_table_keeps_every_row(capsys):
    print_table(("metric", "value"), [("ttft_mean_s", "0.2"), ("e2e_mean_s", "4.5")], right=("value",))
    out, _ = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if line][-2:] == [
        ["ttft_mean_s", "0.2"],
        ["e2e_mean_s", "4.5"],
    ]


def test_progress_without_a_terminal_is_lines_on_stderr(capsys):
    with ProgressBar() as progress:
        for done in range(101):
            progress("simulating", done, 100)
        progress("simulating", 100, 100)
        progress("rendering", 1, 1)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["simulating: 0 %", "simulating: 100 %", "rendering: 100 %"]


def test_ctrl_c_becomes_an_exit_code_and_a_line(capsys):
    with pytest.raises(typer.Exit) as stop, on_interrupt(lambda: "a checkpoint is in runs/x"):
        raise KeyboardInterrupt
    assert stop.value.exit_code == INTERRUPTED
    assert capsys.readouterr().err == "interrupted: a checkpoint is in runs/x\n"
