"""Tables of iteration times: what is refused, where they end, and what the compiled lookup returns."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.simulator.tables import operator_tables, step_table

from fairlead.errors import FairleadError
from fairlead.simulator.batch_time import Batch, batch_time, decode_times, pack
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet, custom_fleet
from fairlead.simulator.reference import simulate
from fairlead.simulator.reference_timing import Scheduled, batch_seconds
from fairlead.simulator.state import State, new_state
from fairlead.simulator.tables import Limits, OperatorTables, StepTable, TimingModel
from fairlead.simulator.timing import Coefficients
from fairlead.simulator.timing_files import read_step_table
from fairlead.workload.content import Content
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import load_scenario

AFFINE = Coefficients(1e-3, 4e-3, 5e-5, 1e-6, 2e-5, 3e-8, 1e-9)
MODELS: list[TimingModel] = [AFFINE, step_table(), operator_tables(), operator_tables(recent=True)]


def state_of(models: list[TimingModel], pace: float) -> State:
    tables = [model for model in models if not isinstance(model, Coefficients)]
    state = new_state(1, len(models), 1, 16, 1, tables=pack(tables))
    state.replicas["pace"] = pace
    state.replicas["table"] = [
        -1 if isinstance(model, Coefficients) else tables.index(model) for model in models
    ]
    state.timing[:] = [list(model) if isinstance(model, Coefficients) else [0.0] * 7 for model in models]
    return state


def one_request(prompt: int, output: int) -> Requests:
    return Requests(np.zeros(1), np.array([prompt]), np.array([output]))


def summed(entries: list[Scheduled]) -> Batch:
    decodes = [e.computed + 1 for e in entries if e.decoding]
    prefills = [e for e in entries if not e.decoding]
    return Batch(
        sum(e.chunk for e in entries),
        len(entries),
        len(decodes),
        sum(decodes),
        sum(e.chunk * e.computed + e.chunk * (e.chunk + 1) / 2 for e in prefills),
        len(prefills),
        sum(e.chunk**2 for e in prefills),
        sum(e.computed for e in prefills),
        sum(-(-e.computed // 64) * 64 for e in prefills),
    )


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 4000), max_size=30),
    # 5 x 768, in whole buckets of 64, are still within the tables' 4,096 tokens before the chunks.
    st.lists(st.tuples(st.integers(1, 90), st.integers(0, 768)), max_size=5),
    st.sampled_from([1.0, 3.0]),
)
def test_compiled_and_plain_agree_on_every_kind(contexts, chunks, pace):
    entries = [Scheduled(1, context - 1, True) for context in contexts]
    entries += [Scheduled(chunk, computed, False) for chunk, computed in chunks]
    if not entries:
        return
    state = state_of(MODELS, pace)
    for k, model in enumerate(MODELS):
        expected = pace * batch_seconds(model, entries)
        assert batch_time(state, k, summed(entries)) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(1, 200))
def test_decode_times_hold_for_as_many_iterations_as_they_say(contexts, limit):
    state = state_of(MODELS, 2.0)
    for k, model in enumerate(MODELS):
        first, growth, steps = decode_times(state, k, len(contexts), sum(contexts), limit)
        assert 1 <= steps <= limit
        assert steps == limit or isinstance(model, OperatorTables)
        for i in (0, steps // 2, steps - 1):
            entries = [Scheduled(1, context - 1 + i, True) for context in contexts]
            assert first + growth * i == pytest.approx(2.0 * batch_seconds(model, entries), rel=1e-12)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seconds": [[0, 0], [0, -1]]}, r"seconds\[1, 1\] is -1"),
        ({"seconds": [[0, 0], [0, np.nan]]}, "finite and not negative"),
        ({"seconds": [[0, 0], [0, 0]]}, "seconds must be positive"),
        ({"seconds": [0, 1]}, "2 dimension"),
        ({"seconds": [[1]]}, "at least one token"),
        ({"seconds": [[0, 0], [0, 1]], "kv_s": -1}, "kv_s is -1"),
    ],
)
def test_bad_step_tables_are_refused(change, message):
    with pytest.raises(FairleadError, match=message):
        StepTable(**change)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens_s": [0, 1, 0]}, "tokens_s must be positive"),
        ({"tokens_s": [0]}, "tokens_s must be positive"),
        ({"decode_s": [[np.inf]]}, r"decode_s\[0, 0\] is inf"),
        ({"prefill_s": [[]]}, "prefill_s has shape"),
        ({"prefill_overhead": -0.5}, "prefill_overhead is -0.5"),
        ({"chunk_step": 0}, "chunk_step is 0"),
    ],
)
def test_bad_operator_tables_are_refused(change, message):
    good: dict[str, Any] = {"tokens_s": [0, 1, 1], "decode_s": [[1, 1]], "prefill_s": [[1, 1]]}
    OperatorTables(**good)
    with pytest.raises(FairleadError, match=message):
        OperatorTables(**{**good, **change})


@pytest.mark.parametrize(
    "model, limits, unit",
    [
        (step_table(), Limits(513, 10, 10), "512 new tokens"),
        (step_table(), Limits(512, 65, 10), "64 sequences"),
        (operator_tables(), Limits(513, 10, 10), "512 new tokens"),
        (operator_tables(), Limits(512, 65, 10), "64 decoding requests"),
        (operator_tables(recent=True), Limits(512, 64, 4097), "4,096 tokens of context"),
    ],
)
def test_a_table_says_where_it_ends(model, limits, unit):
    model.check(Limits(512, 64, 4096))
    with pytest.raises(FairleadError, match=f"ends at {unit}, but a batch of this run"):
        model.check(limits)


def test_a_run_beyond_the_table_is_refused_before_it_starts():
    made = custom_fleet(
        [operator_tables()] * 2, np.full(2, 1000), token_budget=512, max_num_seqs=64, block_size=16
    )
    Clusters([made], [one_request(4000, 96)])
    with pytest.raises(
        FairleadError, match="4,096 tokens of context, but a batch of this run can have 4,097"
    ):
        Clusters([made], [one_request(4000, 97)])


@pytest.mark.parametrize("recent", [False, True])
@pytest.mark.parametrize("together", [1, 2])
def test_cached_prompts_that_lead_beyond_the_table_are_told_of(recent, together):
    """One prompt of 4,000 tokens fits before the table's end; two that find theirs in the cache do not."""
    made = custom_fleet(
        [operator_tables(recent=recent)],
        np.array([1000]),
        token_budget=512,
        max_num_seqs=64,
        block_size=16,
        prefix_caching=True,
    )
    arrival = np.concatenate([[0.0], np.full(together, 100.0)])
    blocks = np.full(len(arrival), 250)
    content = Content(np.tile(np.arange(250), len(arrival)), np.concatenate([[0], np.cumsum(blocks)]), 16)
    alike = np.full(len(arrival), 4000)
    requests = Requests(arrival, alike, np.full(len(arrival), 5), content=content)
    clusters = Clusters([made], [requests])

    def run() -> None:
        while clusters.observe() and not clusters.done:
            clusters.route(np.zeros(1, np.int64))
        clusters.drain()

    nowhere_else = np.zeros(len(arrival), np.int64)
    if together == 1:
        run()
        assert simulate(made, requests, nowhere_else).cached_tokens.tolist() == [0, 3984]
        cached = clusters.outcomes(0).cached_tokens
        assert cached is not None and cached.tolist() == [0, 3984]
    else:
        with pytest.raises(FairleadError, match="prefill_s of replica 0 of cluster 0 has too few rows"):
            run()
        clusters.load([requests], seed=0)
        assert not clusters.state.replicas["beyond_table"].any()
        with pytest.raises(FairleadError, match="prefill_s has too few rows"):
            simulate(made, requests, nowhere_else)


