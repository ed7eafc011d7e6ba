"""The Parquet file gives back what was written, and exists only when complete."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.per_request import RequestWriter, configuration_hash, read_requests
from fairlead.evaluate.results import Configuration
from fairlead.simulator.outcomes import Outcomes


def outcomes(seed: int, requests: int = 50) -> Outcomes:
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(size=requests))
    tokens = rng.integers(1, 100, requests)
    first = arrival + rng.exponential(size=requests)
    return Outcomes(arrival, tokens, tokens + 1, tokens % 3, first, first + 1, tokens % 2, 3)


def test_round_trip(tmp_path: Path, configuration: Configuration) -> None:
    with RequestWriter(tmp_path, configuration) as writer:
        for router in ("lor", "p2c"):
            for seed in (0, 1):
                writer.write("chat-equal", 0.7, router, seed, outcomes(seed + 10 * (router == "p2c")))
    assert [path.name for path in tmp_path.iterdir()] == ["requests.parquet"]
    assert configuration_hash(tmp_path) == configuration.hash()

    found = read_requests(tmp_path, "chat-equal", 0.7, "p2c")
    for name in (
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "replica",
        "first_token_s",
        "finish_s",
        "preemptions",
        "retries",
    ):
        expected = np.concatenate([getattr(outcomes(seed), name) for seed in (10, 11)])
        np.testing.assert_array_equal(found[name], expected)  # to the last bit
    np.testing.assert_array_equal(found["seed"], np.repeat([0.0, 1.0], 50))
    np.testing.assert_array_equal(found["request"], np.tile(np.arange(50.0), 2))

    file = pq.ParquetFile(writer.path)
    assert file.metadata.num_row_groups == 4  # written run by run, never gathered in memory
    assert file.schema_arrow.names == [
        *("scenario", "load", "router", "seed", "request", "arrival_s", "prompt_tokens", "output_tokens"),
        *("replica", "first_token_s", "finish_s", "preemptions", "retries"),
    ]


def test_an_interrupted_tournament_leaves_no_file(tmp_path: Path, configuration: Configuration) -> None:
    with pytest.raises(KeyboardInterrupt), RequestWriter(tmp_path, configuration) as writer:
        writer.write("chat-equal", 0.7, "lor", 0, outcomes(0))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_writing_needs_a_with_statement(tmp_path: Path, configuration: Configuration) -> None:
    with pytest.raises(RuntimeError, match="with statement"):
        RequestWriter(tmp_path, configuration).write("a", 0.7, "lor", 0, outcomes(0))


def test_missing_and_foreign_files_are_named(tmp_path: Path, configuration: Configuration) -> None:
    with pytest.raises(FairleadError, match="cannot read"):
        configuration_hash(tmp_path)
    (tmp_path / "requests.parquet").write_bytes(b"not parquet")
    for read in (
        lambda: configuration_hash(tmp_path),
        lambda: read_requests(tmp_path, "chat-equal", 0.7, "lor"),
    ):
        with pytest.raises(FairleadError, match="cannot read"):
            read()


def test_a_missing_setting_is_an_error(tmp_path: Path, configuration: Configuration) -> None:
    with RequestWriter(tmp_path, configuration) as writer:
        writer.write("chat-equal", 0.7, "lor", 0, outcomes(0))
    with pytest.raises(FairleadError, match=r"no requests of lor for chat-equal at load 0\.9"):
        read_requests(tmp_path, "chat-equal", 0.9, "lor")
