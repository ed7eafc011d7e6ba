"""Traces with shared prefixes."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.workload.mooncake import HASH_BLOCK, MooncakeTrace, read_mooncake

ROWS = [
    {"timestamp": 1000, "input_length": 1300, "output_length": 40, "hash_ids": [7, 8, 9]},
    {"timestamp": 1000, "input_length": 1100, "output_length": 700, "hash_ids": [7, 8, 3]},
    {"timestamp": 4000, "input_length": 512, "output_length": 1, "hash_ids": [7]},
    {"timestamp": 9000, "input_length": 10, "output_length": 30, "hash_ids": [50]},
]


def write(tmp_path: Path, rows: Sequence[object], text: str = "") -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + text)
    return path


def trace(path: Path, **changes: object) -> MooncakeTrace:
    return MooncakeTrace.model_validate({"path": path, "train_share": 0.1, **changes})


def shared(ids: np.ndarray, offsets: np.ndarray, i: int, j: int) -> int:
    """Blocks of the common prefix of two requests."""
    a, b = ids[offsets[i] : offsets[i + 1]], ids[offsets[j] : offsets[j + 1]]
    same = a[: min(len(a), len(b))] == b[: min(len(a), len(b))]
    assert not set(a[len(same) :]) & set(b)
    return int(np.argmin([*same, False]))


@pytest.mark.parametrize("block_size", [16, 32, 48, 512, 600])
def test_blocks_are_shared_as_far_as_the_hashes_go(tmp_path: Path, block_size: int) -> None:
    requests = trace(write(tmp_path, ROWS)).requests(4, 2.0, 0, "evaluate", None, block_size)
    content = requests.content
    assert content is not None
    np.testing.assert_array_equal(
        np.diff(content.offsets), (requests.prompt_tokens + requests.output_tokens - 1) // block_size
    )
    assert shared(content.ids, content.offsets, 0, 1) == 2 * HASH_BLOCK // block_size
    # The last token of the third prompt is computed with it, but 512 tokens + 1 make no other full block.
    assert shared(content.ids, content.offsets, 0, 2) == HASH_BLOCK // block_size
    assert shared(content.ids, content.offsets, 0, 3) == 0
    for i in range(4):
        own = content.ids[content.offsets[i] : content.offsets[i + 1]]
        assert len(np.unique(own)) == len(own)


def test_times_are_stretched_to_the_rate(tmp_path: Path) -> None:
    requests = trace(write(tmp_path, ROWS)).requests(4, 0.5, 0, "evaluate", 20, None)
    np.testing.assert_allclose(requests.arrival_s, [2.0, 2.0, 2.0 + 6 * 3 / 8, 8.0])
    assert requests.output_tokens.tolist() == [20, 20, 1, 20]
    assert requests.content is None


def test_training_and_evaluation_see_different_lines(tmp_path: Path) -> None:
    made = trace(write(tmp_path, ROWS), train_share=0.5)
    assert made.rows_for_training() == 2
    with pytest.raises(FairleadError, match="3 requests asked for, but the trace has 4 rows"):
        made.requests(3, 1.0, 0, "evaluate", None, 16)
    assert made.requests(2, 1.0, 3, "evaluate", None, 16).prompt_tokens.tolist() == [512, 10]
    with pytest.raises(FairleadError, match="2 requests arrive at one instant"):
        made.requests(2, 1.0, 3, "train", None, 16)


def changed(**values: object) -> dict[str, object]:
    row = {**ROWS[3], **values}
    return {key: value for key, value in row.items() if value is not None}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (changed(hash_ids=[50, 51]), "line 4: hash_ids has 2 entries, but input_length 10 makes 1 blocks"),
        (changed(hash_ids=[]), "line 4: hash_ids has 0 entries"),
        (changed(timestamp=3999), "line 4: timestamp 3999 is earlier than before; sort the trace"),
        (changed(timestamp=float("nan")), "line 4: timestamp = nan is not a number of milliseconds"),
        (changed(timestamp="now"), "line 4: timestamp = 'now' is not a number"),
        (changed(timestamp=-1), "line 4: timestamp = -1 is not a number of milliseconds from 0"),
        (changed(hash_ids=None), "line 4: hash_ids is missing; a line has timestamp, input_length"),
        (changed(output_length=0), "line 4: output_length = 0 is not a whole number of tokens, from 1"),
        (changed(input_length=10.5), "line 4: input_length = 10.5 is not a whole number"),
        (changed(hash_ids=[-1]), "line 4: hash_ids is not a list of whole numbers from 0 up"),
        (changed(hash_ids=[8]), "line 4: hash id 8 stands behind other blocks than on an earlier line"),
        (changed(hash_ids=[7]), "line 4: hash id 7 stands for 10 tokens here, for 512 on an earlier"),
        ([1, 2], "line 4 is not a JSON object with the keys timestamp"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(FairleadError) as error:
        read_mooncake(write(tmp_path, [*ROWS[:3], row]))
    assert message in str(error.value)


def test_files_that_are_no_trace(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match="line 1 is not JSON"):
        read_mooncake(write(tmp_path, [], "timestamp,input_length\n"))
    with pytest.raises(FairleadError, match="the trace is empty"):
        read_mooncake(write(tmp_path, [], "\n\n"))
    with pytest.raises(FairleadError, match="cannot read the trace"):
        read_mooncake(tmp_path / "nothing.jsonl")
