"""The cache of compiled code: named after what was compiled, and an error that helps where there is none."""

import os
import subprocess
import sys
from pathlib import Path

from fairlead import compiled


def test_the_cache_is_named_after_the_sources() -> None:
    assert compiled.cache_directory().name == compiled.source_digest()
    assert len(compiled.source_digest()) == 16


def test_numba_keeps_its_own_settings() -> None:
    import numba

    settings: object = numba.config
    assert compiled.source_digest() not in str(getattr(settings, "CACHE_DIR", ""))


def test_old_caches_are_removed_and_this_one_is_not(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(compiled, "cache_directory", lambda: tmp_path / "this")
    for name in ("this", "old", "recent"):
        (tmp_path / name).mkdir()
    for name in ("this", "old"):
        os.utime(tmp_path / name, (0, 0))
    compiled.remove_old_caches()
    assert {path.name for path in tmp_path.iterdir()} == {"this", "recent"}


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "fairlead", "simulate", "--scenario", "chat-equal"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "set XDG_CACHE_HOME to a directory that can be written to" in done.stderr
    assert "Traceback" not in done.stderr
