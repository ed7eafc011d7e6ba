"""Profiles written for Vidur: read back here, and by Vidur itself where it is installed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairlead.calibrate.export import CACHE, export_vidur
from fairlead.calibrate.operators import VidurTables, vidur_tables
from fairlead.errors import FairleadError
from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import analytic
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS, read_vidur_profile

LLAMA = model("llama-3-8b")


def tables(**limits: int) -> VidurTables:
    chosen = {"max_tokens": 256, "max_seqs": 16, "max_context": 600, "granularity": 64, **limits}
    return vidur_tables(analytic(LLAMA, device("h100")), **chosen)


def test_the_columns_and_rows(tmp_path: Path):
    written = export_vidur(tables(), LLAMA, "h100", 1, 16, tmp_path / "out")
    assert [path.name for path in written.files] == [
        "mlp.csv",
        "attention.csv",
        "all_reduce.csv",
        "send_recv.csv",
    ]
    header, *rows = written.files[0].read_text().splitlines()
    assert len(rows) == 32
    assert "time_stats.mlp_up_proj.median" in header
    assert written.options["replica_config_device"] == "h100"
    found = list((tmp_path / "out" / CACHE).rglob("*.xz"))
    assert len(found) == 4


def test_our_own_reader_understands_it(tmp_path: Path):
    made = tables()
    written = export_vidur(made, LLAMA, "h100", 1, 16, tmp_path / "out")
    read = read_vidur_profile(
        written.files[0], written.files[1], None, LLAMA, tensor_parallel=1, block_size=16, max_tokens=256
    )
    np.testing.assert_allclose(read.tokens_s[8::8], made.tokens_s[: len(read.tokens_s[8::8])], rtol=0.05)
    np.testing.assert_allclose(read.decode_s, made.decode_s, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("name", "where"), [("qwen2.5-7b", "h100"), ("llama-3-8b", "l40s")])
def test_what_vidur_does_not_know_is_refused(tmp_path: Path, name: str, where: str):
    with pytest.raises(FairleadError, match="Vidur does not know"):
        export_vidur(tables(), model(name), where, 1, 16, tmp_path / "out")


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(FairleadError, match="not an empty folder"):
        export_vidur(tables(), LLAMA, "h100", 1, 16, tmp_path)


TRAINED = """
import sys, json
import numpy as np
from vidur.config import RandomForrestExecutionTimePredictorConfig, ReplicaConfig, CacheConfig
from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
from vidur.types import ExecutionTimePredictorType
options = json.loads(sys.argv[1])
own = {}
for key, value in options.items():
    if "predictor_config_" in key:
        kind = str if key.endswith(("dir", "dataset")) else float if "overhead" in key else int
        own[key.split("predictor_config_")[1]] = kind(value)
predictor = ExecutionTimePredictorRegistry.get(
    ExecutionTimePredictorType.RANDOM_FORREST,
    predictor_config=RandomForrestExecutionTimePredictorConfig(
        **own, num_estimators=[10], max_depth=[32], min_samples_split=[2],
        k_fold_cv_splits=2, num_training_job_threads=1,
    ),
    replica_config=ReplicaConfig(
        num_pipeline_stages=1, tensor_parallel_size=1, device="h100", network_device="h100_dgx"
    ),
    cache_config=CacheConfig(),
)
out = {
    op: [[*map(int, key), value] for key, value in table.items()]
    for op, table in predictor._predictions.items()
}
print("RESULT" + json.dumps(out))
"""


@pytest.mark.vidur
def test_vidur_itself_trains_on_it_without_a_network(tmp_path: Path):
    """Its forests reproduce the tables; `HF_HUB_OFFLINE` is all that they need."""
    import json

    made = tables()
    written = export_vidur(made, LLAMA, "h100", 1, 16, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", TRAINED, json.dumps(written.options)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    trained = _as_tables(json.loads(done.stdout.rpartition("RESULT")[2]), made)
    draw = np.random.default_rng(7)
    errors = []
    for _ in range(500):
        contexts = draw.integers(32, 550, draw.integers(0, 17)).tolist()
        chunk = int(draw.integers(1, 240)) if draw.random() < 0.5 or not contexts else 0
        chunks = [(int(draw.integers(0, 300)), chunk)] * (chunk > 0)
        wanted = made.iteration_s(contexts, chunks)
        errors.append(abs(trained.iteration_s(contexts, chunks) / wanted - 1))
    print(f"mean {np.mean(errors):.2%}, p99 {np.percentile(errors, 99):.2%}, max {np.max(errors):.2%}")
    assert np.mean(errors) < 0.005
    assert np.max(errors) < 0.04


def _as_tables(predicted: dict[str, Any], like: VidurTables) -> VidurTables:
    """What Vidur's forests predicted, in our form."""
    rounded = np.arange(8, like.max_tokens + 1, 8)
    tokens = sum(np.array([dict(predicted[name])[n] for n in rounded]) for name in TOKEN_OPERATORS)
    decode, prefill = np.zeros_like(like.decode_s), np.zeros_like(like.prefill_s)
    for b, k, ms in predicted["attn_decode"]:
        decode[b - 1, k // 64] = ms
    for k, c, ms in predicted["attn_prefill"]:
        prefill[k // 64, c // 32 - 1] = ms
    scale = 1e-3 * LLAMA.layers
    return VidurTables(scale * np.asarray(tokens), scale * decode, scale * prefill, like.granularity)
