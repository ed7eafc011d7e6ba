"""What the gateway believes to be cached where."""

import asyncio
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.serve.facts import Facts
from fairlead.serve.prefixes import CHUNK_BYTES, MAX_CHUNKS, Prefixes, answer_chunks, chunk_keys
from fairlead.view import schema
from fairlead.view.prefixes import MOST, USED


def test_what_a_conversation_sent_before_is_expected_to_be_cached(play):
    def ask(turns):
        messages = [{"role": "user", "content": f"{i}" * 2000} for i in range(turns)]
        return {"model": "m", "messages": messages, "max_tokens": 1}

    async def scene(world):
        for turns in (1, 2, 3):
            await world.ask("/v1/chat/completions", ask(turns))
        room = world.gateway.decider.room(1)
        # Two of the three turns were sent before.
        hits = room.replicas[:, schema.EXPECTED_PREFIX_HIT_TOKENS]
        assert 0.5 < hits.max() / room.request[schema.PROMPT_TOKENS] < 0.7
        await world.ask("/v1/chat/completions", ask(1) | {"user": "somebody"})
        assert room.request[schema.SESSION] > 0

    play(scene, backends=1)


def test_only_a_common_beginning_counts():
    prefixes = Prefixes(1024)
    prefixes.forget(6)
    base = bytes(range(256)) * 8
    prefixes.sent(5, chunk_keys(base), 0)
    out = np.zeros((2, schema.NUM_REPLICA_COLUMNS))
    for prompt, chunks in (
        (base, 8),
        (base + b"more" * 100, 8),
        (base[: 3 * CHUNK_BYTES] + b"x" * 999, 3),
        (b"x" + base, 0),
    ):
        prefixes.hits(np.array([5, 6]), chunk_keys(prompt), 0, 10.0, 75.0, out)
        assert out[:, schema.EXPECTED_PREFIX_HIT_TOKENS].tolist() == [min(75.0, 10.0 * chunks), 0.0]
    prefixes.forget(5)
    prefixes.hits(np.array([5, 6]), chunk_keys(base), 0, 10.0, 75.0, out)
    assert not out.any()


def test_an_answer_counts_where_its_conversation_goes_on():
    """The next prompt quotes it, and is expected to find it cached where it was generated."""
    prefixes = Prefixes(1024)
    prefixes.forget(1)
    prompt = bytes(range(256)) * 8 + b"and a little more"
    facts = Facts("m", True, len(prompt), -1, 0, "who", prompt, False)
    keys = chunk_keys(prompt)
    # 400 tokens of 5.16 bytes; 100 more are two chunks and a bit, of which the prompt's end is a part.
    assert [answer_chunks(facts, 400, n) for n in (0, 1, 48, 49, 100, 101)] == [0, 0, 1, 1, 2, 2]
    prefixes.sent(0, keys, 5)
    prefixes.sent(1, keys, 5)
    prefixes.answered(0, keys, 5, answer_chunks(facts, 400, 100))
    prefixes.answered(1, keys, 5, 0)
    out = np.zeros((2, schema.NUM_REPLICA_COLUMNS))
    for session, chunks in ((5, [10.0, 8.0]), (6, [8.0, 8.0])):
        prefixes.hits(np.arange(2), chunk_keys(prompt + b"x" * 2000), session, 1.0, 99.0, out)
        assert out[:, schema.EXPECTED_PREFIX_HIT_TOKENS].tolist() == chunks


