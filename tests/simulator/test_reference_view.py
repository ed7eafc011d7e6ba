"""What the twin's router sees, by hand: averages, scrapes and their age."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from fairlead.simulator.fleet import custom_fleet
from fairlead.simulator.reference import ReplicaSpec, from_fleet, last_multiple, simulate
from fairlead.simulator.timing import Coefficients
from fairlead.view import schema
from fairlead.workload.requests import Requests

ONE_SECOND = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def table(arrival: Sequence[float], prompt: Sequence[int], output: Sequence[int]) -> Requests:
    return Requests(np.array(arrival, np.float64), np.array(prompt, np.int64), np.array(output, np.int64))


def rows(
    requests: list[tuple[float, int, int]],
    interval: float = 1.0,
    timing: Coefficients = ONE_SECOND,
    kv_blocks: int = 10,
) -> npt.NDArray[np.float64]:
    """The view's rows (N, columns) of one replica; by default its iterations last one second."""
    spec = ReplicaSpec(timing, token_budget=100, max_seqs=10, block_size=4, kv_blocks=kv_blocks)
    where = [0] * len(requests)
    result = simulate(
        [spec], table(*zip(*requests, strict=True)), where, scrape_interval_s=interval, record_views=True
    )
    assert result.view is not None
    return result.view.replicas[:, 0]


def test_nothing_is_known_at_first():
    row = rows([(0.0, 5, 2)])[0]
    assert row[: schema.SPEED].tolist() == [0.0] * schema.SPEED


def test_a_finish_at_the_time_of_a_decision_is_seen():
    seen = rows([(0.0, 5, 2), (2.0, 3, 1)])[1]
    assert seen[schema.IN_FLIGHT] == 0


def test_requests_at_the_same_time_are_seen_as_placed_but_not_started():
    first, second = rows([(0.5, 5, 2), (0.5, 3, 1)])
    assert first[schema.IN_FLIGHT] == 0 and second[schema.IN_FLIGHT] == 1
    assert second[schema.PENDING_PREFILL_TOKENS] == 5
    assert second[schema.SCRAPED_WAITING] == 0, "the scrape at 0 came before both"


def test_ttft_average_takes_first_tokens_in_order():
    # First tokens at 1 (after 1 s), and at 2 (after 1.5 s and after 1.25 s, in order of admission).
    seen = rows([(0.0, 5, 9), (0.5, 3, 9), (0.75, 3, 9), (2.0, 1, 1)])[3]
    one = 1.0
    two = one + 0.2 * (1.5 - one)
    three = two + 0.2 * (1.25 - two)
    assert seen[schema.TTFT_EWMA_S] == pytest.approx(three)


def test_inter_token_average_takes_iterations_with_a_decode():
    slow = Coefficients(1.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0)
    # Prefill of 4 until 3 (not counted); a decode until 4.5; a decode and a prefill of 2 until 7.
    seen = rows([(0.0, 4, 9), (4.0, 2, 1), (7.0, 1, 1)], timing=slow)
    assert seen[1][schema.ITL_EWMA_S] == 0
    assert seen[2][schema.ITL_EWMA_S] == pytest.approx(1.5 + 0.05 * (2.5 - 1.5))


def test_in_flight_average_decays_with_time():
    seen = rows([(1.0, 5, 99), (2.0, 5, 99), (6.0, 5, 99)], kv_blocks=100)[:, schema.IN_FLIGHT_EWMA]
    after_one = (1 - math.exp(-1 / 5)) * 1
    after_two = after_one + (1 - math.exp(-4 / 5)) * (2 - after_one)
    assert seen == pytest.approx([0, after_one, after_two])


def test_scrapes_are_as_old_as_their_interval():
    seen = rows([(0.0, 5, 3), (0.4, 1, 1), (1.0, 1, 1), (2.3, 1, 1)], interval=0.5)
    assert seen[:, schema.SCRAPE_AGE_S] == pytest.approx([0.0, 0.4, 0.0, 0.3])
    # At 0.4 the scrape at 0 is the last, and saw nothing. At 1.0 request 1 is waiting still: the
    # boundary at exactly 1.0 has not formed its batch. At 2.0 the batch at 1.0 has come and gone.
    assert seen[:, schema.SCRAPED_RUNNING].tolist() == [0, 0, 1, 1]
    assert seen[:, schema.SCRAPED_WAITING].tolist() == [0, 0, 1, 0]
    assert seen[:, schema.SCRAPED_KV_USAGE] == pytest.approx([0, 0, 0.2, 0.2])


def test_scraped_preemptions_are_those_since_the_last_scrape_that_was_read():
    # Two requests of 4 + 5 tokens on 3 blocks: the second is preempted at time 1.
    seen = rows([(0.0, 4, 5), (0.0, 4, 5), (1.0, 1, 1), (3.5, 1, 1), (3.6, 1, 1), (4.5, 1, 1)], kv_blocks=3)
    assert seen[:, schema.SCRAPED_PREEMPTIONS].tolist() == [0, 0, 0, 1, 1, 0]


def test_a_fleet_brings_its_declared_facts():
    timing = np.array([ONE_SECOND, [2.0 * c for c in ONE_SECOND]])
    fleet = custom_fleet(
        timing,
        np.array([50, 40]),
        token_budget=64,
        max_num_seqs=8,
        block_size=4,
        scrape_interval_s=2.0,
        max_tokens=77,
    )
    requests = table([0.0, 3.0], [4, 4], [2, 2])
    view = simulate(fleet, requests, [0, 1], record_views=True).view
    assert view is not None
    np.testing.assert_array_equal(view.replicas[0, :, schema.SPEED : schema.AVAILABLE], fleet.static)
    assert view.replicas[1, 0, schema.SCRAPE_AGE_S] == 1.0
    assert view.request[0].tolist() == [4, 77, 256, 0, 1]
    assert [spec.kv_blocks for spec in from_fleet(fleet)] == [50, 40]


def test_a_router_is_asked_with_what_it_may_know():
    asked = []

    def choose(view: schema.View) -> int:
        asked.append(view)
        return int(np.argmin(view.replicas[0, :, schema.IN_FLIGHT]))

    spec = ReplicaSpec(ONE_SECOND, 100, 10, 4, 10)
    result = simulate([spec, spec], table([0.0, 0.1, 0.2, 9.0], [1] * 4, [4] * 4), choose)
    assert result.replica.tolist() == [0, 1, 0, 0]
    assert asked[0].replicas.shape == (1, 2, schema.NUM_REPLICA_COLUMNS)
    assert asked[0].request.shape == (1, schema.NUM_REQUEST_COLUMNS)


@pytest.mark.parametrize("interval", [0.1, 0.3, 1.0, 7.0])
def test_last_multiple_is_the_last(interval):
    for j in range(200):
        assert last_multiple(interval, j * interval) == j * interval
        assert last_multiple(interval, (j + 0.5) * interval) == j * interval


def test_a_scrape_stays_as_it_was_until_the_next():
    """Staleness: the engine has gone on since the scrape at 1.5, the ledger knows, the scrape does not."""
    seen = rows([(0.0, 5, 2), (0.2, 8, 2), (2.3, 1, 1), (2.9, 1, 1)], interval=1.5)
    for decision in (2, 3):
        assert seen[decision, schema.SCRAPED_RUNNING] == 2
        assert seen[decision, schema.SCRAPED_KV_USAGE] == pytest.approx(0.4)
    assert seen[2, schema.IN_FLIGHT] == 1
    assert seen[3, schema.SCRAPE_AGE_S] == pytest.approx(1.4)
