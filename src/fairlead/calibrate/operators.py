"""An iteration-time model in Vidur's form: a sum of operators, each looked up in a table of its own.

Vidur 0.0.26 takes the time of an iteration to be

    layers * (sum of nine operators[N8] + attn_decode[B, K] + sum over prompt chunks of attn_prefill[K', C32])

with N8 the new tokens in the batch rounded up to 8, B the decoding requests, K their mean context rounded
up to a granularity, K' the context *after* a chunk rounded up likewise and C32 the chunk rounded up to 32.
(It also looks up `attn_kv_cache_save` by the exact number of tokens, and does not count it.) What a model
of ours says about a rounded key is chosen here so that the sum is as close as the rounding allows:

- per token: the middle of the numbers that are rounded to N8, except that a full token budget is exact;
- decode attention: what a decode-only batch still lacks then, so that it has no error from its tokens, with
  the context in the middle of the interval that is rounded to K;
- prefill attention: the middle of both intervals.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairlead.simulator.hardware import Model
from fairlead.simulator.tables import KV_BUCKET, OperatorTables, StepTable, TimingModel
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS, TOKEN_STEP

CHUNK_STEP = 32
"""Vidur rounds a prompt chunk up to a multiple of this."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VidurTables:
    """Times of the operators on every key that Vidur looks up, s over all layers."""

    tokens_s: FloatArray
    """(T,) all nine per-token operators together, for 8, 16, ..., 8 T new tokens."""
    decode_s: FloatArray
    """(B, KV + 1) decode attention for 1 to B decodes and contexts 0, g, 2 g, ..., KV g."""
    prefill_s: FloatArray
    """(KV + 1, C) prefill attention for contexts 0, g, ... after the chunk and chunks of 32, 64, ... 32 C."""
    granularity: int
    """g: tokens to which contexts are rounded up."""

    @property
    def max_tokens(self) -> int:
        """The largest number of new tokens in a batch."""
        return len(self.tokens_s) * TOKEN_STEP

    @property
    def max_context(self) -> int:
        """The largest context of one request."""
        return int(self.decode_s.shape[1] - 1) * self.granularity

    def iteration_s(self, decode_contexts: npt.ArrayLike, chunks: list[tuple[int, int]]) -> float:
        """What Vidur makes of a batch, s.

        Args:
            decode_contexts: context of each decoding request, the new token included.
            chunks: (computed tokens before, tokens of the chunk) of each prompt.
        """
        # Vidur counts the token that the prompt's completion emitted as in the cache: one more than we do.
        contexts = np.asarray(decode_contexts, np.float64) + 1
        tokens = len(contexts) + sum(c for _, c in chunks)
        total = self.tokens_s[-(-tokens // TOKEN_STEP) - 1]
        if len(contexts):
            total += self.decode_s[len(contexts) - 1, -(-int(contexts.mean()) // self.granularity)]
        for behind, chunk in chunks:
            total += self.prefill_s[-(-(behind + chunk) // self.granularity), -(-chunk // CHUNK_STEP) - 1]
        return float(total)


def vidur_tables(
    model: TimingModel, *, max_tokens: int, max_seqs: int, max_context: int, granularity: int = 16
) -> VidurTables:
    """The tables that reproduce `model`.

    Args:
        model: the iteration-time model; tables are continued by their last entries.
        max_tokens: new tokens in the largest batch, the engine's token budget.
        max_seqs: requests in the largest batch.
        max_context: prompt and output of the longest request.
        granularity: tokens to which contexts are rounded (Vidur's `kv_cache_prediction_granularity`).
    """
    last = -(-max(max_tokens, max_seqs) // TOKEN_STEP)
    rounded = TOKEN_STEP * np.arange(1.0, last + 1)
    middle = np.where(rounded >= max_tokens, max_tokens, rounded - (TOKEN_STEP - 1) / 2)
    tokens_s = _per_token(model, middle)
    keys = granularity * np.arange(-(-(max_context + 1) // granularity) + 1.0)
    batch = np.arange(1.0, max_seqs + 1)
    # Contexts that are rounded up to K lie in (K - g, K], one above ours, the mean cut to a whole number.
    context = np.maximum(keys - granularity / 2, 1.0)
    rest = _per_token(model, batch) - tokens_s[(-(-batch // TOKEN_STEP) - 1).astype(int)]
    decode_s = rest[:, None] + _decodes(model, batch[:, None], context)
    chunk = CHUNK_STEP * np.arange(1.0, -(-max_tokens // CHUNK_STEP) + 1) - (CHUNK_STEP - 1) / 2
    behind = np.maximum(keys[:, None] - (granularity - 1) / 2 - chunk, 0.0)
    return VidurTables(tokens_s, np.maximum(decode_s, 0.0), _chunk(model, behind, chunk), granularity)


def _per_token(model: TimingModel, tokens: FloatArray) -> FloatArray:
    """What depends on the new tokens alone, s."""
    if isinstance(model, OperatorTables | StepTable):
        table = model.tokens_s if isinstance(model, OperatorTables) else model.seconds[:, 1]
        return np.interp(tokens, np.arange(1.0, len(table)), table[1:])
    products = np.maximum(model.weights_s, model.token_s * tokens)
    return np.asarray(model.base_s + products + model.comm_s * tokens, np.float64)


def _decodes(model: TimingModel, batch: FloatArray, context: FloatArray) -> FloatArray:
    """What `batch` decodes of that mean context add, s."""
    if isinstance(model, StepTable):
        # The table has no time of its own for sequences; beside a prompt they are taken to add as much.
        n = np.minimum(batch, min(model.seconds.shape) - 1).astype(int)
        extra = model.seconds[n, n] - model.seconds[n, 1]
        return np.asarray(extra + model.kv_s * batch * context, np.float64)
    if isinstance(model, OperatorTables):
        rows, columns = model.decode_s.shape
        row = np.minimum(batch, rows).astype(int) - 1
        column = np.minimum(np.ceil(np.trunc(context) / KV_BUCKET), columns - 1).astype(int)
        overhead = np.where(batch > 1, model.decode_overhead, 1.0)
        return np.asarray(model.decode_s[row, column] * overhead, np.float64)
    return batch * (model.seq_s + model.kv_s * context)


def _chunk(model: TimingModel, behind: FloatArray, chunk: FloatArray) -> FloatArray:
    """What one prompt chunk adds, s."""
    if isinstance(model, StepTable):
        return np.zeros(np.broadcast_shapes(behind.shape, chunk.shape))
    if isinstance(model, OperatorTables):
        rows, columns = model.prefill_s.shape
        row = np.minimum(np.ceil(behind / KV_BUCKET), rows - 1).astype(int)
        column = np.minimum(np.ceil(chunk / model.chunk_step), columns).astype(int) - 1
        return np.asarray(model.prefill_s[row, column], np.float64)
    return model.seq_s + model.pair_s * chunk * (behind + (chunk + 1) / 2)


def shares(model: Model) -> dict[str, float]:
    """How the per-token time is split over Vidur's operators: by the weights that each multiplies with.

    The element-wise ones get nothing: the model does not resolve them, and Vidur only uses the sum.
    """
    query, heads = model.heads * model.head_dim, model.heads + 2 * model.kv_heads
    weights = {
        "attn_pre_proj": model.hidden * heads * model.head_dim,
        "attn_post_proj": model.hidden * query,
        "mlp_up_proj": 2 * model.hidden * model.intermediate,
        "mlp_down_proj": model.hidden * model.intermediate,
    }
    total = sum(weights.values())
    return {name: weights.get(name, 0) / total for name in TOKEN_OPERATORS}
