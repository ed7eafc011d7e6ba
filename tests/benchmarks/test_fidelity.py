"""The engine against recorded runs of an independent restatement of Vidur's schedulers.

`recorded/` holds small runs on made-up workloads and iteration times, as `benchmarks/fidelity.py` reads
them; those called `_short` have too few KV blocks, so that requests are preempted, and a log of batches.
`_cached` ones have prefix caching and serve conversations (`sessions.csv`), with prompts that come twice
and answers that fill their last block.
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
        "v1_cached",
        "v1_cached_short",
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
    cached = tmp_path / "runs" / "vidur_25e0082" / "v1_cached.json"
    content = json.loads(cached.read_text())
    for more, why in (
        (
            "--cache_config_num_preallocate_tokens 32",
            "32 tokens are taken ahead, but vidur_v1 takes 4 blocks",
        ),
        ("--trace_request_generator_config_trace_file ./gone.csv", "FileNotFoundError"),
    ):
        cached.write_text(json.dumps({**content, "args": f"{content['args']} {more}"}))
        (row,) = fidelity.run(tmp_path / "runs", ["v1_cached"])
        assert why in row["error"]
    cached.write_text(json.dumps({**content, "args": content["args"].rsplit(" --", 1)[0]}))
    (row,) = fidelity.run(tmp_path / "runs", ["v1_cached"])
    assert "without a trace" in row["error"]
    (row,) = fidelity.run(tmp_path / "runs", ["vllm"])
    assert "cannot be read: KeyError 'arrived_at'" in row["error"]
    with pytest.raises(
        FairleadError, match=r"no cell sarathy in .*there are: v1, v1_cached, v1_cached_short"
    ):
        fidelity.run(RECORDED, ["sarathy"])
