"""Profiles of a made-up model, in Vidur's columns; its operators are known functions."""

import dataclasses
import lzma
from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.simulator.hardware import model
from fairlead.simulator.reference_timing import Scheduled, batch_seconds
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS, read_vidur_profile

TINY = dataclasses.replace(model("llama-3-8b"), layers=2)
HEADS = "n_embd,n_kv_head,num_tensor_parallel_workers"
TOKENS = [1, 2, 4, *range(8, 129, 8)]


def write(folder: Path, name: str, header: str, rows: list[str]) -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def mlp(folder: Path, change=lambda text: text) -> Path:
    times = [f"time_stats.{name}.median" for name in TOKEN_OPERATORS]
    header = ",".join([*times, HEADS, "n_head,n_expanded_embd,vocab_size,num_tokens"])
    rows = [
        ",".join(["0.01"] * 8 + [str(0.1 + 0.001 * n)]) + f",4096,8,{tp},32,14336,128256,{n}"
        for tp in (1, 2)
        for n in TOKENS
        for _ in range(4)
    ]
    return write(folder, "mlp.csv", change(header), [change(row) for row in rows])


def attention(folder: Path, change=lambda text: text) -> Path:
    times = [f"time_stats.{name}.median" for name in ("attn_kv_cache_save", "attn_decode", "attn_prefill")]
    header = ",".join([*times, HEADS, "n_q_head,block_size,batch_size,prefill_chunk_size,kv_cache_size"])
    rows = []
    for tp in (1, 2):
        same = f"4096,8,{tp},32,16"
        for batch in range(1, 17):
            rows += [f"0.002,{0.001 * batch * kv},0,{same},{batch},0,{kv}" for kv in range(64, 1025, 64)]
        for chunk in range(16, 129, 16):
            rows += [f"0.002,,{0.01 * chunk + 0.001 * kv},{same},1,{chunk},{kv}" for kv in range(0, 1025, 64)]
    return write(folder, "attention.csv", change(header), [change(row) for row in rows])


def read(folder: Path, tp: int = 1, **files: Path):
    chosen = {"mlp": folder / "mlp.csv", "attention": folder / "attention.csv", "all_reduce": None, **files}
    return read_vidur_profile(**chosen, facts=TINY, tensor_parallel=tp, block_size=16, max_tokens=96)  # type: ignore[arg-type]


def test_the_sum_of_operators(tmp_path: Path):
    mlp(tmp_path)
    attention(tmp_path)
    found = read(tmp_path)
    assert found.decode_s.shape == (16, 17)
    assert found.prefill_s.shape == (17, 12)
    # 2 layers; 30 tokens are rounded up to 32 before the operators outside attention are looked up.
    per_token = 8 * 0.01 + 0.1 + 0.001 * 32 + 0.002
    assert found.tokens_s[30] == pytest.approx(2e-3 * per_token, rel=0.01)
    decodes = [Scheduled(1, 319, True)] * 5 + [Scheduled(25, 256, False)]
    attended = 1.1 * 0.001 * 5 * 320 + 0.01 * 25 + 0.001 * 256
    assert batch_seconds(found, decodes) == pytest.approx(2e-3 * (per_token + attended), rel=0.05)


def test_a_compressed_file_is_read_too(tmp_path: Path):
    plain = mlp(tmp_path)
    attention(tmp_path)
    packed = tmp_path / "mlp.csv.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    np.testing.assert_array_equal(read(tmp_path, mlp=packed).tokens_s, read(tmp_path).tokens_s)


def test_tensor_parallelism_needs_the_collectives(tmp_path: Path):
    mlp(tmp_path)
    attention(tmp_path)
    with pytest.raises(FairleadError, match=r"needs all_reduce \(Vidur's all_reduce\.csv\)"):
        read(tmp_path, tp=2)
    header = "time_stats.all_reduce.median,num_workers,devices_per_node,size"
    rows = [f"{0.05 + 1e-4 * n},2,2,{n * 8192}" for n in TOKENS for _ in range(4)]
    collective = write(tmp_path, "all_reduce.csv", header, rows)
    with pytest.raises(FairleadError, match="has no use for"):
        read(tmp_path, all_reduce=collective)
    found = read(tmp_path, tp=2, all_reduce=collective)
    extra = found.tokens_s[64] - read(tmp_path).tokens_s[64]
    assert extra == pytest.approx(2e-3 * 2 * (0.05 + 64e-4 + 0.02), rel=0.02)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("mlp", "time_stats.add.median", "time_stats.sub.median", "mlp.csv lacks the column time_stats.add"),
        ("attention", "attn_decode", "attn_encode", "attention.csv lacks the column time_stats.attn_decode"),
        ("mlp", ",4096,", ",2048,", "no rows for llama-3-8b with n_embd 4096 .*holds 2048"),
        ("mlp", "0.01,0.01,", "-0.01,0.01,", "has the value -0.01: times are finite and not negative"),
        ("mlp", "0.01,0.01,", "inf,0.01,", "has the value inf"),
        ("mlp", "0.01,0.01,", "fast,0.01,", "does not hold numbers"),
    ],
)
def test_bad_profiles_are_refused_in_one_line(tmp_path: Path, file, old, new, message):
    def change(text: str) -> str:
        return text.replace(old, new)

    mlp(tmp_path, change if file == "mlp" else lambda text: text)
    attention(tmp_path, change if file == "attention" else lambda text: text)
    with pytest.raises(FairleadError, match=message) as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_the_wrong_tensor_parallelism_and_too_few_points_are_refused(tmp_path: Path):
    mlp(tmp_path)
    attention(tmp_path)
    with pytest.raises(FairleadError, match=r"with num_tensor_parallel_workers 4 .*holds 1, 2"):
        read(tmp_path, tp=4, all_reduce=tmp_path / "mlp.csv")
    lines = (tmp_path / "mlp.csv").read_text().splitlines()
    (tmp_path / "mlp.csv").write_text("\n".join(lines[:20]) + "\n")
    with pytest.raises(FairleadError, match="was profiled for 5 numbers of tokens; at least 8 are needed"):
        read(tmp_path)
    mlp(tmp_path)
    lines = (tmp_path / "attention.csv").read_text().splitlines()
    (tmp_path / "attention.csv").write_text("\n".join(lines[:50]) + "\n")
    with pytest.raises(FairleadError, match=r"attn_kv_cache_save\.median was profiled for 4"):
        read(tmp_path)
    with pytest.raises(FairleadError, match="cannot read"):
        read(tmp_path, mlp=tmp_path / "absent.csv")
    (tmp_path / "bad.csv.xz").write_text("no")
    with pytest.raises(FairleadError, match="is not a CSV file"):
        read(tmp_path, mlp=tmp_path / "bad.csv.xz")
