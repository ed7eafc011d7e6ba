"""The one operation that a forward pass spends its time in: rows of numbers times a matrix, for a few rows.

What LLVM makes of loops over arrays writes the sums to memory after every few products, and reads the matrix
once for each row. Here blocks of the sums stay in registers, and what is read of the matrix serves four rows
at a time. Every sum adds the same products in the same order as the plain loops, without fused operations: so
results are equal to the last bit, on every machine.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fairlead.compiled import njit

Floats = npt.NDArray[np.float32]

LANES = 16
"""Columns that go together: one or more of a processor's vectors."""
ROWS = 4
"""Rows that go together: as many sums as fit into registers."""
TERMS = 4
"""Products that are added up before they are added to the sum."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_FLOAT_BYTES = 4


def _block(rows: int) -> Any:
    """Compiled code that adds a product to a block of `rows` rows and `LANES` columns."""

    @intrinsic
    def add(context: Any, x: Any, matrix: Any, out: Any, row: Any, column: Any) -> Any:
        return types.void(x, matrix, out, types.intp, types.intp), generate

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, matrix, out = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:3], args[:3], strict=True)
        )
        row, column = args[3:]
        size, columns = (builder.extract_value(array.shape, 1) for array in (x, out))

        def number(value: int) -> Any:
            return ir.Constant(size.type, value)

        def vector(array: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(array.data, [index]), _VECTOR.as_pointer())

        def load(pointer: Any) -> Any:
            found = builder.load(pointer)
            found.align = _FLOAT_BYTES
            return found

        def spread(value: Any) -> Any:
            """A vector of nothing but `value`."""
            index = ir.IntType(32)
            nothing = ir.Constant(_VECTOR, ir.Undefined)
            first = builder.insert_element(nothing, value, ir.Constant(index, 0))
            everywhere = ir.Constant(ir.VectorType(index, LANES), [0] * LANES)
            return builder.shuffle_vector(first, nothing, everywhere)

        each = [builder.add(row, number(r)) for r in range(rows)]
        inputs = [builder.mul(r, size) for r in each]
        outputs = [vector(out, builder.add(builder.mul(r, columns), column)) for r in each]
        sums = [builder.alloca(_VECTOR) for _ in outputs]
        for total, pointer in zip(sums, outputs, strict=True):
            builder.store(load(pointer), total)

        def step(first: Any, terms: int) -> None:
            """The products of `terms` inputs from `first` on."""
            at = [builder.add(first, number(k)) for k in range(terms)]
            weights = [load(vector(matrix, builder.add(builder.mul(i, columns), column))) for i in at]
            for its, total in zip(inputs, sums, strict=True):
                found = None
                for i, weight in zip(at, weights, strict=True):
                    value = builder.load(builder.gep(x.data, [builder.add(its, i)]))
                    product = builder.fmul(spread(value), weight)
                    found = product if found is None else builder.fadd(found, product)
                builder.store(builder.fadd(builder.load(total), found), total)

        whole = builder.and_(size, number(-TERMS))
        with cgutils.for_range_slice(builder, number(0), whole, number(TERMS), size.type) as (i, _):
            step(i, TERMS)
        with cgutils.for_range_slice(builder, whole, size, number(1), size.type) as (i, _):
            step(i, 1)
        for total, pointer in zip(sums, outputs, strict=True):
            builder.store(builder.load(total), pointer).align = _FLOAT_BYTES
        return context.get_dummy_value()

    return add


_add_rows, _add_row = _block(ROWS), _block(1)


@njit()
def add_product(x: Floats, matrix: Floats, out: Floats) -> None:
    """`out` (R, out) += `x` (R, in) times `matrix` (in, out); all of them contiguous."""
    rows, blocks = len(x) - len(x) % ROWS, matrix.shape[1] - matrix.shape[1] % LANES
    for column in range(0, blocks, LANES):
        for r in range(0, rows, ROWS):
            _add_rows(x, matrix, out, r, column)
        for r in range(rows, len(x)):
            _add_row(x, matrix, out, r, column)
    if blocks < matrix.shape[1]:
        add_plainly(x, matrix, out, blocks)


@njit()
def add_plainly(x: Floats, matrix: Floats, out: Floats, start: int) -> None:
    """The same for the columns from `start` on, by plain loops."""
    size, columns = matrix.shape
    whole = size - size % TERMS
    for r in range(len(x)):
        to = out[r]
        for i in range(0, whole, TERMS):
            x0, x1, x2, x3 = x[r, i], x[r, i + 1], x[r, i + 2], x[r, i + 3]
            m0, m1, m2, m3 = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
            for o in range(start, columns):
                to[o] += x0 * m0[o] + x1 * m1[o] + x2 * m2[o] + x3 * m3[o]
        for i in range(whole, size):
            for o in range(start, columns):
                to[o] += x[r, i] * matrix[i, o]
