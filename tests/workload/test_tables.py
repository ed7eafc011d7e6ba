import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.workload.tables import fit_table, load_table, table_names

MIDPOINTS = (np.arange(400_000) + 0.5) / 400_000
TOOL = Path(__file__).parents[2] / "tools" / "fit_length_table.py"


@pytest.mark.parametrize("name", table_names())
def test_a_shipped_table_reproduces_mean_and_p99_of_its_trace(name: str):
    table = load_table(name)
    assert table.name == name
    assert table.source and table.licence
    for side, marginal in (("prompt", table.prompt), ("output", table.output)):
        tokens = table.quantile(side, MIDPOINTS)
        assert tokens.mean() == pytest.approx(marginal.mean, rel=0.005)
        assert np.quantile(tokens, 0.99) == pytest.approx(marginal.p99, rel=0.005)


def test_shipped_tables_are_facts_about_a_trace_not_the_trace():
    for name in table_names():
        table = load_table(name)
        assert len(table.probabilities) < 0.03 * table.requests


def test_the_tables_of_the_named_traces_ship():
    assert {"azure-conversation-2023", "azure-code-2023", "arxiv-summarization"} <= set(table_names())


def test_a_length_shared_by_many_requests_keeps_its_weight():
    rng = np.random.default_rng(0)
    tokens = np.where(rng.random(5000) < 0.2, 4096, rng.integers(1, 4000, 5000))
    table = fit_table(tokens, tokens, name="atom", source="test", licence="none")
    share = np.mean(table.quantile("prompt", MIDPOINTS) == 4096)
    assert share == pytest.approx(np.mean(tokens == 4096), abs=0.006)
    assert table.rank_correlation == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=60, unique=True), st.lists(st.floats(0, 1)))
def test_quantiles_stay_in_range_and_rise(tokens: list[int], probabilities: list[float]):
    table = fit_table(np.array(tokens), np.array(tokens[::-1]), name="x", source="x", licence="x")
    drawn = table.quantile("prompt", np.sort(np.array([*probabilities, 0.0, 1.0])))
    assert drawn[0] == min(tokens)
    assert drawn[-1] == max(tokens)
    assert (np.diff(drawn) >= 0).all()


def good_table() -> dict[str, Any]:
    marginal = {"mean": 2.0, "p99": 3.0, "quantiles": [1, 2, 3]}
    return {
        "name": "mine",
        "source": "test",
        "licence": "none",
        "requests": 3,
        "rank_correlation": 0.0,
        "probabilities": [0, 0.5, 1],
        "prompt": marginal,
        "output": marginal,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": [0, 1]}, "prompt has 3 quantiles for 2 probabilities"),
        ({"probabilities": [0, 0.5, 0.9]}, "probabilities must increase from 0 to 1"),
        ({"rank_correlation": 2}, "rank_correlation: input should be less than or equal to 1"),
        ({"sauce": "x"}, "unknown key 'sauce'; did you mean source"),
        ({"prompt": {"mean": 2, "p99": 3, "quantiles": [3, 2, 1]}}, "prompt: quantiles must be at least 2"),
    ],
)
def test_a_bad_table_file_is_refused(tmp_path: Path, change: dict[str, Any], message: str):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(good_table()))
    assert load_table(str(path)).requests == 3
    path.write_text(json.dumps(good_table() | change))
    with pytest.raises(FairleadError) as error:
        load_table(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_a_file_that_is_not_json_or_not_there_is_refused(tmp_path: Path):
    path = tmp_path / "mine.json"
    with pytest.raises(FairleadError, match="cannot read the length table"):
        load_table(str(path))
    path.write_text("{")
    with pytest.raises(FairleadError, match="is not JSON"):
        load_table(str(path))


@pytest.fixture
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fit_length_table", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tool_writes_a_table_that_loads_and_overwrites_nothing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    trace, out = tmp_path / "trace.csv", tmp_path / "mine.json"
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 1000, (300, 2))
    trace.write_text(
        "num_prefill_tokens,num_decode_tokens\n"
        + "".join(f"{prompt},{output}\n" for prompt, output in tokens)
    )
    command = ["fit", str(trace), "--name", "mine", "--source", "a test", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    assert tool.main() == 0
    table = load_table(str(out))
    assert table.requests == 300
    assert table.prompt.mean == pytest.approx(tokens[:, 0].mean(), abs=0.001)
    before = out.read_bytes()
    assert tool.main() == 2
    assert "exists already" in capsys.readouterr().err
    assert out.read_bytes() == before
    trace.write_text("a,b\n1,2\n")
    assert tool.main() == 2
    assert "missing column" in capsys.readouterr().err
