"""Teachers, mixtures of them, and how far they can be followed."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.train.teachers import (
    Teacher,
    achievable,
    by_scenario,
    choice,
    lookahead,
    make_teacher,
    mixture,
)


def constant(action: int, name: str = "constant") -> Teacher:
    return Teacher(name, lambda env, here=None: np.full(env.num_envs, action))


ENV: Any = SimpleNamespace(num_envs=1000)


def test_a_mixture_labels_by_its_shares_and_can_be_repeated() -> None:
    teacher = mixture({constant(0, "a"): 3.0, constant(1, "b"): 1.0})
    assert teacher.name == "75% a + 25% b"
    teacher.reset(5)
    labels = teacher.label(ENV)
    assert labels.mean() == pytest.approx(0.25, abs=0.05)
    teacher.reset(5)
    np.testing.assert_array_equal(teacher.label(ENV), labels)


def test_pitfall_22_the_achievable_agreement_is_reported() -> None:
    """The best answer to a 3 : 1 mixture of contradicting teachers is right three times in four."""
    teacher = mixture({constant(0, "a"): 3.0, constant(1, "b"): 1.0})
    teacher.reset(0)
    assert achievable(teacher, ENV, repeats=64) == pytest.approx(0.75, abs=0.02)
    assert achievable(constant(1), ENV) == 1.0


def test_teachers_come_by_name_or_with_shares() -> None:
    assert make_teacher("lookahead").name == "lookahead"
    assert make_teacher({"least_work": 1.0}).name == "least_work"
    assert make_teacher({"lookahead": 0.8, "lor": 0.2}).name == "80% lookahead + 20% lor"
    for wrong in ("random", {"lookahead": 0.5, "round_robin": 0.5}):
        with pytest.raises(FairleadError, match="cannot be imitated"):
            make_teacher(wrong)
    with pytest.raises(FairleadError, match="unknown router 'lro'"):
        make_teacher("lro")


def test_only_lookahead_can_be_privileged() -> None:
    asked: list[dict[str, bool]] = []

    def costs(**more: bool) -> Any:
        asked.append(more)
        return np.zeros((2, 3))

    env = SimpleNamespace(teacher_costs=costs)
    lookahead().label(env)
    make_teacher("lookahead", privileged=True).label(env)
    assert asked == [{}, {"privileged": True}]
    with pytest.raises(FairleadError, match="cannot be privileged: only lookahead can"):
        make_teacher("lor", privileged=True)


def test_the_choice_of_a_pricing_teacher_is_the_cheapest() -> None:
    np.testing.assert_array_equal(choice(np.array([[2.0, 1.0], [0.0, 5.0]])), [1, 0])


def test_scenarios_have_teachers_of_their_own() -> None:
    env: Any = SimpleNamespace(num_envs=3, scenario_names=["a", "b", "a"], clusters=SimpleNamespace(R=2))
    prices = Teacher("prices", lambda env, here=None: np.array([[3.0, 1.0], [3.0, 1.0], [0.0, 2.0]]))
    teacher = by_scenario(prices, {"b": constant(0, "first")})
    assert teacher.name == "prices, first in b"
    np.testing.assert_array_equal(teacher.label(env), [[3.0, 1.0], [0.0, 1.0], [0.0, 2.0]])
    assert make_teacher("lookahead", elsewhere={"b": "lor"}).name == "lookahead, lor in b"
    other = make_teacher("lor", elsewhere={"b": "lookahead:privileged"})
    assert other.name == "lor, privileged lookahead in b"
    with pytest.raises(FairleadError, match="unknown router 'lro'"):
        make_teacher("lookahead", elsewhere={"b": "lro"})
