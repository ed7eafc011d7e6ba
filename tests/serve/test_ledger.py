"""The live ledger against a slow, obvious recount, and what stands in for what it cannot see."""

import math
import random

import numpy as np
import pytest

from fairlead.serve.ledger import OTHER, STREAM, WHOLE, Entry, Ledger
from fairlead.serve.scraping import Reading, orca_reading, read_metrics
from fairlead.view import schema
from fairlead.view.tail import BINS, forget_and_find, tail_bin

STATIC = {
    "speed": 1.0,
    "prefill_tokens_per_s": 10_000.0,
    "decode_iteration_s": 0.01,
    "kv_capacity_tokens": 1000.0,
    "max_num_seqs": 8.0,
}


def seen(ledger: Ledger, rows: list[int], now: float, stale_after: float = 10.0) -> np.ndarray:
    out = np.zeros((len(rows), schema.NUM_REPLICA_COLUMNS))
    ledger.write_view(np.array(rows, np.int64), now, stale_after, out)
    return out


def test_the_columns_agree_with_a_recount():
    generator = random.Random(1)
    ledger = Ledger(0.0)
    rows = [ledger.add(**STATIC) for _ in range(6)]  # more than the first capacity
    flying: list[Entry] = []
    outputs: list[int] = []
    now = 0.0
    for _ in range(3000):
        now += generator.expovariate(50.0)
        what = generator.random()
        if what < 0.3 or not flying:
            entry = ledger.routed(generator.choice(rows), generator.randint(1, 900), now, STREAM)
            flying.append(entry)
        elif what < 0.85:
            ledger.streamed(generator.choice(flying), generator.randint(1, 3), now)
        else:
            entry = flying.pop(generator.randrange(len(flying)))
            if generator.random() < 0.7:
                ledger.finished_with(entry, entry.streamed)
                outputs += [entry.streamed] if entry.streamed else []
            else:
                ledger.lost(entry)
    mean = (8 * 256 + sum(outputs)) / (8 + len(outputs))
    view = seen(ledger, rows, now)
    for k, row in zip(rows, view, strict=True):
        here = [each for each in flying if each.row == k]
        waiting = [each for each in here if each.streamed == 0]
        decoding = [each for each in here if each.streamed > 0]
        assert row[schema.IN_FLIGHT] == len(here)
        assert row[schema.AWAITING_FIRST_TOKEN] == len(waiting)
        assert row[schema.PENDING_PREFILL_TOKENS] == sum(each.prompt for each in waiting)
        assert row[schema.CONTEXT_TOKENS] == sum(each.prompt + each.streamed for each in decoding)
        expected = sum(max(mean - each.streamed, 0.3 * mean) for each in here)
        assert row[schema.EXPECTED_REMAINING_TOKENS] == pytest.approx(expected)
        oldest = max((now - each.sent for each in waiting), default=0.0)
        assert row[schema.OLDEST_WAIT_S] == pytest.approx(oldest)
        assert row[schema.AVAILABLE] == 1.0
    for entry in flying:
        ledger.lost(entry)
    assert not ledger.entries
    assert not seen(ledger, rows, now)[:, :5].any()


def test_averages_move_as_in_the_simulator():
    ledger = Ledger(0.0)
    row = ledger.add(**STATIC)
    first = ledger.routed(row, 10, 0.0, STREAM)
    second = ledger.routed(row, 10, 0.0, STREAM)
    assert seen(ledger, [row], 5.0)[0, schema.IN_FLIGHT_EWMA] == pytest.approx(2 * (1 - math.exp(-1)))
    ledger.streamed(first, 1, 1.0)
    ledger.streamed(second, 1, 2.0)
    assert ledger.rows[row, schema.TTFT_EWMA_S] == pytest.approx(1.0 + 0.2 * (2.0 - 1.0))
    # One iteration is counted once, though both streams show it: 1.0, then 0.5.
    for entry, now in ((first, 3.0), (second, 3.01), (first, 3.5), (second, 3.51)):
        ledger.streamed(entry, 1, now)
    assert ledger.rows[row, schema.ITL_EWMA_S] == pytest.approx(2.0 + 0.05 * (0.5 - 2.0))


def test_an_answer_that_is_not_streamed_is_taken_to_decode_after_a_while():
    ledger = Ledger(0.0)
    row = ledger.add(**STATIC)
    ledger.routed(row, 1000, 0.0, WHOLE)
    early, late = seen(ledger, [row], 0.05)[0].copy(), seen(ledger, [row], 0.301)[0]
    assert (early[schema.AWAITING_FIRST_TOKEN], early[schema.PENDING_PREFILL_TOKENS]) == (1, 1000)
    assert (late[schema.AWAITING_FIRST_TOKEN], late[schema.PENDING_PREFILL_TOKENS]) == (0, 0)
    assert late[schema.CONTEXT_TOKENS] == 1021  # 0.1 s of prefill, then a token every 10 ms
    assert late[schema.EXPECTED_REMAINING_TOKENS] == 256 - 21
    assert late[schema.IN_FLIGHT] == 1


