"""Logs that cannot be written lose lines, which are counted; nothing else happens."""

import errno
import io
import json
import os
from pathlib import Path

import pytest

from fairlead.errors import FairleadError
from fairlead.serve.logs import EventLog, JsonLines


class Events(EventLog):
    def __init__(self):
        self.seen = []

    def __call__(self, event, **details):
        self.seen.append((event, details))


def lines(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_text().splitlines()]


def test_lines_are_appended_and_rotated(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path, max_bytes=20)
    for n in range(5):
        log.write({"n": n})
        log.flush()
    log.close()
    assert lines(tmp_path / "log.jsonl.1") == [0, 1, 2]
    assert lines(path) == [3, 4]


def test_what_cannot_be_opened_is_refused(tmp_path):
    with pytest.raises(FairleadError, match=r"cannot write the log .*missing"):
        JsonLines(tmp_path / "missing" / "log.jsonl")


def test_a_full_disk_loses_whole_lines_and_is_told_once(tmp_path, monkeypatch):
    """Half of a batch is written, then nothing: no half a line stays. With space again all is as before."""
    path, events, full = tmp_path / "log.jsonl", Events(), [False]

    def write(file, data, write=os.write):
        if not full[0]:
            return write(file, data)
        if len(data) < 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[: len(data) // 2])

    monkeypatch.setattr("os.write", write)
    log = JsonLines(path, events=events)
    for n, is_full in enumerate([False, True, True, False, True]):
        full[0] = is_full
        log.write({"n": n})
        log.write({"n": 10 + n})
        log.flush()
    assert lines(path) == [0, 10, 3, 13]
    assert log.lost == 6
    assert [event for event, _ in events.seen] == ["log_failed"] * 2
    assert events.seen[0][1]["error"] == "[Errno 28] No space left on device"


def test_a_part_that_was_written_is_not_written_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("os.write", lambda file, data, write=os.write: write(file, data[:3]))
    log = JsonLines(tmp_path / "log.jsonl")
    log.write({"n": 1})
    log.close()
    assert lines(tmp_path / "log.jsonl") == [1]


def test_a_rotation_that_fails_goes_on_with_the_old_file(tmp_path):
    """The descriptor stays open: a closed one's number would be given to a client's connection."""
    path, events = tmp_path / "log.jsonl", Events()
    (tmp_path / "log.jsonl.1").mkdir()
    log = JsonLines(path, max_bytes=16, events=events)
    for n in range(5):
        log.write({"n": n})
        log.flush()
    assert lines(path) == [0, 1, 2, 3, 4]
    assert {event for event, _ in events.seen} == {"log_failed"}
    assert log.lost == 0
    log.close()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("closed")])
def test_events_that_nobody_can_read_are_no_error(monkeypatch, error):
    class Full(io.StringIO):
        def flush(self):
            raise error

    monkeypatch.setattr("sys.stderr", Full())
    EventLog()("draining", in_flight=1)


def test_a_rotation_that_failed_half_way_is_made_up_for(tmp_path, monkeypatch):
    """The file was renamed, and a new one could not be opened: the next rotation begins one."""
    path, full, opened = tmp_path / "log.jsonl", [True], os.open
    log = JsonLines(path, max_bytes=16, events=Events())

    def open_(*args):
        if full[0]:
            raise OSError(errno.EMFILE, "Too many open files")
        return opened(*args)

    monkeypatch.setattr("os.open", open_)
    for n in range(8):
        full[0] = n < 4
        log.write({"n": n})
        log.flush()
    log.close()
    assert lines(tmp_path / "log.jsonl.1")[-1] == 7 or lines(path)[-1] == 7
    assert path.exists() and log.lost == 0