def test_nothing_is_known_of_an_answer_behind_a_prompt_that_is_too_long():
    prompt = b"x" * (MAX_CHUNKS + 1) * CHUNK_BYTES
    facts = Facts("m", True, len(prompt), -1, 0, "", prompt, False)
    assert answer_chunks(facts, len(prompt) // 4, 1000) == 0
    within = facts._replace(prompt=prompt[:-CHUNK_BYTES], prompt_bytes=len(prompt) - CHUNK_BYTES)
    assert answer_chunks(within, len(within.prompt) // 4, 1001) == 15


@pytest.mark.parametrize("left", [False, True])
def test_what_a_request_holds_is_let_go_of_when_it_ends(play, left):
    """Also where its client leaves first; `play` sees to it that nothing is held after any scene."""

    async def scene(world):
        memory, backend = world.gateway.prefixes._memory, world.backends[0]
        backend.gate = asyncio.Event()
        client = await world.client()
        client.request("/v1/completions", LONG)
        await world.until(lambda: len(backend.requests) == 1, "the request")
        assert memory.sent_refs.sum() == memory.sent_ends[:, USED].max() == 6
        if left:
            client.close()
        else:
            backend.gate.set()
            await client.answer()
        await world.until(lambda: not world.gateway.exchanges, "its end")
        assert not memory.sent_refs.any() and memory.sent_ends[:, USED].max() == 6

    play(scene, backends=1)


def test_memory_is_bounded():
    prefixes = Prefixes(64)
    for i in range(500):
        keys = chunk_keys(f"{i} ".encode() * 500)
        prefixes.sent(0, keys, 0)
        if i % 3:  # some are never heard of again
            prefixes.answered(0, keys, 0, 100)
    assert prefixes._memory.sent_keys.size == 4 * 64


def test_as_much_is_remembered_as_the_kv_cache_may_hold():
    prefixes = Prefixes(None)
    prefixes.taken_over(1)

    def chunks(row):
        return prefixes._memory.sent_ends[row, MOST]

    assert chunks(1) == 16_384
    prefixes.fit(1, 128_000, 4.0)
    assert chunks(1) == 2000 and chunks(0) == 16_384  # 128,000 tokens, 64 of them in a chunk
    keys = chunk_keys(bytes(range(256)) * 8)
    out = np.zeros((1, schema.NUM_REPLICA_COLUMNS))
    prefixes.sent(1, keys, 0)
    for capacity, bytes_per_token, expected in (
        (130_000, 4.1, 2000),  # about as much
        (128_000, 8.0, 4000),  # as many tokens are twice as many chunks
        (1e9, 4.0, 65_536),
        (128_000, 2.0, 1000),
    ):
        prefixes.fit(1, capacity, bytes_per_token)
        assert chunks(1) == expected
        out[:] = 0.0
        prefixes.hits(np.array([1]), keys, 0, 1.0, 99.0, out)
        assert out[0, schema.EXPECTED_PREFIX_HIT_TOKENS] == 8.0
    prefixes.taken_over(1)
    assert chunks(1) == 16_384
    told = Prefixes(64)
    told.fit(0, 128_000, 4.0)
    assert told._memory.sent_ends[0, MOST] == 64


def plain_keys(prompt):
    """Keys that are equal where those of `chunk_keys` are."""
    keys, key = [], 0
    for end in range(CHUNK_BYTES, min(len(prompt), MAX_CHUNKS * CHUNK_BYTES) + 1, CHUNK_BYTES):
        key = hash((key, prompt[end - CHUNK_BYTES : end]))
        keys.append(key)
    return keys


PLACES = st.integers(0, 4 * CHUNK_BYTES)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(PLACES, st.binary(max_size=9), PLACES), max_size=8))
def test_keys_are_equal_where_the_plain_ones_are(changes):
    """Prompts that differ in a few bytes, in their lengths, or not at all."""
    base = bytes(range(256)) * 4 * (CHUNK_BYTES // 256)
    changed = [(base[:at] + new + base[at + len(new) :])[:length] for at, new, length in changes]
    prompts = [base, *changed]
    keys = [chunk_keys(prompt).tolist() for prompt in prompts]
    plain = [plain_keys(prompt) for prompt in prompts]
    assert [len(each) for each in keys] == [len(each) for each in plain]
    pairs = {(one, other) for a, b in zip(keys, plain, strict=True) for one, other in zip(a, b, strict=True)}
    assert len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})