def stream(ledger: Ledger, row: int, gap: float, tokens: int, at_a_time: int = 1) -> Entry:
    """A stream of `tokens` tokens, `gap` s apart."""
    entry = ledger.routed(row, 100, 0.0, STREAM)
    for i in range(0, tokens, at_a_time):
        ledger.streamed(entry, at_a_time, (i + at_a_time) * gap)
    return entry


def test_a_slower_backend_is_found_and_shown_so():
    ledger = Ledger(0.0)
    rows = [ledger.add(**STATIC) for _ in range(2)]
    for row, gap in zip(rows, (0.01, 0.025), strict=True):
        stream(ledger, row, gap, 400)
    view = seen(ledger, rows, 10.0)
    assert view[0, schema.SPEED] == STATIC["speed"]
    assert view[1, schema.SPEED] == pytest.approx(0.4, rel=0.02)
    assert view[1, schema.PREFILL_TOKENS_PER_S] == pytest.approx(4000.0, rel=0.02)
    assert view[1, schema.DECODE_ITERATION_S] == pytest.approx(0.025, rel=0.02)
    assert ledger.rows[rows[1], schema.SPEED] == STATIC["speed"]  # what was declared is kept
    ledger.forget_pace(rows[1])
    assert seen(ledger, rows, 10.0)[1, schema.SPEED] == STATIC["speed"]


def test_a_backend_that_holds_its_streams_up_is_not_taken_for_fast():
    ledger = Ledger(0.0)
    rows = [ledger.add(**STATIC) for _ in range(2)]
    stream(ledger, rows[0], 0.01, 400)
    entries = [ledger.routed(rows[1], 5000, 0.0, STREAM) for _ in range(50)]
    for i, entry in enumerate(entries):
        ledger.streamed(entry, 1, 1.0 + i)  # first tokens, and no others
    assert (seen(ledger, rows, 60.0)[:, schema.SPEED] == STATIC["speed"]).all()
    for entry in entries:
        ledger.streamed(entry, 3, 60.0)  # and then all at once
        ledger.streamed(entry, 3, 60.0)
    assert np.isfinite(seen(ledger, rows, 60.0)).all()


def test_only_the_backends_that_can_be_chosen_are_compared():
    ledger = Ledger(0.0)
    rows = [ledger.add(**STATIC) for _ in range(3)]
    for row, gap in zip(rows, (0.01, 0.03, 0.03), strict=True):
        stream(ledger, row, gap, 400)
    assert seen(ledger, rows, 10.0)[1, schema.SPEED] < 0.4
    assert (seen(ledger, rows[1:], 10.0)[:, schema.SPEED] == STATIC["speed"]).all()


def test_tokens_in_one_chunk_are_as_many_iterations():
    sums = []
    for at_a_time in (1, 3):
        ledger = Ledger(0.0)
        row = ledger.add(**STATIC)
        stream(ledger, row, 0.02, 30, at_a_time)
        sums.append(ledger.pace_sums[row].copy())
    # The first chunk has no gap before it; contexts are as of the beginning of a chunk.
    iterations = [sum(0.99**i for i in range(count)) for count in (29, 27)]
    assert sums[0][0] == pytest.approx(0.02 * iterations[0])
    assert sums[1][0] == pytest.approx(0.02 * iterations[1])
    assert sums[1][1] / sums[0][1] == pytest.approx(iterations[1] / iterations[0], rel=1e-3)


def test_a_prompt_is_due_where_streams_show_the_iterations_that_read_it():
    ledger = Ledger(0.0)
    row = ledger.add(**STATIC)
    first, second = ledger.routed(row, 500, 0.0, STREAM), ledger.routed(row, 700, 0.0, STREAM)
    ledger.streamed(first, 1, 0.12)
    ledger.streamed(second, 1, 0.1201)  # in the same iteration, before which nothing was streamed
    assert ledger.pace_sums[row, 1] == 0.0
    third = ledger.routed(row, 900, 0.2, STREAM)
    ledger.streamed(first, 1, 0.3)
    before = ledger.pace_sums[row, 1]
    ledger.streamed(third, 1, 0.3)
    assert ledger.pace_sums[row, 1] - before == pytest.approx(900 / STATIC["prefill_tokens_per_s"])
    # What is answered at once was read and decoded beside those streams as well.
    whole = ledger.routed(row, 300, 0.3, WHOLE)
    before = ledger.pace_sums[row, 1]
    ledger.finished_with(whole, 20)
    assert ledger.pace_sums[row, 1] == before  # until they show the next one
    ledger.streamed(first, 1, 0.4)
    after = 0.99 * before + 0.01 + 300 / STATIC["prefill_tokens_per_s"]
    assert ledger.pace_sums[row, 1] == pytest.approx(after, rel=1e-2)
    for entry in (first, second, third):
        ledger.finished_with(entry, entry.streamed)
    alone = ledger.routed(row, 300, 0.5, WHOLE)
    before = ledger.pace_sums[row, 1]
    ledger.finished_with(alone, 20)
    assert ledger.pace_sums[row, 1] == before


