"""Scenarios at another load."""

import pytest

from fairlead.errors import FairleadError
from fairlead.workload import load_scenario
from fairlead.workload.loads import split_load, with_load
from fairlead.workload.suites import load_scenarios


def test_a_number_behind_an_at_sign_is_the_only_load():
    plain = load_scenario("chat-unequal")
    (overloaded,) = load_scenarios("chat-unequal@1.2")
    assert (overloaded.name, overloaded.loads) == ("chat-unequal@1.2", (1.2,))
    assert overloaded.replace(name=plain.name, loads=plain.loads) == plain
    assert {each.loads for each in load_scenarios("suite/standard@0.5")} == {(0.5,)}


def test_what_is_no_number_belongs_to_the_name():
    assert split_load("chat-equal") == ("chat-equal", None)
    assert split_load("me@home/own.yaml") == ("me@home/own.yaml", None)
    assert split_load("own.yaml@1") == ("own.yaml", 1.0)
    assert split_load("own@.5") == ("own@.5", None)


def test_a_load_that_cannot_be_is_an_error():
    with pytest.raises(FairleadError, match=r"load 2 is not between 0 and 1\.5"):
        with_load(load_scenario("chat-equal"), 2.0)
