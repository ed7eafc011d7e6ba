"""Numbers as people read them."""

import pytest

from fairlead.evaluate.phrasing import (
    HEADLINE,
    LABELS,
    MINUS,
    SHOWN,
    listing,
    number,
    percent,
    quantity,
    unit,
)
from fairlead.simulator.metrics import METRICS


def test_every_metric_has_a_label() -> None:
    assert tuple(LABELS) == METRICS
    assert set(SHOWN) | set(HEADLINE) <= set(METRICS)
    assert [unit(m) for m in ("e2e_mean_s", "tpot_p99_s", "goodput_rps", "imbalance")] == [
        "s",
        "ms",
        "1/s",
        "",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000"),
        (0.25149, "0.251"),
        (0.9996, "1.00"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (99.96, "100"),
        (1234, "1234"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert number("e2e_mean_s", value) == text


def test_tokens_are_timed_in_milliseconds() -> None:
    assert quantity("tpot_p99_s", 0.0314).split() == ["31.4", "ms"]
    assert quantity("imbalance", 0.5) == "0.500"


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(-0.2471, "-25"), (0.031, "+3.1"), (0.0, "0.0"), (-0.0001, "-0.0"), (0.0996, "+10"), (3.5, "+350")],
)
def test_percent(fraction: float, text: str) -> None:
    assert percent(fraction).replace(MINUS, "-") == text
    assert percent(fraction, signed=False) == text.lstrip("-+")


def test_listing() -> None:
    assert [listing(list("abc"[:n])) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
