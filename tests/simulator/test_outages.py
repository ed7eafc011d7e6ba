"""Slowdowns and outages: the compiled cluster against its twin, and the laws that hold for both."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.simulator import reference
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.decisions import waiting_areas
from fairlead.simulator.fleet import Fleet, custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import analytic
from fairlead.view.schema import (
    AVAILABLE,
    IN_FLIGHT,
    SCRAPE_AGE_S,
    SCRAPED_RUNNING,
    View,
)
from fairlead.workload.faults import Faults
from fairlead.workload.requests import Requests

A100 = analytic(model("llama-3-8b"), device("a100-80g"))
R = 3


def fleet(**changes: int | float) -> Fleet:
    options: dict[str, int | float] = {
        "token_budget": 256,
        "max_num_seqs": 32,
        "block_size": 16,
        "scrape_interval_s": 0.5,
        **changes,
    }
    timing = np.array([A100, A100, [2.5 * x for x in A100]])
    return custom_fleet(timing, np.full(R, 160), **options)  # type: ignore[arg-type]


def faults(*rows: tuple[float, int, float, bool]) -> Faults:
    time, replica, pace, up = zip(*rows, strict=True)
    return Faults(np.array(time), np.array(replica), np.array(pace), np.array(up))


def requests(seed: int, count: int, rate: float, happens: Faults | None, routers: int = 1) -> Requests:
    draw = np.random.default_rng(seed)
    return Requests(
        np.cumsum(draw.exponential(1 / rate, count)),
        draw.integers(1, 600, count),
        draw.integers(1, 400, count),
        router=draw.integers(0, routers, count),
        estimate=draw.integers(1, 600, count),
        session=draw.integers(0, 1 + count // 6, count),
        faults=happens,
    )


def chooser(seed: int) -> Callable[[View], int]:
    """An available replica at random."""
    draw = np.random.default_rng(seed)
    return lambda view: int(draw.choice(np.flatnonzero(view.replicas[0, :, AVAILABLE])))


def compiled(
    made: Fleet, wanted: Requests, choose: Callable[[View], int]
) -> tuple[Clusters, View, list[int]]:
    """The drained cluster, its views and the requests decided, by decision."""
    cluster = Clusters([made], [wanted])
    views, decided = [], []
    while True:
        view = cluster.observe()
        if cluster.done:
            break
        decided.append(int(cluster.state.clusters["at_hand"][0]))
        views.append((view.replicas[0].copy(), view.request[0].copy()))
        cluster.route(np.array([choose(view)]))
    cluster.drain()
    return cluster, View(np.array([v[0] for v in views]), np.array([v[1] for v in views])), decided


def assert_agree(made: Fleet, wanted: Requests, seed: int = 0) -> Clusters:
    plain = reference.simulate(made, wanted, chooser(seed), record_views=True)
    cluster, views, decided = compiled(made, wanted, chooser(seed))
    assert plain.view is not None
    np.testing.assert_array_equal(decided, plain.decisions)
    np.testing.assert_allclose(views.request, plain.view.request, rtol=1e-9)
    np.testing.assert_allclose(views.replicas, plain.view.replicas, rtol=1e-7, atol=1e-8)
    fast = cluster.outcomes(0)
    for name in ("first_token_s", "finish_s", "scheduled_s"):
        np.testing.assert_allclose(getattr(fast, name), getattr(plain, name), rtol=1e-9)
    for name in ("replica", "preemptions", "retries"):
        np.testing.assert_array_equal(getattr(fast, name), getattr(plain, name))
    return cluster


@st.composite
def happenings(draw: st.DrawFn) -> Faults:
    """Any changes of three replicas, at times that coincide often; in the end all are there."""
    rows = {}
    for time in draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.7, 2.0, 3.1, 4.5, 6.0]), max_size=8)):
        replica = draw(st.integers(0, R - 1))
        rows[(time, replica)] = (draw(st.sampled_from([1.0, 3.0, 0.5])), draw(st.booleans()))
    for replica in range(R):
        rows[(draw(st.sampled_from([7.0, 9.5])), replica)] = (1.0, True)
    return faults(*((time, r, *state) for (time, r), state in sorted(rows.items())))


@settings(max_examples=80, deadline=None)
@given(
    happens=happenings(),
    seed=st.integers(0, 2**31),
    rate=st.sampled_from([2.0, 10.0, 40.0]),
    routers=st.integers(1, 3),
    interval=st.sampled_from([0.1, 0.5, 5.0]),
)
def test_cluster_agrees_with_the_twin_whatever_fails(
    happens: Faults, seed: int, rate: float, routers: int, interval: float
) -> None:
    made = fleet(scrape_interval_s=interval, routers=routers)
    assert_agree(made, requests(seed, 60, rate, happens, routers), seed)


def test_a_run_of_outages_and_stragglers() -> None:
    """Long enough for everything to happen often: every replica dies under load, some at the same time."""
    rows = []
    for i in range(12):
        rows += [(2.0 + 2 * i, i % R, 1.0, False), (3.5 + 2 * i, i % R, 3.0, True)]
    rows += [(30.0, r, 1.0, False) for r in range(R)] + [(31.0 + r, r, 1.0, True) for r in range(R)]
    cluster = assert_agree(fleet(), requests(1, 500, 14.0, faults(*rows)))
    outcomes = cluster.outcomes(0)
    assert outcomes.retried.sum() > 100 and outcomes.retried.max() >= 2
    assert outcomes.preemptions.sum() > 10


@settings(max_examples=30, deadline=None)
@given(happens=happenings(), seed=st.integers(0, 2**31), rate=st.sampled_from([5.0, 40.0]))
def test_laws_under_failure(happens: Faults, seed: int, rate: float) -> None:
    wanted = requests(seed, 50, rate, happens)
    plain = reference.simulate(fleet(), wanted, chooser(seed), record_views=True, record_iterations=True)
    # Every request is served once, by a replica that was there all the while.
    assert sorted(set(plain.decisions.tolist())) == list(range(50))
    assert len(plain.decisions) == 50 + plain.retries.sum()
    assert (plain.first_token_s >= wanted.arrival_s).all() and (plain.finish_s >= plain.first_token_s).all()
    for time, replica, up in zip(happens.time_s, happens.replica, happens.up, strict=True):
        if not up:
            served = plain.replica == replica
            assert not (served & (plain.scheduled_s < time) & (plain.finish_s > time)).any()
    # No iteration ends while its replica is away, and tokens are computed by the last attempt alone.
    state = dict.fromkeys(range(R), True)
    changes = [*zip(happens.time_s, happens.replica, happens.up, strict=True), (math.inf, 0, True)]
    since = dict.fromkeys(range(R), 0.0)
    for time, replica, up in changes:
        for iteration in plain.iterations:
            if iteration.replica == replica and since[replica] < iteration.start_s < time:
                assert state[replica] and iteration.end_s <= max(time, iteration.end_s if up else time)
        state[int(replica)], since[int(replica)] = bool(up), float(time)
    for i in range(50):
        tokens = sum(
            slot.chunk
            for iteration in plain.iterations
            for slot in iteration.slots
            if slot.request == i and iteration.start_s >= plain.scheduled_s[i]
        )
        if plain.preemptions[i] == 0:
            assert tokens == wanted.prompt_tokens[i] + wanted.output_tokens[i] - 1
    assert plain.view is not None
    # A replica that is away has nothing in flight, and what was scraped before grows old.
    away = plain.view.replicas[:, :, AVAILABLE] == 0
    assert (plain.view.replicas[away][:, IN_FLIGHT] == 0).all()


def test_conservation_of_blocks_after_a_return() -> None:
    happens = faults((2.0, 0, 1.0, False), (4.0, 0, 1.0, True), (5.0, 1, 1.0, False), (6.0, 1, 1.0, True))
    cluster = Clusters([fleet()], [requests(5, 120, 20.0, happens)])
    choose = chooser(5)
    returned = 0
    while True:
        view = cluster.observe()
        if cluster.done:
            break
        replicas = cluster.state.replicas
        held = int((replicas["running"] + replicas["waiting"]).sum())
        finished = int(np.isfinite(cluster.state.requests[0]["finish"]).sum())
        at_router = int((cluster.state.requests[0]["replica"] < 0).sum())
        assert held + finished + at_router == 120
        empty = replicas["running"] == 0
        assert (replicas["free_blocks"][empty] == replicas["kv_blocks"][empty]).all()
        returned += int(empty[0] and cluster.state.clusters["now"][0] >= 4.0)
        cluster.route(np.array([choose(view)]))
    cluster.drain()
    assert returned > 0
    assert (cluster.state.replicas["free_blocks"] == cluster.state.replicas["kv_blocks"]).all()
    assert (cluster.state.phases == 0).all()
    for field in ("in_flight", "awaiting", "decoding", "pending_tokens", "context_tokens"):
        assert (cluster.state.ledgers[field] == 0).all()


@settings(max_examples=40, deadline=None)
@given(
    happens=happenings(),
    seed=st.integers(0, 2**31),
    rate=st.sampled_from([2.0, 10.0, 60.0]),
    begins=st.sampled_from([0.0, 0.2, 1.0, 5.0]),
)
def test_the_areas_add_up_to_the_latencies(happens: Faults, seed: int, rate: float, begins: float) -> None:
    """Little's law: waiting at a router, and at a replica that died, included."""
    wanted = requests(seed, 40, rate, happens, routers=2)
    cluster = Clusters([fleet(routers=2)], [wanted])
    choose = chooser(seed)
    total, areas = np.zeros(3), np.zeros((1, 3))
    cluster.state.clusters["tail_begins"] = begins
    view, last = cluster.observe(), float(cluster.state.clusters["now"][0])
    waiting_areas(cluster.state, cluster.state.clusters["now"], areas)
    total += areas[0]  # of what came before there was a replica to send it to
    while not cluster.done:
        cluster.route(np.array([choose(view)]))
        view = cluster.observe()
        if not cluster.done:
            now = cluster.state.clusters["now"]
            assert now[0] >= last
            last = float(now[0])
            waiting_areas(cluster.state, now, areas)
            total += areas[0]
    cluster.drain()
    outcomes = cluster.outcomes(0)
    end = np.array([max(last, outcomes.finish_s.max())])
    waiting_areas(cluster.state, end, areas)
    total += areas[0]
    assert total[0] == pytest.approx(outcomes.ttft_s.sum(), rel=1e-9)
    assert total[1] == pytest.approx(outcomes.e2e_s.sum(), rel=1e-9)
    # Each request once, by its own TTFT, whatever was lost before.
    beyond = 0.02 * begins * len(outcomes.ttft_s) + np.maximum(0.0, outcomes.ttft_s - begins).sum()
    assert total[2] == pytest.approx(beyond, rel=1e-9, abs=1e-9)


