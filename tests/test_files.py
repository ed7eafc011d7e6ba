"""Nothing is left half written."""

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from fairlead.errors import FairleadError
from fairlead.files import atomic, keep, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


def keep_often(path: Path) -> None:
    for _ in range(300):
        keep(path, json.dumps({"rate": 1.5}), "rate")


def test_processes_may_keep_the_same_at_once(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "rate.json"
    with ProcessPoolExecutor(4, get_context("spawn")) as pool:
        list(pool.map(keep_often, [path] * 4))
    assert json.loads(path.read_text()) == {"rate": 1.5}
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_kept_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FairleadError, match=r"cannot keep the measured rate in .*rate\.json: "):
        keep(tmp_path / "file" / "rate.json", "1.5", "rate")
