"""Nothing is overwritten."""

from pathlib import Path

import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.files import RUN_FILES, prepare_output_directory


def test_a_new_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    assert prepare_output_directory(tmp_path / "a" / "b").is_dir()
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    prepare_output_directory(tmp_path / "a" / "b")


@pytest.mark.parametrize("name", [*RUN_FILES, ".requests.parquet.partial"])
def test_another_run_is_not_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(FairleadError, match="already holds another run"):
        prepare_output_directory(tmp_path)
    assert (tmp_path / name).read_text() == "precious"


def test_a_file_is_not_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FairleadError):
            prepare_output_directory(path)
