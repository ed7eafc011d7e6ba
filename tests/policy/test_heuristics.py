"""Each heuristic does what its one line says."""

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.policy.catalogue import ALL_HEURISTICS, find_router, find_routers
from fairlead.policy.heuristics import DESCRIPTIONS, HEURISTICS, Heuristic, Lookahead
from fairlead.policy.router import Router
from fairlead.view import schema
from fairlead.view.preference import weights_of
from fairlead.view.privilege import EVERYTHING, TRUE_LENGTHS
from fairlead.view.schema import View


def view(*, clusters: int = 1, columns: dict[str, list[float]] | None = None) -> View:
    """A view of 3 replicas in which everything is equal but the columns given."""
    replicas = np.ones((clusters, 3, schema.NUM_REPLICA_COLUMNS))
    replicas[:, :, schema.PREFILL_TOKENS_PER_S] = 10_000
    replicas[:, :, schema.DECODE_ITERATION_S] = 0.01
    replicas[:, :, schema.KV_CAPACITY_TOKENS] = 400_000
    for name, values in (columns or {}).items():
        replicas[:, :, getattr(schema, name.upper())] = values
    request = np.zeros((clusters, schema.NUM_REQUEST_COLUMNS))
    request[:, schema.PROMPT_TOKENS] = 500
    request[:, schema.EXPECTED_OUTPUT_TOKENS] = 200
    return View(replicas, request)


def choices(name: str, seen: View) -> set[int]:
    """Everything that the router ever chooses for this view."""
    router = Heuristic(name)
    router.reset(len(seen.request), 3, seed=0)
    return {int(c) for _ in range(60) for c in router.route(seen)}


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("lor", {"in_flight": [3, 1, 2]}, {1}),
        ("lor", {"in_flight": [1, 1, 2]}, {0, 1}),
        ("least_kv", {"context_tokens": [900, 500, 400], "pending_prefill_tokens": [0, 0, 300]}, {1}),
        ("least_prefill", {"pending_prefill_tokens": [700, 0, 10], "in_flight": [0, 9, 0]}, {1}),
        ("least_prefill", {"pending_prefill_tokens": [0, 0, 10], "in_flight": [4, 9, 0]}, {0}),
        ("least_prefill", {"pending_prefill_tokens": [0, 0, 10], "in_flight": [4, 4, 0]}, {0, 1}),
        ("least_work", {"expected_remaining_tokens": [5000, 100, 4000]}, {1}),
        (
            "least_work",
            {"pending_prefill_tokens": [100, 9000, 100], "decode_iteration_s": [0.01, 0.01, 0.05]},
            {0},
        ),
        ("weighted_lor", {"in_flight": [4, 1, 4], "speed": [1.0, 0.4, 0.3]}, {0, 1}),
        ("weighted_lor", {"in_flight": [0, 0, 0], "speed": [1.0, 0.4, 0.4]}, {0}),
        ("p2c", {"in_flight": [9, 5, 1]}, {1, 2}),
        ("random", {"in_flight": [9, 5, 1]}, {0, 1, 2}),
        ("round_robin", {"in_flight": [9, 5, 1]}, {0, 1, 2}),
    ],
)
def test_rule(name: str, columns: dict[str, list[float]], expected: set[int]) -> None:
    assert choices(name, view(columns=columns)) == expected


@pytest.mark.parametrize("name", HEURISTICS)
def test_no_heuristic_chooses_an_unavailable_replica(name: str) -> None:
    """Not even if everything else speaks for it; and the rest is chosen from as before."""
    attractive: dict[str, list[float]] = {
        c.name: [0, 5, 5] for c in schema.REPLICA_COLUMNS if c.source in ("ledger", "scraped")
    }
    seen = view(columns=attractive | {"available": [0, 1, 1]})
    assert choices(name, seen) == {1, 2}
    assert choices(name, view(columns=attractive | {"available": [0, 0, 1]})) == {2}


def test_round_robin_skips_the_unavailable() -> None:
    router = Heuristic("round_robin")
    seen = view(columns={"available": [1, 0, 1]})
    assert [int(router.route(seen)[0]) for _ in range(6)] == [0, 2, 2, 0, 2, 2]


def test_round_robin_takes_turns() -> None:
    router = Heuristic("round_robin")
    assert [int(router.route(view())[0]) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_random_is_uniform_and_ties_are_fair() -> None:
    for name in ("random", "lor", "p2c"):
        router = Heuristic(name)
        router.reset(1000, 3, seed=4)
        shares = (
            np.bincount(np.concatenate([router.route(view(clusters=1000)) for _ in range(9)]), minlength=3)
            / 9000
        )
        assert shares == pytest.approx([1 / 3] * 3, abs=0.02)


def test_reset_repeats_the_run() -> None:
    router = Heuristic("random")
    runs = []
    for seed in (1, 1, 2):
        router.reset(4, 3, seed)
        runs.append(np.array([router.route(view(clusters=4)) for _ in range(20)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_every_heuristic_is_a_router_with_a_description() -> None:
    assert set(DESCRIPTIONS) == {*HEURISTICS, "lookahead"} == set(ALL_HEURISTICS)
    for name in HEURISTICS:
        assert isinstance(Heuristic(name), Router)


def test_pitfall_26_the_strong_baselines_take_part_by_default() -> None:
    assert {"least_prefill", "least_work", "weighted_lor", "lookahead"} <= set(ALL_HEURISTICS)


def test_catalogue() -> None:
    assert find_router("lor").kind == "heuristic"
    entry = find_router("lookahead@0.5")
    assert isinstance(entry.router, Lookahead)
    assert entry.name == "lookahead@0.5"
    assert entry.router.weights == weights_of(0.5)
    assert entry.detail == "weights 10.47 TTFT : 1 E2E : 360 tail"
    assert isinstance(find_router("lookahead", favor=0.0).router, Lookahead)


@pytest.mark.parametrize(
    ("text", "knows"), [("lookahead:true-lengths@0", TRUE_LENGTHS), ("lookahead:privileged", EVERYTHING)]
)
def test_bounds_say_that_they_cannot_be_reached(text: str, knows: int) -> None:
    entry = find_router(text)
    assert isinstance(entry.router, Lookahead)
    assert entry.router.knows == knows and "unreachable" in entry.detail and entry.name == text
    assert text not in ALL_HEURISTICS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leastwork", "unknown router 'leastwork': known are random, round_robin, lor"),
        ("lor@0.5", "lor has no dial"),
        ("lookahead@2", r"favor 2 is not in \[0, 1\]"),
        ("lookahead@high", "is not a number"),
        ("no/such/policy.onnx", "no policy file"),
    ],
)
def test_routers_that_cannot_be_found(text: str, message: str) -> None:
    with pytest.raises(FairleadError, match=message):
        find_router(text)


def test_a_router_takes_part_once() -> None:
    with pytest.raises(FairleadError, match="two routers are called lor"):
        find_routers(["lor", "p2c", "lor"])
