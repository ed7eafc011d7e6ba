import numpy as np
import pytest

from fairlead.calibrate.operators import shares, vidur_tables
from fairlead.simulator.hardware import device, model
from fairlead.simulator.reference_timing import Scheduled, batch_seconds
from fairlead.simulator.tables import OperatorTables, StepTable
from fairlead.simulator.timing import Coefficients, analytic, iteration_time
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS

LLAMA = analytic(model("llama-3-8b"), device("a100-80g"))
TABLES = vidur_tables(LLAMA, max_tokens=512, max_seqs=128, max_context=4096)


def exact(c: Coefficients, contexts: list[int], chunks: list[tuple[int, int]]) -> float:
    tokens = len(contexts) + sum(n for _, n in chunks)
    pairs = sum(n * behind + n * (n + 1) / 2 for behind, n in chunks)
    return iteration_time(np.array(c), tokens, len(contexts) + len(chunks), sum(contexts), pairs)


def relative_errors(kind: str, count: int = 2000) -> np.ndarray:
    draw = np.random.default_rng(7)
    errors = []
    for _ in range(count):
        decodes = draw.integers(1, 120) if kind != "prefill" else 0
        contexts = draw.integers(32, 3000, decodes).tolist()
        chunks = []
        if kind != "decode":
            behind = int(draw.integers(0, 2000))
            left = 512 - len(contexts)
            chunks.append((behind, left if kind == "full" else int(draw.integers(2, left + 1))))
        wanted = exact(LLAMA, contexts, chunks)
        errors.append(abs(TABLES.iteration_s(contexts, chunks) / wanted - 1))
    return np.array(errors)


@pytest.mark.parametrize(
    ("kind", "p99", "most"),
    [("decode", 0.003, 0.003), ("full", 0.01, 0.012), ("mixed", 0.03, 0.04), ("prefill", 0.03, 0.035)],
)
def test_the_tables_are_as_close_as_rounding_allows(kind: str, p99: float, most: float):
    errors = relative_errors(kind)
    print(f"{kind}: mean {errors.mean():.2%}, p99 {np.percentile(errors, 99):.2%}, max {errors.max():.2%}")
    assert np.percentile(errors, 99) < p99
    assert errors.max() < most


def test_a_full_token_budget_without_decodes_has_no_error_per_token():
    assert TABLES.tokens_s[63] == pytest.approx(
        exact(LLAMA, [], [(0, 512)]) - LLAMA.seq_s - LLAMA.pair_s * 512 * 513 / 2
    )


def test_nothing_is_negative_and_every_key_is_there():
    for table in (TABLES.tokens_s, TABLES.decode_s, TABLES.prefill_s):
        assert (table >= 0).all()
        assert np.isfinite(table).all()
    assert TABLES.max_tokens >= 512
    assert TABLES.max_context >= 4096
    assert TABLES.iteration_s([4096] * 128, [])
    assert TABLES.iteration_s([], [(2048, 512)])


def test_the_shares_of_the_operators_add_up():
    parts = shares(model("llama-3-8b"))
    assert set(parts) == set(TOKEN_OPERATORS)
    assert sum(parts.values()) == pytest.approx(1)
    assert parts["mlp_up_proj"] == pytest.approx(2 * parts["mlp_down_proj"])


def test_other_iteration_time_models_are_exported_too():
    n = np.arange(600.0)
    step = StepTable(1e-3 + 1e-5 * n[:, None] + 1e-4 * n[None, :65], kv_s=1e-8)
    tables = vidur_tables(step, max_tokens=512, max_seqs=64, max_context=2000)
    wanted = batch_seconds(step, [Scheduled(1, 999, True)] * 10)
    assert tables.iteration_s([1000] * 10, []) == pytest.approx(wanted, rel=1e-3)

    operators = OperatorTables(
        tokens_s=1e-3 + 1e-5 * n,
        decode_s=1e-5 * np.arange(1, 65)[:, None] + 1e-6 * np.arange(40),
        prefill_s=1e-6 * np.arange(1, 602) + 1e-5 * np.arange(40)[:, None],
    )
    tables = vidur_tables(operators, max_tokens=512, max_seqs=64, max_context=2000)
    wanted = batch_seconds(operators, [Scheduled(1, 999, True)] * 10)
    assert tables.iteration_s([1000] * 10, []) == pytest.approx(wanted, rel=1e-3)
    wanted = batch_seconds(operators, [Scheduled(200, 640, False)])
    assert tables.iteration_s([], [(640, 200)]) == pytest.approx(wanted, rel=2e-2)
