"""The iteration-time model against anchors and against its own closed form."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import FairleadError
from fairlead.simulator.hardware import DEVICES, MODELS
from fairlead.simulator.reference_timing import iteration_time as plain_iteration_time
from fairlead.simulator.timing import TIMING_FIELDS, Coefficients, analytic, iteration_time, kv_blocks

LLAMA, A100 = MODELS["llama-3-8b"], DEVICES["a100-80g"]


@dataclasses.dataclass(frozen=True)
class Options:
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    block_size: int = 16
    gpu_memory_utilization: float = 0.9
    num_gpu_blocks: int | None = None


def seconds(c: Coefficients, tokens: float, seqs: float, kv_tokens: float, pairs: float) -> float:
    return iteration_time(np.array(c), tokens, seqs, kv_tokens, pairs)


def prefill_s(c: Coefficients, tokens: int) -> float:
    return seconds(c, tokens, 1, 0, tokens * (tokens + 1) / 2)


def test_llama_3_8b_on_a100_is_where_people_measure_it():
    c = analytic(LLAMA, A100)
    assert 8.5e-3 < seconds(c, 1, 1, 500, 0) < 10e-3
    assert 0.085e-3 < prefill_s(c, 2048) / 2048 < 0.1e-3
    assert 65e-9 < c.kv_s < 80e-9
    assert c.comm_s == 0.0


def test_fields_are_in_the_order_of_the_array():
    fields = ("base_s", "weights_s", "token_s", "comm_s", "seq_s", "kv_s", "pair_s")
    assert TIMING_FIELDS == Coefficients._fields == fields


def test_weights_are_read_once_at_the_stated_bandwidth():
    c = analytic(LLAMA, A100)
    assert c.weights_s == pytest.approx((6_979_321_856 + 4096 * 128_256) * 2 / (0.85 * 2039e9))
    assert c.kv_s == pytest.approx(131_072 / (0.85 * 2039e9))
    assert c.pair_s == pytest.approx(4 * 32 * 4096 / (0.4 * 312e12))


def test_the_roofline_bends_where_arithmetic_overtakes_the_weights():
    c = analytic(LLAMA, A100)
    bend = c.weights_s / c.token_s
    assert 50 < bend < 250
    below, above = int(bend) - 1, int(bend) + 2
    assert seconds(c, below, 0, 0, 0) == seconds(c, 1, 0, 0, 0)
    assert seconds(c, above, 0, 0, 0) == pytest.approx(c.base_s + c.token_s * above)


@given(
    st.tuples(*[st.floats(0, 1e-2)] * 7),
    st.integers(1, 8192),
    st.integers(1, 256),
    st.integers(0, 10**6),
    st.integers(0, 10**7),
)
def test_compiled_and_plain_agree_to_the_bit(values, tokens, seqs, kv_tokens, pairs):
    c = Coefficients(*values)
    assert seconds(c, tokens, seqs, kv_tokens, pairs) == plain_iteration_time(
        c, tokens, seqs, kv_tokens, pairs
    )


def test_time_of_a_fixed_decode_batch_is_affine_in_the_kv_tokens():
    c = analytic(LLAMA, A100)
    times = [seconds(c, 32, 32, 32 * context, 0) for context in range(1000, 1100)]
    np.testing.assert_allclose(np.diff(times), 32 * c.kv_s, rtol=1e-9)


def test_pairs_of_chunks_add_up_to_those_of_the_whole_prompt():
    prompt, chunks = 1000, (300, 300, 400)
    done, pairs = 0, 0.0
    for chunk in chunks:
        pairs += chunk * done + chunk * (chunk + 1) / 2
        done += chunk
    assert pairs == prompt * (prompt + 1) / 2


def test_slowdown_multiplies_everything():
    np.testing.assert_allclose(analytic(LLAMA, A100, 1, 2.5), 2.5 * np.array(analytic(LLAMA, A100)))


@pytest.mark.parametrize("slowdown", [0.0, -1.0, float("nan"), float("inf")])
def test_slowdown_must_be_positive(slowdown):
    with pytest.raises(FairleadError, match="slowdown"):
        analytic(LLAMA, A100, 1, slowdown)


def test_tensor_parallelism_speeds_up_but_not_for_free():
    one, four = analytic(LLAMA, A100, 1), analytic(LLAMA, A100, 4)
    assert four.weights_s == pytest.approx(one.weights_s / 4)
    assert four.comm_s > 0 and four.base_s > one.base_s
    assert prefill_s(one, 2048) / 4 < prefill_s(four, 2048) < prefill_s(one, 2048)
    # One token crosses the links twice per layer; a ring moves 2 (n - 1) / n of the vector.
    assert four.comm_s == pytest.approx(64 * 1.5 * 4096 * 2 / (0.7 * 300e9))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_faster_devices_are_faster(name):
    order = [analytic(MODELS[name], DEVICES[d], 4) for d in ("a10", "l40s", "a100-80g", "h100", "h200")]
    decode = [seconds(c, 16, 16, 16_000, 0) for c in order]
    assert decode == sorted(decode, reverse=True)


@pytest.mark.parametrize("n", [0, -1, 3, 16])
def test_heads_must_be_divisible(n):
    with pytest.raises(FairleadError, match=r"use one of 1, 2, 4, 8$"):
        analytic(LLAMA, A100, n)
    with pytest.raises(FairleadError, match="does not divide"):
        kv_blocks(LLAMA, A100, n, Options())


def test_qwen_7b_splits_over_its_four_kv_heads_at_most():
    with pytest.raises(FairleadError, match=r"28 heads and 4 KV heads of qwen2.5-7b: use one of 1, 2, 4$"):
        analytic(MODELS["qwen2.5-7b"], A100, 8)


def test_kv_blocks_are_what_is_left_of_the_memory():
    blocks = kv_blocks(LLAMA, A100, 1, Options())
    # 77.3 GB usable, 16.1 of weights, 1 to 3 of everything else: 58 to 60 GB in blocks of 2 MiB.
    assert 27_000 < blocks < 29_000
    used = LLAMA.weight_bytes + blocks * 16 * LLAMA.kv_bytes_per_token
    assert used < 0.9 * A100.memory_bytes


def test_kv_blocks_grow_with_memory_and_shrink_with_the_budget():
    assert kv_blocks(LLAMA, DEVICES["h200"], 1, Options()) > kv_blocks(LLAMA, A100, 1, Options())
    tight = Options(max_num_batched_tokens=16_384)
    assert kv_blocks(LLAMA, A100, 1, tight) < kv_blocks(LLAMA, A100, 1, Options())
    double = Options(block_size=32)
    assert kv_blocks(LLAMA, A100, 1, double) == kv_blocks(LLAMA, A100, 1, Options()) // 2


def test_kv_blocks_may_be_given():
    assert kv_blocks(LLAMA, A100, 1, Options(num_gpu_blocks=77)) == 77


def test_the_demanding_presets_fit_where_people_run_them():
    assert kv_blocks(MODELS["llama-3-70b"], A100, 4, Options()) * 16 > 100_000
    assert kv_blocks(LLAMA, DEVICES["a10"], 1, Options()) * 16 > 16_000


def test_a_model_that_does_not_fit_says_how_to_mend_it():
    message = r"llama-3-70b does not fit on 1 x a100-80g: .* raise tensor_parallel"
    with pytest.raises(FairleadError, match=message):
        kv_blocks(MODELS["llama-3-70b"], A100, 1, Options())


def test_the_documented_presets_are_what_the_code_computes():
    page = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    table = page.split("<!-- presets: checked by a test -->")[1].split("\n\n")[0]
    documented = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n")[3:]]
    assert {row[0] for row in documented} == set(MODELS)
    for model_name, placement, *cells in documented:
        n, device_name = placement.split(" x ")
        model, device = MODELS[model_name], DEVICES[device_name]
        c = analytic(model, device, int(n))
        units = (1e3, 1e3, 1e6, 1e6, 1e6, 1e9, 1e9)
        expected = [value * unit for value, unit in zip(c, units, strict=True)]
        expected += [kv_blocks(model, device, int(n), Options())]
        expected += [1e3 * seconds(c, 32, 32, 32_000, 0), 1e3 * prefill_s(c, 2048)]
        for cell, value in zip(cells, expected, strict=True):
            digits = len(cell.partition(".")[2])
            assert cell.replace(",", "") == f"{value:.{digits}f}"
