"""docs/requirements.md maps every requirement to an option and a test, and each test that it names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLES, DECIDED = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8").split("## Decisions")

HOW_MANY = {
    "ENV": 16,
    "STA": 21,
    "REW": 33,
    "NET": 16,
    "PPO": 19,
    "EXP": 13,
    "WS": 5,
    "CUR": 8,
    "ROL": 5,
    "MET": 15,
    "EVA": 15,
    "SAF": 7,
    "DEP": 3,
    "ENG": 8,
}
IDS = [f"{kind}-{i:02}" for kind, count in HOW_MANY.items() for i in range(1, count + 1)]
_ROW = re.compile(r"^\| ([A-Z]+-\d\d) \| (.+) \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.M)
ROWS = {match[1]: match for match in _ROW.finditer(TABLES)}
_DECISION = re.compile(r"^\| (C\d+(?:, C\d+)*|SAF-03) \| (.+) \| `(tests/[\w/]+\.py)::(\w+)` \|$", re.M)
DECISIONS = {match[1]: match for match in _DECISION.finditer(DECIDED)}


def test_every_requirement_is_on_the_page_once() -> None:
    mentioned = re.findall(r"^\| ([A-Z]+-\d\d) \|", TABLES, re.M)
    assert sorted(mentioned) == sorted(set(mentioned))
    assert [each for each in IDS if each not in mentioned] == []


def test_every_requirement_has_an_option_and_a_test() -> None:
    assert set(IDS) == set(ROWS)


def test_every_decision_is_on_the_page_once() -> None:
    found = [number for about in DECISIONS for number in re.findall(r"C(\d+)", about)]
    assert sorted(map(int, found)) == list(range(1, 14))


@pytest.mark.parametrize("row", [*ROWS.values(), *DECISIONS.values()], ids=lambda match: match[1])
def test_the_test_of_a_requirement_exists(row: re.Match[str]) -> None:
    _, how, file, name = row.groups()
    assert how.strip()
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", text, re.M), f"{file} has no {name}"


def test_the_log_of_experiments_is_dated() -> None:
    log = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    dates = re.findall(r"^## (\d{4}-\d\d-\d\d)", log, re.M)
    assert dates and dates == sorted(dates)
