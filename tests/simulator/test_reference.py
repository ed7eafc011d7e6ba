"""The twin by hand: cases small enough to be worked out on paper.

Every time here is a small whole number of seconds, so that equality is exact.
"""

from collections.abc import Sequence

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.simulator.reference import ReplicaSpec, Result, simulate
from fairlead.simulator.timing import Coefficients
from fairlead.workload.requests import Requests

ONE_SECOND = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Every iteration lasts one second."""
ALL_TERMS = Coefficients(
    base_s=1.0, weights_s=4.0, token_s=2.0, comm_s=0.5, seq_s=0.25, kv_s=0.125, pair_s=0.0625
)


def table(arrival: Sequence[float], prompt: Sequence[int], output: Sequence[int]) -> Requests:
    return Requests(np.array(arrival, np.float64), np.array(prompt, np.int64), np.array(output, np.int64))


def spec(timing=ONE_SECOND, token_budget=100, max_seqs=10, block_size=4, kv_blocks=100) -> ReplicaSpec:
    return ReplicaSpec(timing, token_budget, max_seqs, block_size, kv_blocks)


def run(requests, replica: ReplicaSpec) -> Result:
    """Sends (arrival, prompt, output) triples to one replica."""
    arrival, prompt, output = zip(*requests, strict=True)
    return simulate([replica], table(arrival, prompt, output), [0] * len(arrival), record_iterations=True)


def batches(result: Result) -> list[list[tuple[int, int]]]:
    """(request, chunk) of each iteration, those without a chunk left out."""
    return [[(s.request, s.chunk) for s in it.slots if s.chunk] for it in result.iterations]


def times(result: Result) -> tuple[list[float], list[float]]:
    return result.first_token_s.tolist(), result.finish_s.tolist()


def test_one_request_alone_takes_its_prefill_and_output_minus_one_decodes():
    result = run([(5.0, 6, 3)], spec())
    assert batches(result) == [[(0, 6)], [(0, 1)], [(0, 1)]]
    assert times(result) == ([6.0], [8.0])


def test_one_request_alone_with_every_term_of_the_time_model():
    result = run([(5.0, 6, 3)], spec(timing=ALL_TERMS))
    prefill = 1 + max(4, 2 * 6) + 0.5 * 6 + 0.25 + 0.0625 * 6 * 7 / 2
    # The first decode computes token 7: it reads 7 keys, its own included.
    decodes = [1 + 4 + 0.5 + 0.25 + 0.125 * 7, 1 + 4 + 0.5 + 0.25 + 0.125 * 8]
    assert times(result) == ([5 + prefill], [5 + prefill + sum(decodes)])


def test_a_request_with_one_output_token_finishes_at_its_first_token():
    result = run([(2.0, 6, 1)], spec())
    assert times(result) == ([3.0], [3.0])


def test_two_at_the_same_time_share_their_iterations():
    result = run([(0.0, 6, 2), (0.0, 3, 3)], spec())
    assert batches(result) == [[(0, 6), (1, 3)], [(0, 1), (1, 1)], [(1, 1)]]
    assert times(result) == ([1.0, 1.0], [2.0, 3.0])


def test_an_arrival_during_an_iteration_joins_at_the_next_boundary():
    result = run([(0.0, 6, 3), (0.5, 3, 1)], spec())
    assert batches(result) == [[(0, 6)], [(0, 1), (1, 3)], [(0, 1)]]
    assert times(result) == ([1.0, 2.0], [3.0, 2.0])


def test_an_arrival_exactly_at_a_boundary_joins_its_batch():
    result = run([(0.0, 6, 3), (1.0, 3, 1), (1.0, 2, 1)], spec())
    assert batches(result) == [[(0, 6)], [(0, 1), (1, 3), (2, 2)], [(0, 1)]]


def test_a_replica_that_has_been_idle_starts_at_once():
    result = run([(0.0, 6, 1), (1.0, 3, 1), (7.25, 3, 1)], spec())
    assert result.finish_s.tolist() == [1.0, 2.0, 8.25]


def test_a_prompt_longer_than_the_budget_is_chunked():
    result = run([(0.0, 10, 2)], spec(token_budget=4))
    assert batches(result) == [[(0, 4)], [(0, 4)], [(0, 2)], [(0, 1)]]
    assert times(result) == ([3.0], [4.0])


def test_chunks_pay_attention_to_the_chunks_before_them():
    pairs_only = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    result = run([(0.0, 10, 1)], spec(timing=pairs_only, token_budget=4))
    durations = [iteration.end_s - iteration.start_s for iteration in result.iterations]
    assert durations == [1 + 10, 1 + 4 * 4 + 10, 1 + 2 * 8 + 3]


def test_decodes_come_first_and_a_prompt_gets_the_rest_of_the_budget():
    result = run([(0.0, 4, 4), (0.5, 5, 2), (0.5, 3, 1)], spec(token_budget=4))
    assert batches(result) == [
        [(0, 4)],
        [(0, 1), (1, 3)],  # request 1 in chunks, behind the decode
        [(0, 1), (1, 2), (2, 1)],  # its last chunk, and what is left for request 2
        [(0, 1), (1, 1), (2, 2)],
    ]
    assert times(result) == ([1.0, 3.0, 4.0], [4.0, 4.0, 4.0])


def test_max_seqs_makes_requests_wait():
    result = run([(0.0, 3, 2), (0.0, 3, 2), (0.0, 3, 1)], spec(max_seqs=2))
    assert batches(result) == [[(0, 3), (1, 3)], [(0, 1), (1, 1)], [(2, 3)]]
    assert result.iterations[0].waiting == (2,)


def test_admission_stops_at_the_first_request_without_blocks():
    # 4 blocks of 4: request 1 needs 3 and does not fit beside request 0; request 2 would, but waits its turn.
    result = run([(0.0, 8, 1), (0.0, 12, 1), (0.0, 1, 1)], spec(kv_blocks=4))
    assert batches(result) == [[(0, 8)], [(1, 12), (2, 1)]]


def test_preemption_by_hand():
    """Two requests of 4 + 5 tokens on 3 blocks of 4 tokens: they can't both grow past 4.

    Iteration 1 fills a block each (1 free). In 2, request 0 takes the third block for token 5, and
    request 1 finds none, so it is preempted, being the last. Nothing is admitted then. In 3 there is
    room: one block is free, but recomputing 4 + 1 tokens needs two, so request 1 waits until request 0,
    which emits its last token at the end of iteration 5, has left. Its 5 known tokens are recomputed as
    one prefill in iteration 6, which emits its second token; three decodes follow.
    """
    result = run([(0.0, 4, 5), (0.0, 4, 5)], spec(kv_blocks=3))
    assert batches(result) == [
        [(0, 4), (1, 4)],
        [(0, 1)],
        [(0, 1)],
        [(0, 1)],
        [(0, 1)],
        [(1, 5)],
        [(1, 1)],
        [(1, 1)],
        [(1, 1)],
    ]
    assert [it.preempted for it in result.iterations] == [(), (1,)] + [()] * 7
    assert [it.free_blocks for it in result.iterations] == [1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [slot.decoding for it in result.iterations for slot in it.slots if slot.request == 1] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert times(result) == ([1.0, 1.0], [5.0, 9.0])
    assert result.preemptions.tolist() == [0, 1]


def test_a_preempted_request_goes_ahead_of_those_that_wait():
    # Requests 0 and 1 leave one block, request 2 needs two. Request 1 is preempted, and returns before 2.
    result = run([(0.0, 4, 3), (0.0, 4, 3), (0.5, 5, 1)], spec(kv_blocks=3))
    assert result.iterations[1].preempted == (1,)
    assert result.iterations[1].waiting == (1, 2)
    assert result.finish_s.tolist() == [3.0, 5.0, 6.0]


def test_nothing_is_admitted_in_an_iteration_that_preempts():
    # Blocks of 4, 4 in all. At time 1 request 0 and 1 hold two and two, full; request 2 needs one.
    # Request 0 takes its third block from request 1, and one is left over, but request 2 must wait.
    result = run([(0.0, 8, 3), (0.0, 8, 2), (0.5, 2, 1)], spec(kv_blocks=4))
    second = result.iterations[1]
    assert second.preempted == (1,) and second.free_blocks == 1 and second.waiting == (1, 2)
    # And then request 1, which doesn't fit, blocks the head of the queue until request 0 has left.
    assert batches(result) == [[(0, 8), (1, 8)], [(0, 1)], [(0, 1)], [(1, 9), (2, 2)]]


def test_a_request_may_preempt_itself():
    # Request 1 is last in line when it needs a block, so it is its own victim.
    result = run([(0.0, 5, 4), (0.0, 4, 2)], spec(kv_blocks=3))
    assert [it.preempted for it in result.iterations][:2] == [(), (1,)]
    assert batches(result)[1] == [(0, 1)]


def test_a_prompt_preempted_between_two_chunks_starts_over():
    # Budget 4: request 1 has 3 of its 6 tokens when request 0 needs the block.
    result = run([(0.0, 4, 6), (0.0, 6, 1)], spec(token_budget=4, kv_blocks=3))
    assert batches(result)[:3] == [[(0, 4)], [(0, 1), (1, 3)], [(0, 1)]]
    assert result.iterations[2].preempted == (1,)
    assert batches(result)[-2:] == [[(1, 4)], [(1, 2)]]
    assert times(result) == ([1.0, 8.0], [6.0, 8.0])


def test_the_last_token_needs_no_room_in_the_cache():
    assert run([(0.0, 4, 5)], spec(kv_blocks=2)).finish_s.tolist() == [5.0]
    with pytest.raises(
        FairleadError, match=r"request 1 .* needs 9 tokens of KV cache, the smallest replica holds 8: "
    ):
        run([(0.0, 1, 1), (0.0, 4, 6)], spec(kv_blocks=2))


def test_an_unknown_replica_is_an_error():
    with pytest.raises(FairleadError, match="request 1 was sent to replica 2: use 0 to 1"):
        simulate([spec(), spec()], table([0.0, 0.0], [1, 1], [1, 1]), [0, 2])


def test_no_requests_at_all():
    result = simulate([spec()], table([], [], []), [], record_views=True)
    assert result.finish_s.shape == (0,) and result.view is not None
    assert result.view.replicas.shape[:2] == (0, 1)


def test_replicas_do_not_disturb_each_other():
    requests = table([0.0, 0.1, 0.2, 0.3], [3, 4, 5, 6], [2, 3, 4, 5])
    both = simulate([spec(), spec()], requests, [0, 1, 0, 1])
    alone = simulate([spec()], table([0.0, 0.2], [3, 5], [2, 4]), [0, 0])
    np.testing.assert_array_equal(both.finish_s[[0, 2]], alone.finish_s)
