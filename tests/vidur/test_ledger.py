"""The ledger with batches made by hand, as Vidur's events would bring them."""

import math
from types import SimpleNamespace as Record

import numpy as np
import pytest

from fairlead.simulator.fleet import build_fleet
from fairlead.vidur.ledger import Ledger
from fairlead.view.schema import REPLICA_COLUMNS, REQUEST_COLUMNS
from fairlead.view.tail import BINS, forget_and_find, tail_bin
from fairlead.workload.scenario import load_scenario

FLEET = build_fleet(load_scenario("chat-unequal"))


def request(number: int, *, prompt_done=True, completed=False, restarts=0) -> Record:
    return Record(number=number, is_prefill_complete=prompt_done, completed=completed, num_restarts=restarts)


def batch(start: float, end: float, requests: list[Record], tokens: list[int]) -> Record:
    return Record(scheduled_at=start, completed_at=end, requests=requests, num_q_tokens=tokens)


def columns(ledger: Ledger, now: float, prompt: int = 10) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    view = ledger.view(now, prompt)
    names = [column.name for column in REPLICA_COLUMNS]
    asked = dict(zip((c.name for c in REQUEST_COLUMNS), view.request[0].tolist(), strict=True))
    return dict(zip(names, view.replicas[0].T, strict=True)), asked


def test_an_idle_cluster():
    found, asked = columns(Ledger(FLEET), 2.0, prompt=33)
    assert asked["prompt_tokens"] == 33
    assert asked["expected_output_tokens"] == 256
    assert asked["ttft_tail_s"] == 1.0
    assert not found["in_flight"].any()
    assert found["scrape_age_s"].tolist() == [2.0] * 4
    np.testing.assert_array_equal(found["speed"], FLEET.static[:, 0])


def test_a_conversation_is_at_home_where_its_last_request_went():
    ledger = Ledger(FLEET)
    home = [column.name for column in REPLICA_COLUMNS].index("session_home")
    ledger.routed(0, 1, 1.0, 100, session=7)
    ledger.routed(1, 3, 1.1, 100, session=8)
    ledger.routed(2, 2, 1.2, 100, session=7)
    ledger.routed(3, 0, 1.3, 100)
    homes = [ledger.view(2.0, 10, session).replicas[0, :, home].tolist() for session in (7, 8, 9, 0)]
    assert homes == [[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_a_request_from_arrival_to_the_end():
    ledger = Ledger(FLEET)
    ledger.routed(0, 1, 1.0, 100)
    found, _ = columns(ledger, 1.5)
    assert found["in_flight"].tolist() == [0, 1, 0, 0]
    assert found["awaiting_first_token"][1] == 1
    assert found["pending_prefill_tokens"][1] == 100
    assert found["expected_remaining_tokens"][1] == 256
    assert found["oldest_wait_s"][1] == 0.5
    assert found["in_flight_ewma"][1] == pytest.approx(1 - math.exp(-1.5 / 5))

    ledger.batch_ended(1, batch(1.0, 1.6, [request(0, prompt_done=False)], [64]))
    assert columns(ledger, 1.6)[0]["awaiting_first_token"][1] == 1
    ledger.batch_ended(1, batch(1.6, 2.0, [request(0)], [36]))
    found, _ = columns(ledger, 2.0)
    assert found["awaiting_first_token"][1] == 0
    assert found["context_tokens"][1] == 101
    assert found["ttft_ewma_s"][1] == 1.0
    counts = np.zeros(BINS)
    counts[tail_bin(1.0)] = 1.0
    assert columns(ledger, 2.0)[1]["ttft_tail_s"] == pytest.approx(forget_and_find(counts))
    assert found["itl_ewma_s"][1] == 0.0

    ledger.batch_ended(1, batch(2.0, 2.1, [request(0)], [1]))
    ledger.batch_ended(1, batch(2.1, 2.3, [request(0, completed=True)], [1]))
    found, asked = columns(ledger, 2.5)
    assert not found["in_flight"].any()
    assert found["itl_ewma_s"][1] == pytest.approx(0.1 + 0.05 * 0.1)
    assert asked["expected_output_tokens"] == pytest.approx((8 * 256 + 3) / 9)


def test_a_replica_that_is_slower_than_declared_is_shown_so():
    ledger = Ledger(FLEET)
    for r in (0, 1):
        ledger.routed(r, r, 0.0, 100)
        ledger.batch_ended(r, batch(0.0, 0.1, [request(r)], [100]))
    np.testing.assert_array_equal(columns(ledger, 0.1)[0]["speed"], FLEET.static[:, 0])
    declared = FLEET.static[0, 2]
    for i in range(300):
        for r, factor in ((0, 1.0), (1, 2.0)):
            begins = 0.1 + i * factor * declared
            ledger.batch_ended(r, batch(begins, begins + factor * declared, [request(r)], [1]))
    speed = columns(ledger, 20.0)[0]["speed"]
    assert speed[0] == FLEET.static[0, 0]
    assert speed[1] == pytest.approx(FLEET.static[1, 0] / 2.0, rel=0.02)


def test_scrapes_are_read_when_a_decision_is_made():
    ledger = Ledger(FLEET)
    ledger.routed(0, 0, 0.5, 100)
    everyone = [request(0, restarts=2)]
    engines = [
        Record(_allocation_map={0: 7}, num_pending_requests=3, memory_usage_percent=25.0) for _ in range(4)
    ]
    ledger.scrape(1.0, engines, everyone)
    found, _ = columns(ledger, 1.25)
    assert found["scraped_running"][0] == 1
    assert found["scraped_waiting"][0] == 3
    assert found["scraped_kv_usage"][0] == 0.25
    assert found["scraped_preemptions"].tolist() == [2, 0, 0, 0]
    assert found["scrape_age_s"][0] == 0.25
    assert columns(ledger, 1.5)[0]["scraped_preemptions"][0] == 2
    ledger.batch_ended(0, batch(1.5, 1.6, [request(0, completed=True, restarts=3)], [1]))
    ledger.scrape(2.0, engines, everyone)
    ledger.scrape(3.0, engines, everyone)
    assert columns(ledger, 3.0)[0]["scraped_preemptions"][0] == 1