def test_by_hand_a_request_waits_for_a_replica_to_return() -> None:
    """The only replica is away from 1 to 3: what comes then is decided at 3, what was there begins anew."""
    only = custom_fleet(
        np.array([A100]),
        np.array([100]),
        token_budget=64,
        max_num_seqs=8,
        block_size=16,
        scrape_interval_s=1.0,
    )
    wanted = Requests(
        np.array([0.9, 1.0, 2.0, 3.0]),
        np.full(4, 40),
        np.full(4, 50),
        faults=faults((1.0, 0, 1.0, False), (3.0, 0, 1.0, True)),
    )
    cluster, views, decided = compiled(only, wanted, lambda view: 0)
    assert decided == [0, 0, 1, 2, 3]
    assert cluster.outcomes(0).retried.tolist() == [1, 0, 0, 0]
    scheduled = cluster.outcomes(0).scheduled_s
    assert scheduled is not None and scheduled.min() >= 3.0
    assert views.replicas[:, 0, IN_FLIGHT].tolist() == [0, 0, 1, 2, 3]
    # The scrape at 3 came while it was away: the last one is that at 1, which saw the request running.
    assert views.replicas[1:, 0, SCRAPE_AGE_S].tolist() == [2.0] * 4
    assert views.replicas[1:, 0, SCRAPED_RUNNING].tolist() == [1.0] * 4


