"""The results document is complete and finite, or it is refused."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from fairlead.errors import FairleadError
from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.results import Configuration, Results, Row, load_results, write_results
from fairlead.simulator.metrics import METRICS


def test_round_trip(tmp_path: Path, results: Results) -> None:
    path = write_results(tmp_path, results)
    assert path.name == "results.json"
    assert load_results(tmp_path) == load_results(path) == results


def test_rows_are_named_as_documented(tmp_path: Path, results: Results) -> None:
    document = json.loads(write_results(tmp_path, results).read_text())
    assert list(document["rows"][0]) == ["scenario", "load", "router", "seed", "rate_rps", *METRICS]
    assert len(document["rows"]) == 3 * 4 * 5
    assert len(document["comparisons"]) == 3 * 4 * len(METRICS)


def test_pitfall_23_a_missing_row_is_an_error(configuration: Configuration, rows: list[Row]) -> None:
    gone = rows[7]
    with pytest.raises(FairleadError, match=f"no row for .*router {gone.router}, seed {gone.seed}"):
        build_results(configuration, [row for row in rows if row is not gone])


def test_pitfall_23_a_missing_cell_in_a_file_is_an_error(tmp_path: Path, results: Results) -> None:
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text())
    for part in ("rows", "comparisons"):
        damaged = dict(document, **{part: document[part][:-1]})
        path.write_text(json.dumps(damaged))
        with pytest.raises(FairleadError, match=f"no {part[:-1]} for scenario chat-unequal"):
            load_results(path)
    del document["rows"][3]["e2e_p99_s"]
    path.write_text(json.dumps(document))
    with pytest.raises(FairleadError, match=r"rows\.3\.e2e_p99_s: Field required"):
        load_results(path)


def test_doubled_and_foreign_rows_are_errors(configuration: Configuration, rows: list[Row]) -> None:
    with pytest.raises(FairleadError, match="more than one row for"):
        build_results(configuration, [*rows, rows[0]])
    with pytest.raises(FairleadError, match=r"does not ask for: .*seed 99"):
        build_results(configuration, [*rows, rows[0].model_copy(update={"seed": 99})])


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "N/A"])
def test_pitfall_23_non_finite_numbers_are_refused(tmp_path: Path, results: Results, bad: object) -> None:
    with pytest.raises(ValidationError):
        Row.model_validate(results.rows[0].model_dump() | {"ttft_mean_s": bad})
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text())
    document["rows"][0]["ttft_mean_s"] = bad
    path.write_text(json.dumps(document))
    with pytest.raises(FairleadError, match=r"rows\.0\.ttft_mean_s"):
        load_results(path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 2}', "\x00"])
def test_damaged_files_are_one_line_errors(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(FairleadError, match="not a valid results file") as error:
        load_results(path)
    assert "\n" not in str(error.value)


def test_a_directory_without_results(tmp_path: Path) -> None:
    with pytest.raises(FairleadError, match=r"does not exist"):
        load_results(tmp_path)


def test_an_altered_configuration_is_noticed(tmp_path: Path, results: Results) -> None:
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text())
    document["configuration"]["requests"] = 10**6
    path.write_text(json.dumps(document))
    with pytest.raises(FairleadError, match="was altered"):
        load_results(path)


def test_the_hash_covers_the_scenario_and_not_the_command(configuration: Configuration) -> None:
    other = configuration.model_copy(update={"command": "make demo"})
    assert other.hash() == configuration.hash()
    other = configuration.model_copy(update={"seeds": [5, 6]})
    assert other.hash() != configuration.hash()


def test_routers_and_seeds_are_given_once(configuration: Configuration) -> None:
    content = configuration.model_dump()
    for name in ("routers", "seeds"):
        with pytest.raises(ValidationError, match="given twice"):
            Configuration.model_validate(content | {name: [*content[name], content[name][0]]})


def test_make_run_is_loadable(tmp_path: Path, make_run: Callable[[Path], Path], results: Results) -> None:
    assert load_results(make_run(tmp_path)).words == results.words


def test_the_simulator_counts_in_the_hash_only_where_it_is_another(configuration):
    """Files from before that field existed keep their hash."""
    content = configuration.model_dump(mode="json", exclude={"command", "simulator", "notes"})
    old = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    assert configuration.hash() == old
    assert configuration.model_copy(update={"simulator": "vidur 0.0.26"}).hash() != old
