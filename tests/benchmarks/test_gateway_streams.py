"""The benchmark of many open streams, small: every stream open at once, complete, and counted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.serve.descriptors import file_limit, most_connections, raise_limit

STREAMS = 500


def test_500_streams_are_open_at_once_complete_and_counted(tmp_path):
    raise_limit()
    if most_connections() < STREAMS:
        pytest.skip(f"{STREAMS} streams need more open files than the {file_limit()} allowed here")
    script = Path(__file__).parents[2] / "benchmarks" / "gateway_streams.py"
    counts = ["--streams", str(STREAMS), "--events", "2", "--pause", "0.1", "--requests", "2000"]
    command = [sys.executable, str(script), *counts, "--json", str(tmp_path / "streams.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "streams.json").read_text())
    held, growth = found["held"], found["growth"]
    assert held["begun"] == held["open_at_once"] == held["complete"] == STREAMS
    assert held["events_seen"] == held["events_expected"] == 3 * STREAMS
    assert (growth["good"], growth["other"]) == (2000, 0)
    assert found["sent"] == found["answered"] == found["logged"] == STREAMS + 2001
    # Memory: 10,000 streams fit in 1 GB if one takes less than 80 kB (it takes about 8).
    assert held["kb_per_stream"] < 80
    assert found["peak_mb"] < 1000
