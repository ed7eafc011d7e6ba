"""Whether a policy uses what it sees."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.dependence import (
    Dependence,
    Gap,
    Influence,
    block_of,
    examine,
    load_gaps,
    read_dependence,
    write_dependence,
)
from fairlead.evaluate.report import render_report
from fairlead.view.features import FEATURES
from fairlead.workload.scenario import load_scenario

SCENARIO = load_scenario("chat-equal")


class By:
    """Takes the replica with the least of one feature; ties go to the first."""

    favor = 0.5
    name = "by hand"

    def __init__(self, feature: str) -> None:
        self.column = FEATURES.index(feature)

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        pass

    def logits(self, features: np.ndarray) -> np.ndarray:
        return -features[:, :, self.column]


class Blind(By):
    """A quarter of the decisions to each replica, whatever the state."""

    def logits(self, features: np.ndarray) -> np.ndarray:
        dice = np.random.default_rng(0).random(features.shape[:2])
        return dice.astype(np.float32)


def test_a_policy_that_follows_the_queues_is_told_from_one_that_does_not() -> None:
    found = examine(By("in_flight"), SCENARIO, 0.8, requests=200, seeds=(0, 1))
    assert found.depends_on_state
    assert found.permutation[0].name == "in_flight" and found.permutation[0].value > 0.2
    assert all(each.value == 0 for each in found.permutation[1:])
    assert found.ablation[0].name == "requests in flight" and found.ablation[0].value > 0.05
    assert all(gap.to_least_busy == 1.0 for gap in found.gaps)
    assert sum(gap.decisions for gap in found.gaps) == 400
    blind = examine(Blind("in_flight"), SCENARIO, 0.8, requests=200, seeds=(0, 1))
    assert not blind.depends_on_state
    assert blind.gaps[-1].to_least_busy < 0.6


def test_gaps_are_classes_of_the_difference_in_flight() -> None:
    in_flight = np.array([[1, 1], [1, 2], [9, 2], [0, 30]], np.float64)
    gaps = load_gaps(in_flight, np.array([1, 0, 0, 0]))
    assert [(gap.least, gap.to_least_busy, gap.by_chance) for gap in gaps] == [
        (0, 1.0, 1.0),
        (1, 1.0, 0.5),
        (4, 0.0, 0.5),
        (16, 1.0, 0.5),
    ]


def test_what_was_found_is_kept_and_shown(make_run: Callable[[Path], Path], tmp_path: Path) -> None:
    directory = make_run(tmp_path)
    found = [
        Dependence(
            "learned",
            "chat-equal",
            0.7,
            [Gap(0, 10, 1.0, 0.5)],
            [Influence("in_flight", 0.25)],
            [Influence("requests in flight", 0.5)],
        )
    ]
    before = render_report(directory).read_text(encoding="utf-8")
    assert "What the policy depends on" not in before
    write_dependence(directory, found)
    assert read_dependence(directory) == found
    html = render_report(directory).read_text(encoding="utf-8")
    assert "What the policy depends on" in html and "+50.0" in html and "25.0" in html
    (directory / "dependence.json").write_text("[{}]", encoding="utf-8")
    with pytest.raises(FairleadError, match="is damaged"):
        render_report(directory)


def test_every_feature_has_a_block() -> None:
    assert {name for name in FEATURES if block_of(name) == "other"} <= {"available"}


def test_a_memory_cannot_be_examined_this_way() -> None:
    policy = By("in_flight")
    policy.has_memory = True  # type: ignore[attr-defined]
    with pytest.raises(FairleadError, match="memory"):
        examine(policy, SCENARIO, 0.8)
