"""The engine against recorded runs of an independent restatement of Vidur's schedulers.

`recorded/` holds small runs on made-up workloads and iteration times, as `benchmarks/fidelity.py` reads
them; those called `_short` have too few KV blocks, so that requests are preempted, and a log of batches.
"""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import fidelity
from fairlead.errors import FairleadError

RECORDED = Path(__file__).parent / "recorded"


def test_every_request_agrees_with_the_recorded_runs() -> None:
    rows = fidelity.run(RECORDED, [])
    assert {row["cell"] for row in rows} == {
        "sarathi",
        "sarathi_short",
        "vllm",
        "vllm_short",
        "v1",
        "v1_short",
    }
    for row in rows:
        assert row["max_abs_error_s"] < 1e-9, row
        assert row["p99_relative_error"] < 1e-9
        assert row["restarts_that_differ"] == 0
        assert (row["restarts"] > 0) == row["cell"].endswith("_short")
        assert row.get("batches_identical") == row.get("batches_compared")


def test_what_cannot_be_run_is_named(tmp_path: Path) -> None:
    shutil.copytree(RECORDED, tmp_path / "runs")
    about = tmp_path / "runs" / "vidur_25e0082" / "v1.json"
    content = json.loads(about.read_text())
    about.write_text(
        json.dumps({**content, "args": content["args"] + " --replica_config_num_pipeline_stages 2"})
    )
    (tmp_path / "runs" / "vidur_7d47513" / "vllm.requests.csv").write_text("request_id\n0\n")
    (row,) = fidelity.run(tmp_path / "runs", ["v1"])
    assert "pipeline" in row["error"]
    (row,) = fidelity.run(tmp_path / "runs", ["vllm"])
    assert "cannot be read: KeyError 'arrived_at'" in row["error"]
    with pytest.raises(FairleadError, match=r"no cell sarathy in .*there are: v1, v1_short, sarathi"):
        fidelity.run(RECORDED, ["sarathy"])
