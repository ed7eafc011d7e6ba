"""Small tables of iteration times, for tests: smooth, bumpy, and their kinds mixed in one cluster."""

import numpy as np

from fairlead.simulator.tables import OperatorTables, StepTable


def step_table(seed: int = 0, *, tokens: int = 512, sequences: int = 64, kv_s: float = 2e-7) -> StepTable:
    """Grows with the batch, with noise that makes every entry different."""
    noise = np.random.default_rng(seed).uniform(1.0, 1.2, (tokens + 1, sequences + 1))
    rows, columns = np.arange(tokens + 1)[:, None], np.arange(sequences + 1)
    return StepTable((4e-3 + 5e-5 * rows + 2e-5 * columns) * noise, kv_s)


def operator_tables(
    seed: int = 0, *, tokens: int = 512, sequences: int = 64, context: int = 4096, recent: bool = False
) -> OperatorTables:
    """The dialect of Vidur 7d47513, or of 25e0082 (`recent`)."""
    draw = np.random.default_rng(seed)
    step = 32 if recent else 1
    per_token = np.cumsum(draw.uniform(0, 1e-4, tokens + 1)) + 5e-3
    decode = np.cumsum(draw.uniform(0, 1e-4, (sequences, context // 64 + 1)), axis=1)
    prefill = np.cumsum(draw.uniform(0, 1e-4, (context // 64 + 1, -(-tokens // step))), axis=0)
    if recent:
        return OperatorTables(per_token, decode, prefill, 1.0, 1.0, step, round_each=False)
    return OperatorTables(per_token, decode, prefill)
