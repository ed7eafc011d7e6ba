import csv

import pytest

from fairlead import FairleadError
from fairlead.train.tracking import CsvLog, Tracker

COLUMNS = ("iteration", "losses/value_loss", "evaluation/objective")


def read(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_pitfall_30_rows_match_their_header(tmp_path):
    log = CsvLog(tmp_path / "log.csv", COLUMNS)
    # The order of the keys does not matter, their names do.
    log.write({"evaluation/objective": 2.5, "iteration": 0, "losses/value_loss": float("nan")})
    with pytest.raises(ValueError, match="losses/value_los"):
        log.write({"iteration": 1, "losses/value_los": 1.0, "evaluation/objective": 1.0})
    with pytest.raises(ValueError, match="evaluation/objective"):
        log.write({"iteration": 1, "losses/value_loss": 1.0})
    log.close()
    assert read(tmp_path / "log.csv") == [list(COLUMNS), ["0", "", "2.5"]]


def test_a_resumed_log_keeps_earlier_rows_only(tmp_path):
    path = tmp_path / "log.csv"
    log = CsvLog(path, COLUMNS)
    for i in range(4):
        log.write({"iteration": i, "losses/value_loss": i, "evaluation/objective": 0})
    log.close()
    with path.open("a") as file:
        file.write("4,1.")  # a crash in the middle of a row
    log = CsvLog(path, COLUMNS, keep_below=2)
    log.write({"iteration": 2, "losses/value_loss": 9, "evaluation/objective": 0})
    log.close()
    assert [row[:2] for row in read(path)[1:]] == [["0", "0.0"], ["1", "1.0"], ["2", "9.0"]]


def test_a_log_with_another_header_is_not_touched(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(FairleadError, match="other columns"):
        CsvLog(path, COLUMNS, keep_below=1)
    assert path.read_text() == "a,b\n1,2\n"


def test_the_same_numbers_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Tracker(tmp_path, "training", COLUMNS) as tracker:
        tracker.write({"iteration": 0, "losses/value_loss": 1.5, "evaluation/objective": float("nan")})
        tracker.write({"iteration": 1, "losses/value_loss": 0.5, "evaluation/objective": 7.0})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "training"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("losses/value_loss")] == [(0, 1.5), (1, 0.5)]
    assert [(e.step, e.value) for e in events.Scalars("evaluation/objective")] == [(1, 7.0)]
