"""Scenarios with another number of replicas."""

import pytest

from fairlead.errors import FairleadError
from fairlead.workload import load_scenario
from fairlead.workload.scaling import proportional, split_count, with_replicas
from fairlead.workload.suites import load_scenarios


@pytest.mark.parametrize(
    ("shares", "total", "given"),
    [
        ([2, 2], 8, [4, 4]),
        ([3, 1], 2, [1, 1]),
        ([3, 1], 6, [5, 1]),
        ([1, 1, 2], 3, [1, 1, 1]),
        ([4], 64, [64]),
    ],
)
def test_groups_keep_their_proportions(shares, total, given):
    assert proportional(shares, total) == given


@pytest.mark.parametrize("shares", [[1], [3, 1], [1, 1, 2], [5, 3, 2, 7]])
def test_all_replicas_are_dealt_and_no_group_is_left_empty(shares):
    for total in range(len(shares), 70):
        given = proportional(shares, total)
        assert given is not None and sum(given) == total and min(given) >= 1
        assert all(abs(g - s * total / sum(shares)) < len(shares) for g, s in zip(given, shares, strict=True))
    assert proportional(shares, len(shares) - 1) is None


def test_a_number_behind_the_name_scales_a_scenario():
    plain = load_scenario("chat-unequal")
    (large,) = load_scenarios("chat-unequal:32")
    assert (large.name, large.num_replicas) == ("chat-unequal:32", 32)
    assert [group.count for group in large.replicas] == [16, 16]
    assert large.workload == plain.workload and large.loads == plain.loads
    assert load_scenarios("chat-unequal:4") == [plain]


def test_a_whole_suite_can_be_scaled():
    found = load_scenarios("suite/standard:8")
    assert {each.num_replicas for each in found} == {8}
    assert found[0].name == f"{load_scenarios('suite/standard')[0].name}:8"


def test_what_is_no_number_belongs_to_the_name():
    assert split_count("chat-equal") == ("chat-equal", None)
    assert split_count("C:\\x.yaml") == ("C:\\x.yaml", None)
    assert split_count("my.yaml:2") == ("my.yaml", 2)


def test_fewer_replicas_than_groups_is_an_error():
    with pytest.raises(FairleadError, match=r"chat-unequal:1: .*2 groups"):
        with_replicas(load_scenario("chat-unequal"), 1)
    with pytest.raises(FairleadError, match="count"):
        load_scenarios("chat-equal:5000")