def test_replicas_share_one_copy_of_a_table():
    table = step_table()
    made = custom_fleet(
        [table, AFFINE, table], np.full(3, 1000), token_budget=512, max_num_seqs=64, block_size=16
    )
    clusters = Clusters([made] * 2, [one_request(40, 9)] * 2, group=3)
    assert clusters.state.table_values.size == table.seconds.size + 1
    assert clusters.state.replicas["table"].tolist() == [0, -1, 0] * 6
    assert made.static[0].tolist() == made.static[2].tolist()


def grid() -> dict[str, Any]:
    return {
        "tokens": [1, 8, 2048],
        "sequences": [1, 256],
        "seconds": [[0.004, 0.005], [0.0045, 0.006], [0.1, 0.2]],
    }


def write(path, content) -> None:
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".npz":
        np.savez(path, **content)
    else:
        rows = [
            f"{s},{t},{content['seconds'][i][j]}"
            for i, t in enumerate(content["tokens"])
            for j, s in enumerate(content["sequences"])
        ]
        path.write_text("\n".join(["sequences,tokens,seconds", *rows]))


@pytest.mark.parametrize("suffix", [".json", ".npz", ".csv"])
def test_a_table_is_read_from_a_file_beside_the_scenario(tmp_path, suffix):
    path = tmp_path / f"times{suffix}"
    write(path, grid())
    table = read_step_table(path, 1e-7)
    assert table.seconds.shape == (2049, 257)
    assert table.seconds[8, 256] == 0.006 and table.kv_s == 1e-7
    assert table.seconds[8, 1] == pytest.approx(0.0045)
    assert table.seconds[(8 + 2048) // 2, 1] == pytest.approx((0.0045 + 0.1) / 2)

    text = (
        "model: llama-3-8b\n"
        f"replicas: [{{device: a100-80g, slowdown: 2, timing: {{kind: table, path: times{suffix}}}}}]\n"
        "workload:\n  arrivals: {kind: poisson}\n  lengths: {kind: fixed, prompt: 9, output: 9}\n"
    )
    (tmp_path / "own.yaml").write_text(text)
    scenario = load_scenario(tmp_path / "own.yaml")
    made = build_fleet(scenario)
    slowed = made.model(0)
    assert isinstance(slowed, StepTable)
    assert slowed.seconds[8, 256] == pytest.approx(0.012)
    before = scenario.hash({"replicas"})
    write(path, {**grid(), "seconds": [[0.004, 0.005], [0.0045, 0.006], [0.1, 0.3]]})
    assert load_scenario(tmp_path / "own.yaml").hash({"replicas"}) != before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": [8, 1, 2048]}, "tokens must be positive and increase"),
        ({"tokens": [1.5, 8, 2048]}, "tokens must be a list of whole numbers"),
        ({"sequences": [1, 2, 3]}, r"seconds has shape \(3, 2\)"),
        ({"seconds": [[1, 1], [1, 1], [1, -1]]}, "not negative"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, change, message):
    write(tmp_path / "times.json", {**grid(), **change})
    with pytest.raises(FairleadError, match=rf"times.json: .*{message}"):
        read_step_table(tmp_path / "times.json", 0.0)


def test_a_file_that_is_no_table_says_what_is_missing(tmp_path):
    (tmp_path / "times.json").write_text("{}")
    with pytest.raises(FairleadError, match="tokens is missing"):
        read_step_table(tmp_path / "times.json", 0.0)
    (tmp_path / "times.csv").write_text("tokens,sequences,seconds\n1,1,0.1\n2,2,0.1\n")
    with pytest.raises(FairleadError, match="one row for every pair"):
        read_step_table(tmp_path / "times.csv", 0.0)
    (tmp_path / "times.csv").write_text("a,b\n1,1\n")
    with pytest.raises(FairleadError, match="cannot be read as CSV"):
        read_step_table(tmp_path / "times.csv", 0.0)
    path = tmp_path / "times.npz"
    write(path, grid())
    whole = path.read_bytes()
    for part in (b"", whole[: len(whole) // 2], whole[:100] + bytes(100) + whole[200:]):
        path.write_bytes(part)
        with pytest.raises(FairleadError, match=r"times.npz: cannot be read as npz"):
            read_step_table(path, 0.0)
