"""Each rule that weighs a cached prefix against load does what it says, on views made by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from fairlead.env.run import run
from fairlead.evaluate.tournament import simulate
from fairlead.policy.affinity import IMBALANCE_REQUESTS, SATURATED_S
from fairlead.policy.catalogue import find_router
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.simulator.metrics import summarise
from fairlead.view import schema
from fairlead.view.schema import View
from fairlead.workload.scenario import generate, load_scenario

PROMPT = 1000


def view(session: int = 0, columns: Mapping[str, Sequence[float]] | None = None) -> View:
    """A view of 3 available, idle replicas, but for the columns given; the prompt has 1,000 tokens."""
    replicas = np.zeros((1, 3, schema.NUM_REPLICA_COLUMNS))
    replicas[:, :, schema.AVAILABLE] = 1
    replicas[:, :, schema.SPEED] = 1
    replicas[:, :, schema.PREFILL_TOKENS_PER_S] = 10_000
    replicas[:, :, schema.DECODE_ITERATION_S] = 0.01
    for name, values in (columns or {}).items():
        replicas[:, :, getattr(schema, name.upper())] = values
    request = np.zeros((1, schema.NUM_REQUEST_COLUMNS))
    request[0, schema.PROMPT_TOKENS] = PROMPT
    request[0, schema.SESSION] = session
    return View(replicas, request)


def choices(name: str, seen: View) -> set[int]:
    """Everything that the router ever chooses for this view."""
    router = Heuristic(name)
    return {int(router.route(seen)[0]) for _ in range(60)}


HIT, HOME, PENDING = "expected_prefix_hit_tokens", "session_home", "pending_prefill_tokens"
BUSY = IMBALANCE_REQUESTS + 1
LATE = 10_000 * SATURATED_S + 1


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        # The longest hit, whatever the load; ties by load.
        ("prefix_affinity", {HIT: [0, 16, 992], "in_flight": [0, 0, 500]}, {2}),
        ("prefix_affinity", {HIT: [0, 992, 992], "in_flight": [0, 7, 5]}, {2}),
        ("prefix_affinity", {HIT: [0, 0, 0], "in_flight": [3, 2, 2]}, {1, 2}),
        # The hit, unless the loads are far apart in difference and in ratio, or it is a small share.
        ("prefix_then_load", {HIT: [0, 0, 992], "in_flight": [0, 5, 60]}, {2}),
        ("prefix_then_load", {HIT: [0, 0, 992], "in_flight": [0, 5, BUSY]}, {0}),
        ("prefix_then_load", {HIT: [0, 0, 992], "in_flight": [200, 205, 200 + BUSY]}, {2}),
        ("prefix_then_load", {HIT: [0, 0, 288], "in_flight": [4, 3, 9]}, {1}),
        ("prefix_then_load", {HIT: [0, 320, 304], "in_flight": [0, 9, 1]}, {1}),
        # Where the prefix is, the fewest uncached tokens; elsewhere when all those replicas are behind.
        ("sticky_until_saturated", {HIT: [0, 800, 992], "pending_prefill_tokens": [0, 900, 900]}, {2}),
        ("sticky_until_saturated", {HIT: [0, 784, 800], "pending_prefill_tokens": [0, 0, 9000]}, {2}),
        ("sticky_until_saturated", {HIT: [0, 784, 800], "pending_prefill_tokens": [0, 700, LATE]}, {1}),
        ("sticky_until_saturated", {HIT: [0, 900, 800], "pending_prefill_tokens": [0, 200, LATE]}, {1}),
        ("sticky_until_saturated", {HIT: [0, 0, 0], "pending_prefill_tokens": [5, 9, 5]}, {0, 2}),
        # Uncached tokens, pending and own, times the batch with the new request.
        ("lmetric", {HIT: [0, 900, 0], "in_flight": [0, 8, 0]}, {1}),
        ("lmetric", {HIT: [0, 900, 0], "in_flight": [0, 10, 3]}, {0}),
        ("lmetric", {HIT: [0, 0, 0], "in_flight": [1, 3, 1], "pending_prefill_tokens": [1001, 0, 999]}, {2}),
        # A conversation's home, whatever the load; the least loaded where it has none.
        ("sticky_least_loaded", {"session_home": [0, 0, 1], "in_flight": [0, 5, 900]}, {2}),
        ("sticky_least_loaded", {"session_home": [0, 1, 0], "in_flight": [0, 0, 0]}, {1}),
        ("sticky_least_loaded", {"in_flight": [3, 2, 2]}, {1, 2}),
        # Tokens to compute count twice, and away from home the prompt once more: 200 there, 3,000 elsewhere.
        ("sticky_least_work", {HOME: [0, 0, 1], HIT: [0, 0, 900], PENDING: [0, 0, 2700]}, {2}),
        ("sticky_least_work", {HOME: [0, 0, 1], HIT: [0, 0, 900], PENDING: [0, 0, 2900]}, {0, 1}),
        # Nothing is cached at home any more: 2,000 there, 3,000 elsewhere.
        ("sticky_least_work", {HOME: [0, 0, 1], PENDING: [0, 0, 900]}, {2}),
        ("sticky_least_work", {HOME: [0, 0, 1], PENDING: [0, 0, 1100]}, {0, 1}),
        ("sticky_least_work", {HIT: [0, 500, 0], PENDING: [0, 900, 9000]}, {1}),
        ("sticky_least_work", {HIT: [0, 500, 0], PENDING: [0, 1100, 9000]}, {0}),
        # Decodes count as for least_work: 40 tokens are an iteration of 10 ms, 100 tokens of a prompt.
        ("sticky_least_work", {"expected_remaining_tokens": [500, 400, 480]}, {1}),
        ("sticky_least_work", {"expected_remaining_tokens": [400, 0, 0], PENDING: [0, 999, 1001]}, {1}),
        # Rules that count work count only what has to be computed.
        ("least_work", {HIT: [0, 600, 0], "pending_prefill_tokens": [0, 500, 300]}, {1}),
    ],
)
def test_rule(name: str, columns: Mapping[str, Sequence[float]], expected: set[int]) -> None:
    assert choices(name, view(0, columns)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "prefix_affinity",
        "prefix_then_load",
        "session_sticky",
        "sticky_least_loaded",
        "sticky_until_saturated",
        "sticky_least_work",
        "lmetric",
    ],
)
def test_none_chooses_a_replica_that_is_not_available(name: str) -> None:
    for session in (0, 5, 6, 7):
        seen = view(session, {"available": [1, 1, 0], HIT: [0, 0, 992], "session_home": [0, 0, 1]})
        assert 2 not in choices(name, seen)
        assert choices(name, view(session, {"available": [0, 1, 0]})) == {1}


def test_a_session_stays_where_it_is_and_sessions_spread_evenly() -> None:
    taken = [
        choices("session_sticky", view(session, {"in_flight": [900, 0, 0]})) for session in range(1, 301)
    ]
    assert all(len(each) == 1 for each in taken)
    counts = np.bincount([min(each) for each in taken], minlength=3)
    assert counts.min() > 70


def test_when_a_replica_goes_only_its_sessions_move() -> None:
    for session in range(1, 100):
        before = choices("session_sticky", view(session))
        after = choices("session_sticky", view(session, {"available": [1, 1, 0]}))
        assert before == {2} or after == before


def test_without_a_session_the_least_loaded_is_taken() -> None:
    assert choices("session_sticky", view(0, {"in_flight": [4, 3, 9]})) == {1}


def test_conversations_stay_where_their_first_turn_found_the_least_load() -> None:
    scenario = load_scenario("chat-sessions")
    requests = generate(scenario, requests=400, rate=0.8 * capacity_rps(scenario), seed=3, split="evaluate")
    clusters = Clusters([build_fleet(scenario)], [requests])
    run(clusters, Heuristic("sticky_least_loaded"))
    replica, session = clusters.outcomes(0).replica, requests.session
    assert session is not None and len(np.unique(session)) > 50
    homes = [np.unique(replica[session == each]) for each in np.unique(session) if each]
    assert all(len(home) == 1 for home in homes)
    counts = np.bincount(np.concatenate(homes), minlength=clusters.R)
    assert counts.min() > 0.8 * counts.mean()


def test_a_price_on_moving_is_worth_it_where_conversations_fill_the_caches() -> None:
    """Less latency than the same rule without it has, and a shorter tail than one that never moves any."""

    def measured(router: str) -> tuple[float, float]:
        runs = simulate(load_scenario("chat-sessions"), 0.8, find_router(router), range(3), 1200)
        metrics = [summarise(outcomes, 1.0, 0.05) for outcomes in runs]
        e2e, ttft = (np.mean([each[m] for each in metrics]) for m in ("e2e_mean_s", "ttft_p99_s"))
        return float(e2e), float(ttft)

    priced, unpriced, unmoved = map(measured, ("sticky_least_work", "least_work", "sticky_least_loaded"))
    assert priced[0] < 0.95 * unpriced[0]
    assert priced[1] < 0.9 * unmoved[1]