def test_a_straggler_is_slower_only_for_iterations_that_start_then() -> None:
    def run(happens: Faults | None) -> np.ndarray:
        wanted = Requests(np.zeros(1), np.array([100]), np.array([300]), faults=happens)
        cluster, _, _ = compiled(fleet(), wanted, lambda view: 0)
        return cluster.outcomes(0).finish_s

    plain = run(None)
    assert run(faults((0.0, 0, 3.0, True))) == pytest.approx(3 * plain)
    assert run(faults((0.0, 1, 3.0, True))) == pytest.approx(plain)
    middle = run(faults((1.0, 0, 3.0, True), (2.0, 0, 1.0, True)))
    assert plain + 0.6 < middle < plain + 0.75


def test_a_chosen_replica_that_is_away_is_an_error() -> None:
    happens = faults((0.0, 1, 1.0, False), (9.0, 1, 1.0, True))
    cluster = Clusters([fleet()], [requests(0, 5, 5.0, happens)])
    cluster.observe()
    with pytest.raises(FairleadError, match="cluster 0 sent a request to replica 1, which is not available"):
        cluster.route(np.array([1]))
    with pytest.raises(FairleadError, match="replica 1: it is not available"):
        reference.simulate(fleet(), requests(0, 5, 5.0, happens), [1] * 5)


def test_draining_while_requests_are_to_be_decided_is_an_error() -> None:
    cluster = Clusters([fleet()], [requests(0, 5, 5.0, faults((1.0, 1, 1.0, False), (9.0, 1, 1.0, True)))])
    with pytest.raises(FairleadError, match="cluster 0 has requests to decide"):
        cluster.drain()


def test_clusters_in_lockstep_may_differ_in_their_number_of_decisions() -> None:
    happens = faults((2.0, 0, 1.0, False), (4.0, 0, 1.0, True))
    several = [requests(3, 40, 20.0, happens), requests(4, 40, 20.0, None)]
    together = Clusters([fleet(), fleet()], several)
    choose = [chooser(0), chooser(1)]
    decisions = np.zeros(2, np.int64)
    while True:
        view = together.observe()
        deciding = together.deciding
        if together.done:
            break
        actions = np.zeros(2, np.int64)
        for c in np.flatnonzero(deciding).tolist():
            actions[c] = choose[c](View(view.replicas[c : c + 1], view.request[c : c + 1]))
        decisions += deciding
        together.route(actions)
    together.drain()
    assert decisions[0] > 40 == decisions[1]
    for number in range(2):
        alone, _, _ = compiled(fleet(), several[number], chooser(number))
        np.testing.assert_array_equal(alone.outcomes(0).finish_s, together.outcomes(number).finish_s)
