from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from fairlead.calibrate.fit import COLUMNS, Measurements, fit, read_measurements
from fairlead.errors import FairleadError
from fairlead.simulator.fitted import read_coefficients, write_coefficients
from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import TIMING_FIELDS, Coefficients, analytic

LLAMA = analytic(model("llama-3-8b"), device("a100-80g"))


def observed(
    truth: Coefficients, rows: int = 1500, noise: float = 0.02, most: int = 2048, batch: int = 128
) -> Measurements:
    draw = np.random.default_rng(11)
    decodes = draw.integers(0, batch, rows)
    chunk = np.where(draw.random(rows) < 0.6, draw.integers(1, most, rows), 0)
    chunk = np.maximum(chunk, decodes == 0)
    behind = draw.integers(0, 4000, rows)
    tokens, seqs = decodes + chunk, decodes + (chunk > 0)
    kv = decodes * draw.integers(50, 3000, rows)
    pairs = chunk * (behind + (chunk + 1) / 2)
    seconds = (
        truth.base_s
        + np.maximum(truth.weights_s, truth.token_s * tokens)
        + truth.comm_s * tokens
        + truth.seq_s * seqs
        + truth.kv_s * kv
        + truth.pair_s * pairs
    )
    seconds = seconds * draw.lognormal(0, noise, rows)
    return Measurements(*(np.asarray(c, np.float64) for c in (tokens, seqs, kv, pairs, seconds)))


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_known_coefficients_are_recovered_from_noisy_measurements(tensor_parallel: int):
    truth = analytic(model("llama-3-70b"), device("h200"), tensor_parallel)
    found = fit(observed(truth))
    c = found.coefficients
    assert c.base_s + c.weights_s == pytest.approx(truth.base_s + truth.weights_s, rel=0.02)
    assert c.token_s + c.comm_s == pytest.approx(truth.token_s + truth.comm_s, rel=0.02)
    assert c.kv_s == pytest.approx(truth.kv_s, rel=0.05)
    assert c.pair_s == pytest.approx(truth.pair_s, rel=0.05)
    assert found.r2 > 0.99
    assert 0.01 < found.mean_relative_error < 0.02
    assert found.notes == ()


def test_without_noise_nothing_is_left():
    found = fit(observed(LLAMA, noise=0.0))
    assert found.max_relative_error < 2e-3
    assert found.coefficients.weights_s / found.coefficients.token_s == pytest.approx(
        LLAMA.weights_s / LLAMA.token_s, rel=0.02
    )


def test_what_the_measurements_do_not_decide_is_said():
    (note,) = fit(observed(LLAMA, most=50, batch=40)).notes
    assert "token_s is only an upper bound" in note
    large = observed(LLAMA)
    large = Measurements(*(getattr(large, name)[large.tokens > 300] for name in COLUMNS))
    (note,) = fit(large).notes
    assert "base_s and weights_s cannot be told apart" in note


def test_too_few_or_degenerate_measurements_are_refused():
    good = observed(LLAMA, rows=200)
    with pytest.raises(FairleadError, match="12 measurements are too few"):
        fit(Measurements(*(getattr(good, name)[:12] for name in COLUMNS)))
    fixed = {name: getattr(good, name) for name in COLUMNS}
    with pytest.raises(FairleadError, match="kv_tokens is the same in all measurements"):
        fit(Measurements(**{**fixed, "kv_tokens": np.zeros(200)}))
    with pytest.raises(FairleadError, match="seqs and kv_tokens always change together"):
        fit(Measurements(**{**fixed, "kv_tokens": 1000 * good.seqs}))
    with pytest.raises(FairleadError, match=r"all measurements took 0\.02 s"):
        fit(Measurements(**{**fixed, "seconds": np.full(200, 0.02)}))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("seconds", -1.0, "row 3: seconds is -1"),
        ("seconds", np.nan, "row 3: seconds is nan"),
        ("tokens", 0.0, "row 3: tokens is 0; it must be at least 1"),
        ("seqs", 1e9, "row 3: more sequences than new tokens"),
    ],
)
def test_senseless_values_are_refused(column: str, value: float, message: str):
    good = observed(LLAMA, rows=50)
    values = {name: getattr(good, name).copy() for name in COLUMNS}
    values[column][3] = value
    with pytest.raises(FairleadError, match=message):
        Measurements(**values)


def test_files_of_measurements(tmp_path: Path):
    good = observed(LLAMA, rows=40)
    table = pa.table({name: getattr(good, name) for name in COLUMNS})
    csv.write_csv(table, tmp_path / "m.csv")
    parquet.write_table(table, tmp_path / "m.parquet")
    for name in ("m.csv", "m.parquet"):
        np.testing.assert_array_equal(read_measurements(tmp_path / name).seconds, good.seconds)
    csv.write_csv(table.drop_columns(["pairs"]), tmp_path / "short.csv")
    with pytest.raises(FairleadError, match=r"short\.csv lacks the column pairs"):
        read_measurements(tmp_path / "short.csv")
    (tmp_path / "twice.csv").write_text("tokens," + ",".join(COLUMNS) + "\n1,1,1,1,1,1\n")
    with pytest.raises(FairleadError, match=r"twice\.csv has the column tokens twice"):
        read_measurements(tmp_path / "twice.csv")
    (tmp_path / "text.csv").write_text(",".join(COLUMNS) + "\na,1,1,1,1\n")
    with pytest.raises(FairleadError, match="must hold numbers"):
        read_measurements(tmp_path / "text.csv")
    (tmp_path / "bad.parquet").write_text("no")
    with pytest.raises(FairleadError, match="is not a Parquet file"):
        read_measurements(tmp_path / "bad.parquet")
    with pytest.raises(FairleadError, match="cannot read"):
        read_measurements(tmp_path / "absent.csv")


def test_the_file_of_coefficients(tmp_path: Path):
    path = tmp_path / "c.json"
    write_coefficients(path, LLAMA, {"rows": 3})
    assert read_coefficients(path) == LLAMA
    text = path.read_text()
    for wrong, message in [
        ("{}", "holds no fitted coefficients"),
        ("nonsense", "holds no fitted coefficients"),
        (text.replace("token_s", "tokens_s", 1), "must be exactly base_s"),
        (text.replace(str(LLAMA.kv_s), "-1"), "kv_s is -1"),
        (text.replace(str(LLAMA.kv_s), "NaN"), "kv_s is nan"),
    ]:
        path.write_text(wrong)
        with pytest.raises(FairleadError, match=message):
            read_coefficients(path)
    write_coefficients(path, Coefficients(*[0.0] * len(TIMING_FIELDS)), {})
    with pytest.raises(FairleadError, match="would take no time"):
        read_coefficients(path)
    with pytest.raises(FairleadError, match="cannot read"):
        read_coefficients(tmp_path / "absent.json")
