"""The twin's iteration times: plain restatements of the formulas in `timing` and `tables`."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from fairlead.errors import FairleadError
from fairlead.simulator.tables import TOO_FEW_ROWS, OperatorTables, StepTable, TimingModel
from fairlead.simulator.timing import Coefficients


class Scheduled(NamedTuple):
    """What one request computes in an iteration."""

    chunk: int
    computed: int
    """Tokens computed before."""
    decoding: bool


def batch_seconds(model: TimingModel, batch: Sequence[Scheduled]) -> float:
    """Duration of an iteration, s.

    Raises:
        FairleadError: if a table has no time for it.
    """
    decodes = [entry.computed + 1 for entry in batch if entry.decoding]
    prefills = [entry for entry in batch if not entry.decoding]
    tokens = sum(entry.chunk for entry in batch)
    if isinstance(model, OperatorTables):
        return operator_time(model, tokens, decodes, prefills)
    if isinstance(model, StepTable):
        return float(model.seconds[tokens, len(batch)] + model.kv_s * sum(decodes))
    pairs = sum(p.chunk * p.computed + p.chunk * (p.chunk + 1) / 2 for p in prefills)
    return iteration_time(model, tokens, len(batch), sum(decodes), pairs)


def iteration_time(c: Coefficients, tokens: int, seqs: int, kv_tokens: int, pairs: float) -> float:
    """Duration of one iteration, s; the formula is explained in `timing`."""
    return (
        c.base_s
        + max(c.weights_s, c.token_s * tokens)
        + c.comm_s * tokens
        + c.seq_s * seqs
        + c.kv_s * kv_tokens
        + c.pair_s * pairs
    )


def operator_time(
    model: OperatorTables, tokens: int, decodes: Sequence[int], prefills: Sequence[Scheduled]
) -> float:
    """Sum of the operators' times, s; `decodes` are the contexts, the new token included."""
    seconds = float(model.tokens_s[tokens])
    if decodes:
        mean = int(sum(decodes) / len(decodes))
        attention = model.decode_s[len(decodes) - 1, math.ceil(mean / 64)]
        seconds += float(attention) * (model.decode_overhead if len(decodes) > 1 else 1.0)
    if prefills:
        chunk = round(math.sqrt(sum(p.chunk**2 for p in prefills)))
        if model.round_each:
            behind = sum(math.ceil(p.computed / 64) for p in prefills)
        else:
            behind = math.ceil(sum(p.computed for p in prefills) / 64)
        if behind >= len(model.prefill_s):
            raise FairleadError(f"the table prefill_s {TOO_FEW_ROWS}")
        attention = model.prefill_s[behind, math.ceil(chunk / model.chunk_step) - 1]
        seconds += float(attention) * (model.prefill_overhead if len(prefills) > 1 else 1.0)
    return seconds