def test_only_the_beginning_of_a_long_prompt_has_keys():
    long = b"x" * (MAX_CHUNKS + 2) * CHUNK_BYTES
    assert len(chunk_keys(long)) == len(plain_keys(long)) == MAX_CHUNKS
    assert chunk_keys(b"x" * (CHUNK_BYTES - 1)).shape == (0,)


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="Python was built with another hash")
def test_keys_are_the_hashes_of_prefixes():
    """Python hashes bytes by SipHash-1-3 as well, and without a seed by the secret 0."""
    prompt = bytes(i * i % 251 for i in range(5 * CHUNK_BYTES + 100))
    code = f"p = bytes(i * i % 251 for i in range({len(prompt)}))\n"
    code += f"print([hash(p[:end]) for end in range({CHUNK_BYTES}, len(p), {CHUNK_BYTES})])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(chunk_keys(prompt, np.zeros(2, np.uint64)).view(np.int64).tolist()) == done.stdout.strip()


LONG = {"model": "m", "prompt": "Once upon a time " * 100, "max_tokens": 1}
CACHE_METRICS = (
    "vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
    "vllm:prefix_cache_queries_total {queries}\nvllm:prefix_cache_hits_total 0\n"
    'vllm:cache_config_info{{block_size="16",enable_prefix_caching="{caching}"}} 1\n'
)


@pytest.mark.parametrize("known_by", ["its metrics", "its settings"])
def test_what_is_remembered_follows_the_size_of_the_kv_cache(play, known_by):
    declared = {"kv_capacity_tokens": 64_000} if known_by == "its settings" else {}

    def before(backends):
        size = "" if declared else ',num_gpu_blocks="4000"'  # of 16 tokens
        text = CACHE_METRICS.format(queries=0, caching=True)
        backends[0].raw_metrics = text.replace("} 1", size + "} 1").encode()

    async def scene(world):
        gateway, (backend,) = world.gateway, world.gateway.backends
        ends = gateway.prefixes._memory.sent_ends
        await world.until(lambda: ends[backend.row, MOST] == 1000, "64,000 tokens in chunks of 64")
        # Tokens of this text turn out to have eight bytes.
        gateway.prompts.learn("m", 80_000, 10_000)
        await world.until(lambda: ends[backend.row, MOST] == 2000, "twice as many chunks")
        # Another three gateways before the same backends, as the settings read again say.
        gateway.reload(gateway.settings.model_copy(update={"gateways": 4}))
        await world.until(lambda: ends[backend.row, MOST] == 500, "a quarter of them")

    play(scene, backends=1, before=before, per_backend=declared)


def expected_hit(world):
    """Of the last decision, for its only backend."""
    return world.gateway.decider.room(1).replicas[0, schema.EXPECTED_PREFIX_HIT_TOKENS]


@pytest.mark.parametrize("seen_by", ["health checks", "its counters"])
def test_a_backend_that_restarts_is_expected_to_have_nothing_cached(play, seen_by):
    def before(backends):
        backends[0].raw_metrics = CACHE_METRICS.format(queries=500, caching=True).encode()

    async def scene(world):
        backend, server = world.backends[0], world.gateway.backends.find("b0")
        await world.until(lambda: server.reading is not None, "the first reading")
        for _ in range(2):
            await world.ask(body=LONG)
        assert expected_hit(world) > 0.0
        if seen_by == "health checks":
            await backend.stop()
            await world.until(lambda: server.state == "unhealthy")
            await backend.start()
            await world.until(lambda: server.state == "up")
        else:  # it was back before a check could fail
            backend.raw_metrics = CACHE_METRICS.format(queries=3, caching=True).encode()
            await world.until(lambda: server.reading.prefix_queries == 3, "the next reading")
        await world.ask(body=LONG)
        assert expected_hit(world) == 0.0
        await world.ask(body=LONG)
        assert expected_hit(world) > 0.0

    play(scene, backends=1, before=before)


def test_a_backend_that_says_that_it_does_not_cache_is_believed(play):
    def before(backends):
        backends[0].raw_metrics = CACHE_METRICS.format(queries=0, caching=False).encode()

    async def scene(world):
        await world.until(lambda: world.gateway.backends.find("b0").reading is not None, "the first reading")
        for _ in range(2):
            await world.ask(body=LONG)
        assert expected_hit(world) == 0.0

    play(scene, backends=1, before=before)
