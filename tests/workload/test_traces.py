from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.workload.traces import part_of, read_lengths, read_trace, window

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens"
ROWS = [(0.0, 374, 44), (4.314579, 396, 109), (4.541877, 879, 55)]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def azure_rows(rows: list[tuple[float, int, int]], form: str = "{}0") -> list[str]:
    start = datetime(2023, 11, 16, 18, 15, 46, 680590)
    moments = [
        (start + timedelta(seconds=time)).isoformat(" ", timespec="microseconds") for time, _, _ in rows
    ]
    return [f"{form.format(moment)},{row[1]},{row[2]}" for moment, row in zip(moments, rows, strict=True)]


@pytest.mark.parametrize("form", ["{}", "{}0", "{}Z", "{}+02:00"], ids=["micro", "azure", "utc", "zone"])
def test_both_formats_give_the_same_requests(tmp_path: Path, form: str):
    azure = read_trace(write(tmp_path / "azure.csv", AZURE, *azure_rows(ROWS, form)))
    vidur = read_trace(write(tmp_path / "vidur.csv", VIDUR, *(f"{t},{p},{o}" for t, p, o in ROWS)))
    for requests in (azure, vidur):
        np.testing.assert_allclose(requests.arrival_s, [row[0] for row in ROWS], atol=1e-9)
        np.testing.assert_array_equal(requests.prompt_tokens, [row[1] for row in ROWS])
        np.testing.assert_array_equal(requests.output_tokens, [row[2] for row in ROWS])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**6)),
        min_size=1,
        max_size=20,
    )
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int]]):
    rows = [(microseconds / 1e6, prompt, output) for microseconds, prompt, output in sorted(drawn)]
    directory = tmp_path_factory.mktemp("traces")
    vidur = read_trace(write(directory / "vidur.csv", VIDUR, *(f"{t!r},{p},{o}" for t, p, o in rows)))
    azure = read_trace(write(directory / "azure.csv", AZURE, *azure_rows(rows)))
    np.testing.assert_array_equal(vidur.arrival_s, [row[0] for row in rows])
    np.testing.assert_allclose(azure.arrival_s, vidur.arrival_s - vidur.arrival_s[0], atol=1.1e-6)
    for requests in (vidur, azure):
        np.testing.assert_array_equal(requests.prompt_tokens, [row[1] for row in rows])
        np.testing.assert_array_equal(requests.output_tokens, [row[2] for row in rows])


def test_spreadsheet_habits_are_understood(tmp_path: Path):
    """A byte-order mark, other columns, another order, spaces, whole numbers as floats, blank lines."""
    path = write(
        tmp_path / "sheet.csv",
        "\ufeffid, num_decode_tokens ,num_prefill_tokens,arrived_at",
        "a,3.0,10,0",
        "",
        "b,4,1e1,0.5",
    )
    requests = read_trace(path)
    np.testing.assert_array_equal(requests.arrival_s, [0, 0.5])
    np.testing.assert_array_equal(requests.prompt_tokens, [10, 10])
    np.testing.assert_array_equal(requests.output_tokens, [3, 4])


def test_a_changed_file_is_read_again(tmp_path: Path):
    path = write(tmp_path / "trace.csv", VIDUR, "0,1,1")
    assert len(read_trace(path)) == 1
    write(path, VIDUR, "0,1,1", "1,1,1")
    assert len(read_trace(path)) == 2


def test_lengths_alone_need_no_times(tmp_path: Path):
    path = write(tmp_path / "lengths.csv", "num_prefill_tokens,num_decode_tokens,pd_ratio", "3,4,0.75")
    assert read_lengths(path).prompt_tokens.tolist() == [3]
    with pytest.raises(FairleadError, match="missing column arrived_at"):
        read_trace(path)