def test_the_tail_is_that_of_the_first_tokens_that_are_seen():
    ledger = Ledger(0.0)
    row = ledger.add(**STATIC)
    out = np.zeros((1, schema.NUM_REPLICA_COLUMNS))

    def tail(now: float) -> float:
        return ledger.write_view(np.array([row]), now, 10.0, out)

    assert tail(0.0) == 1.0  # nothing is known
    whole = ledger.routed(row, 10, 0.0, WHOLE)
    ledger.finished_with(whole, 5)  # its first token came unseen
    ledger.finished_with(ledger.routed(row, 10, 0.0, OTHER), 0)
    assert tail(9.0) == 1.0
    for _ in range(2):
        entry = ledger.routed(row, 10, 9.0, STREAM)
        ledger.streamed(entry, 2, 9.1)
        ledger.streamed(entry, 1, 19.0)  # not the first any more
    counts = np.zeros(BINS)
    counts[tail_bin(0.1)] = 2.0
    assert tail(20.0) == pytest.approx(forget_and_find(counts))
    assert 0.1 < tail(21.0) < 0.12


def test_nothing_is_expected_of_what_generates_nothing():
    ledger = Ledger(0.0)
    row = ledger.add(**STATIC)
    ledger.routed(row, 100, 0.0, OTHER)
    view = seen(ledger, [row], 1.0)[0]
    assert (view[schema.IN_FLIGHT], view[schema.EXPECTED_REMAINING_TOKENS]) == (1, 0)


def test_only_candidates_are_shown_in_their_order():
    ledger = Ledger(0.0)
    rows = [ledger.add(**STATIC | {"speed": float(i)}) for i in range(4)]
    ledger.routed(rows[2], 5, 0.0, STREAM)
    view = seen(ledger, [rows[3], rows[2]], 1.0)
    assert view[:, schema.SPEED].tolist() == [3, 2]
    assert view[:, schema.IN_FLIGHT].tolist() == [0, 1]


def test_stale_readings_give_way_to_the_ledger():
    ledger = Ledger(0.0)
    row = ledger.add(**STATIC)
    ledger.routed(row, 500, 0.0, STREAM)
    ledger.scraped(row, Reading(3, 4, 0.9, 7, 2, 0.5, 2000), 1.0)
    scraped = [schema.SCRAPED_RUNNING, schema.SCRAPED_WAITING, schema.SCRAPED_KV_USAGE]
    fresh = seen(ledger, [row], 3.0)[0]
    assert fresh[scraped].tolist() == [3, 4, 0.9]
    assert (fresh[schema.SCRAPED_PREEMPTIONS], fresh[schema.SCRAPE_AGE_S]) == (2, 2.0)
    assert fresh[schema.KV_CAPACITY_TOKENS] == 2000
    stale = seen(ledger, [row], 20.0)[0]
    assert stale[scraped].tolist() == [0, 1, 0.25]
    assert stale[schema.SCRAPE_AGE_S] == 0.0
    ledger.reported(row, 1.0, 0.5, 21.0)  # a load report in an answer's head is as good as a scrape
    assert seen(ledger, [row], 21.0)[0][scraped].tolist() == [3, 1, 0.5]


def test_readings():
    text = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a, b"} 3.0
vllm:num_requests_running{engine="1",model_name="a"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0
vllm:num_requests_waiting{engine="1"} 0.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:num_preemptions_total{engine="0"} 5.0
vllm:num_preemptions_created{engine="0"} 1.7e9
vllm:prefix_cache_hits_total{engine="0"} 30.0
vllm:prefix_cache_queries_total{engine="0"} 60.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1.0
"""
    reading = read_metrics(text)
    assert reading == Reading(5, 1, 0.75, 5, 0, 0.0, 3200, 30, 60)
    assert read_metrics(text.replace(b"5.0\n", b"9.0\n"), reading) == Reading(
        5, 1, 0.75, 9, 4, 0.0, 3200, 30, 60
    )
    assert read_metrics(text.replace(b"5.0\n", b"1.0\n"), reading) == Reading(
        5, 1, 0.75, 1, 0, 0.0, 3200, 30, 60
    )  # restarted
    later = text.replace(b" 30.0\n", b" 60.0\n").replace(b" 60.0\nvllm:cache", b" 100.0\nvllm:cache")
    found = read_metrics(later, reading)
    assert found is not None and found.prefix_hit_rate == 0.75
    quiet = read_metrics(later, found)
    assert quiet is not None and quiet.prefix_hit_rate == 0.75  # nothing was looked up meanwhile
    again = read_metrics(text, found)
    assert again is not None and again.prefix_hit_rate == 0.5  # restarted: counters begin at zero
    assert reading is not None and reading.caches_prefixes
    off = text.replace(b'{block_size="16",engine="1"', b'{block_size="16",enable_prefix_caching="False"')
    told = read_metrics(off)
    assert told is not None and not told.caches_prefixes
    assert read_metrics(b"") is None
    header = b"TEXT named_metrics.num_requests_waiting=2, named_metrics.kv_cache_usage_perc=0.5"
    assert orca_reading(header) == (2.0, 0.5)
    assert orca_reading(b"JSON {}") is None
    assert orca_reading(b"TEXT named_metrics.kv_cache_usage_perc=7") is None
