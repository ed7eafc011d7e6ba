"""How long one iteration lasts: the one place where compiled code computes durations.

A replica runs either by the seven coefficients of `timing` (its row of `state.timing`) or by a table of
`tables` (its index into `state.tables`). Tables are shared: any number of replicas refer to one copy.
Every duration is multiplied by the replica's `pace`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.simulator.tables import KV_BUCKET, OperatorTables, StepTable
from fairlead.simulator.timing import KV_S, iteration_time

NO_TABLE = -1
"""`REPLICA.table` of a replica that runs by coefficients."""
STEP, OPERATORS = range(2)

TABLE = np.dtype(
    [
        ("kind", "i8"),
        # where the arrays begin in the values, and how long their rows are
        ("first", "i8"),  # seconds, or tokens_s
        ("first_row", "i8"),
        ("decode", "i8"),
        ("decode_row", "i8"),
        ("prefill", "i8"),
        ("prefill_row", "i8"),
        ("prefill_rows", "i8"),
        ("kv_s", "f8"),
        ("decode_overhead", "f8"),
        ("prefill_overhead", "f8"),
        ("chunk_step", "i8"),
        ("round_each", "b1"),
    ],
    align=True,
)


class Tables(NamedTuple):
    """All tables that the replicas of a state refer to."""

    tables: npt.NDArray[Any]
    """(M,) of TABLE."""
    values: npt.NDArray[np.float64]
    """(V,) the arrays of all tables, one after the other, each row by row, s."""


class Batch(NamedTuple):
    """What the time of an iteration depends on."""

    tokens: int
    """New tokens: one per decode, plus the prompt chunks."""
    sequences: int
    """Requests with at least one token."""
    decodes: int
    """Of these, decoding ones."""
    context: int
    """Tokens over the decoding requests, the new one included."""
    pairs: float
    """Query-key pairs of the prompt chunks: c n + c (c + 1) / 2 for c tokens behind n computed ones."""
    prefills: int
    """Requests with a prompt chunk."""
    squares: int
    """Sum over the chunks of their squares."""
    behind: int
    """Computed tokens before the chunks, summed."""
    behind_rounded: int
    """The same with each rounded up to a multiple of 64."""


def pack(tables: Sequence[StepTable | OperatorTables]) -> Tables:
    """The tables in compiled form, in this order."""
    records = np.zeros(max(len(tables), 1), TABLE).view(np.recarray)
    values: list[npt.NDArray[np.float64]] = []
    end = 0

    def put(array: npt.NDArray[np.float64]) -> tuple[int, int]:
        nonlocal end
        values.append(array.ravel())
        end += array.size
        return end - array.size, array.shape[-1]

    for record, table in zip(records, tables, strict=False):
        if isinstance(table, StepTable):
            record.kind = STEP
            record.first, record.first_row = put(table.seconds)
            record.kv_s = table.kv_s
        else:
            record.kind = OPERATORS
            record.first, record.first_row = put(table.tokens_s)
            record.decode, record.decode_row = put(table.decode_s)
            record.prefill, record.prefill_row = put(table.prefill_s)
            record.prefill_rows = len(table.prefill_s)
            record.decode_overhead = table.decode_overhead
            record.prefill_overhead = table.prefill_overhead
            record.chunk_step = table.chunk_step
            record.round_each = table.round_each
    return Tables(records, np.concatenate([*values, np.zeros(1)]))


NO_TABLES = pack([])
"""Where all replicas run by coefficients."""


@njit(inline=True)
def batch_time(state: Any, k: int, batch: Batch) -> float:
    """Duration of one iteration of replica `k` with this batch, s."""
    replica = state.replicas[k]
    if replica.table == NO_TABLE:
        seconds = iteration_time(state.timing[k], batch.tokens, batch.sequences, batch.context, batch.pairs)
    else:
        table = state.tables[replica.table]
        values = state.table_values
        if table.kind == STEP:
            at = table.first + batch.tokens * table.first_row + batch.sequences
            seconds = values[at] + table.kv_s * batch.context
        else:
            seconds = values[table.first + batch.tokens]
            if batch.decodes > 0:
                seconds += _decode_attention(table, values, batch.decodes, batch.context)
            if batch.prefills > 0:
                row = _prefill_row(table, batch)
                if row >= table.prefill_rows:
                    replica.beyond_table = True
                    row = table.prefill_rows - 1
                seconds += _prefill_attention(table, values, batch, row)
    return float(replica.pace * seconds)


@njit(inline=True)
def _decode_attention(table: Any, values: npt.NDArray[np.float64], decodes: int, context: int) -> float:
    bucket = (context // decodes + KV_BUCKET - 1) // KV_BUCKET
    seconds = values[table.decode + (decodes - 1) * table.decode_row + bucket]
    return float(seconds * table.decode_overhead) if decodes > 1 else float(seconds)


@njit(inline=True)
def _prefill_row(table: Any, batch: Batch) -> int:
    """Where the tokens before the chunks stand in `prefill_s`; past its end only with prefix caching."""
    behind = batch.behind_rounded if table.round_each else batch.behind
    return int((behind + KV_BUCKET - 1) // KV_BUCKET)


@njit(inline=True)
def _prefill_attention(table: Any, values: npt.NDArray[np.float64], batch: Batch, row: int) -> float:
    # A root of a whole number is never half-way between two whole numbers.
    chunk = int(math.sqrt(batch.squares) + 0.5)
    column = (chunk + table.chunk_step - 1) // table.chunk_step - 1
    seconds = values[table.prefill + row * table.prefill_row + column]
    return float(seconds * table.prefill_overhead) if batch.prefills > 1 else float(seconds)


@njit(inline=True)
def decode_times(state: Any, k: int, decodes: int, context: int, limit: int) -> tuple[float, float, int]:
    """The next decode iterations of an unchanging batch: (duration a, growth g, steps).

    The i-th of them, counted from 0, lasts a + g i for i < steps <= limit. `context` is that of the first.
    Coefficients and step tables are affine in the context, which grows by `decodes`; operator tables are
    constant while the mean context, which grows by one, stays in its bucket.
    """
    replica = state.replicas[k]
    first = batch_time(state, k, Batch(decodes, decodes, decodes, context, 0.0, 0, 0, 0, 0))
    if replica.table == NO_TABLE:
        return first, replica.pace * state.timing[k, KV_S] * decodes, limit
    table = state.tables[replica.table]
    if table.kind == STEP:
        return first, replica.pace * table.kv_s * decodes, limit
    return first, 0.0, min(limit, (-(context // decodes)) % KV_BUCKET + 1)
