"""Products of a few rows and a matrix: the compiled blocks against plain loops, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.policy.product import LANES, ROWS, TERMS, add_plainly, add_product

SIZES = st.integers(1, 2 * TERMS + 3)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 2 * ROWS + 3),
    size=SIZES,
    columns=st.integers(1, 3 * LANES + 5),
    seed=st.integers(0, 99),
)
def test_blocks_add_what_plain_loops_add(rows: int, size: int, columns: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x, matrix, out = (
        draw.normal(0, 3, shape).astype(np.float32)
        for shape in ((rows, size), (size, columns), (rows, columns))
    )
    plain = out.copy()
    add_plainly(x, matrix, plain, 0)
    exact = out + x.astype(np.float64) @ matrix
    add_product(x, matrix, out)
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_allclose(out, exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_row(value: float) -> None:
    x, matrix = np.ones((5, 6), np.float32), np.ones((6, 20), np.float32)
    x[1, 5] = value
    out = np.zeros((5, 20), np.float32)
    add_product(x, matrix, out)
    assert not np.isfinite(out[1]).any()
    assert (np.delete(out, 1, 0) == 6.0).all()
