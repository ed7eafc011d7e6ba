"""Cancellation in the twin: what leaves, when, and that no KV block is lost."""

import math

from hypothesis import given
from hypothesis import strategies as st

from fairlead.simulator.reference_replica import InFlight, Replica, ReplicaSpec
from fairlead.simulator.timing import Coefficients

ONE_SECOND = Coefficients(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def replica(kv_blocks: int = 100, max_seqs: int = 10, token_budget: int = 100) -> Replica:
    return Replica(0, ReplicaSpec(ONE_SECOND, token_budget, max_seqs, block_size=4, kv_blocks=kv_blocks))


def submitted(engine: Replica, *triples: tuple[float, int, int]) -> list[InFlight]:
    requests = [InFlight(i, *triple) for i, triple in enumerate(triples)]
    for request in requests:
        engine.advance(request.arrival_s)
        engine.submit(request)
    return requests


def test_a_running_request_leaves_at_the_end_of_its_batch_and_emits_nothing_more():
    engine = replica()
    gone, stays = submitted(engine, (0.0, 6, 9), (0.0, 6, 3))
    engine.advance(1.5)
    engine.cancel(gone)
    engine.advance(1.75)
    assert (gone.generated, engine.free) == (1, 100 - 2 * 2)  # in the batch until 2.0
    engine.advance(2.0)
    assert engine.running == [stays] and engine.free == 100 - 2
    engine.advance(math.inf)
    assert (gone.generated, math.isnan(gone.finish_s), stays.finish_s) == (1, True, 3.0)
    assert (engine.free, engine.finished) == (100, [1])


def test_a_waiting_request_leaves_at_once():
    engine = replica(max_seqs=1)
    first, gone, last = submitted(engine, (0.0, 4, 2), (0.0, 4, 2), (0.0, 4, 1))
    engine.advance(0.5)
    engine.cancel(gone)
    assert list(engine.waiting) == [last]
    engine.advance(math.inf)
    assert (first.finish_s, last.finish_s, engine.free) == (2.0, 3.0, 100)


def test_between_two_batches_a_running_request_leaves_at_once():
    engine = replica()
    (gone,) = submitted(engine, (0.0, 6, 9))
    engine.advance(1.0)  # the first batch has ended, the second has not begun
    engine.cancel(gone)
    assert engine.running == [] and engine.free == 100
    engine.advance(math.inf)
    assert gone.generated == 1


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0, 2.5])), min_size=1
    ),
    st.integers(5, 12),
    st.randoms(use_true_random=False),
)
def test_blocks_are_conserved_however_many_leave(lengths, kv_blocks, random):
    engine = replica(kv_blocks, max_seqs=4, token_budget=6)
    requests: list[InFlight] = []
    now_s = 0.0
    for i, (prompt, output, gap) in enumerate(lengths):
        now_s += gap
        engine.advance(now_s)
        requests.append(InFlight(i, now_s, prompt, output))
        engine.submit(requests[-1])
        here = [*engine.running, *engine.waiting]
        leaving = [r for r in here if not r.cancelled and random.random() < 0.3]
        for request in leaving:
            engine.cancel(request)
        in_batch = engine.end_s is not None
        held = sum(engine.blocks(r.computed + (r.chunk if in_batch else 0)) for r in engine.running)
        assert engine.free + held == kv_blocks
    engine.advance(math.inf)
    assert engine.free == kv_blocks and not engine.running and not engine.waiting
    assert all(
        r.cancelled != (r.generated == r.output_tokens and not math.isnan(r.finish_s)) for r in requests
    )