@given(
    rows=st.integers(1, 500),
    share=st.floats(0.01, 0.99),
    count=st.integers(1, 80),
    first=st.integers(0, 10**6),
    split=st.sampled_from(["validate", "evaluate"]),
)
def test_consecutive_seeds_replay_disjoint_windows(
    rows: int, share: float, count: int, first: int, split: str
):
    """As many as there is room for; all within the split's part, and training anywhere in the other."""
    part = part_of(rows, share, split)
    if count > len(part):
        with pytest.raises(FairleadError, match=f"{count} requests asked for.*{len(part)} for {split}"):
            window(rows, count, share, first, split, Path("a.csv"))
        return
    seeds = range(first, first + len(part) // count)
    windows = [window(rows, count, share, seed, split, Path("a.csv")) for seed in seeds]
    seen = [row for each in windows for row in range(rows)[each]]
    assert len(seen) == len(set(seen)) == count * len(seeds)
    assert set(seen) <= set(part)
    again = window(rows, count, share, first + len(seeds), split, Path("a.csv"))
    assert again == windows[0]


def test_training_begins_anywhere_in_its_part():
    windows = [window(100, 10, 0.5, seed, "train", Path("a.csv")) for seed in range(1000)]
    assert {each.start for each in windows} == set(range(41))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([AZURE.replace("GeneratedTokens", "Generated")], "missing column GeneratedTokens; a trace has"),
        (["arrived_at,num_decode_tokens", "0,1"], "missing column num_prefill_tokens"),
        (["time,prompt,output", "0,1,1"], "missing column"),
        ([VIDUR], "a header but no rows"),
        ([""], "the file is empty"),
        ([VIDUR, "0,5,5", "1,5"], "row 2 (line 3) has 2 cells, the header has 3"),
        ([VIDUR, "0,5,5", "1,-5,5"], "row 2 (line 3): num_prefill_tokens = '-5' must be at least 1"),
        ([VIDUR, "0,0,5"], "row 1 (line 2): num_prefill_tokens = '0' must be at least 1"),
        ([VIDUR, "0,5,0"], "row 1 (line 2): num_decode_tokens = '0' must be at least 1"),
        ([VIDUR, "0,5,nan"], "row 1 (line 2): num_decode_tokens = 'nan' is not a finite whole number"),
        ([VIDUR, "0,inf,5"], "row 1 (line 2): num_prefill_tokens = 'inf' is not a finite whole number"),
        ([VIDUR, "0,1.5,5"], "row 1 (line 2): num_prefill_tokens = '1.5' is not a finite whole number"),
        ([VIDUR, "0,5,10000001"], "num_decode_tokens = '10000001' must be at most 10,000,000 tokens"),
        ([VIDUR, "0,1e300,5"], "num_prefill_tokens = '1e300' must be at most 10,000,000 tokens"),
        ([VIDUR, "0,,5"], "row 1 (line 2): num_prefill_tokens = '' is not a finite whole number"),
        ([VIDUR, "nan,5,5"], "row 1 (line 2): arrived_at = 'nan' must be finite"),
        ([VIDUR, "-1,5,5"], "row 1 (line 2): arrived_at = '-1' must not be negative"),
        ([VIDUR, "soon,5,5"], "row 1 (line 2): arrived_at = 'soon' is not a time of the Vidur format"),
        ([VIDUR, "0,5,5", "2,5,5", "", "1,5,5"], "row 3 (line 5): arrived_at is earlier than in row 2; sort"),
        ([AZURE, "yesterday,5,5"], "row 1 (line 2): TIMESTAMP = 'yesterday' is not a time of the Azure"),
        (
            [AZURE, "2023-11-16 18:15:47,5,5", "2023-11-16 18:15:46,5,5"],
            "row 2 (line 3): TIMESTAMP is earlier than in row 1; sort",
        ),
    ],
)
def test_a_bad_trace_is_refused_in_one_line_that_names_file_and_row(
    tmp_path: Path, lines: list[str], message: str
):
    path = write(tmp_path / "bad.csv", *lines)
    with pytest.raises(FairleadError) as error:
        read_trace(path)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_not_text_is_refused(tmp_path: Path):
    with pytest.raises(FairleadError, match="cannot read the trace"):
        read_trace(tmp_path / "none.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 100)
    with pytest.raises(FairleadError, match="not a CSV text file"):
        read_trace(path)
