"""How long one engine iteration takes, and how many KV blocks a replica has.

An iteration that processes `tokens` new tokens of `seqs` sequences takes

    t = base_s + max(weights_s, token_s * tokens) + comm_s * tokens
        + seq_s * seqs + kv_s * kv_tokens + pair_s * pairs

- `kv_tokens`: context lengths summed over the decoding sequences, the new token included;
- `pairs`: query-key pairs summed over the prefill chunks; a chunk of `c` tokens that follows `n`
  computed ones has `c * n + c * (c + 1) / 2`.

The `max` is the roofline of Williams, Waterman and Patterson (CACM 52(4), 2009): the matrix
products are bound either by reading the weights once or by arithmetic. The rest is additive because
those kernels run one after the other. Transformer costs follow Pope et al., "Efficiently Scaling
Transformer Inference" (arXiv 2211.05102). For a fixed batch the time is affine in `kv_tokens`,
which is what allows decode leaps.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.errors import FairleadError
from fairlead.simulator.hardware import Device, Model

GEMM_EFFICIENCY = 0.55
"""Share of peak FLOP/s that the layers' matrix products reach at a few hundred tokens or more.

cuBLAS reaches 0.65 to 0.75 on large shapes; the narrow K/V projections and tile remainders cost the
rest. Pope et al. report a prefill MFU of 0.76 for PaLM 540B at its best, Llama-size models less.
"""
BANDWIDTH_EFFICIENCY = 0.85
"""Share of peak memory bandwidth when streaming weights or KV blocks (plain copies reach 0.85 to 0.93)."""
ATTENTION_EFFICIENCY = 0.40
"""Share of peak FLOP/s of prefill attention.

FlashAttention-2 (arXiv 2307.08691) reaches up to 0.73 forward on A100, and 0.35 on H100 according to
FlashAttention-3 (arXiv 2407.08608); paged keys and short chunks take some of it.
"""
ALLREDUCE_EFFICIENCY = 0.70
"""Share of the link's one-way bandwidth that a ring all-reduce reaches (nccl-tests "busbw", 0.6 to 0.8)."""
OVERHEAD_S = 1.0e-3
"""Scheduling, input preparation and launch of one iteration that no kernel hides, with CUDA graphs, s."""
SAMPLING_S = 10e-6
"""Sampling, detokenisation and bookkeeping per scheduled sequence, s."""
RUNTIME_RESERVE_BYTES = 1024**3
"""CUDA context, communication buffers and captured graphs on each device, bytes."""


class Coefficients(NamedTuple):
    """The iteration-time model of one replica; the order of the fields is that of the array."""

    base_s: float
    """s per iteration."""
    weights_s: float
    """s to read all weights once."""
    token_s: float
    """s of arithmetic per new token."""
    comm_s: float
    """s of all-reduce per new token (0 without tensor parallelism)."""
    seq_s: float
    """s per scheduled sequence."""
    kv_s: float
    """s per KV token read by a decode."""
    pair_s: float
    """s per query-key pair of a prefill chunk."""

    def scaled(self, factor: float) -> "Coefficients":
        """The same with all times multiplied."""
        return Coefficients(*(factor * c for c in self))


TIMING_FIELDS: tuple[str, ...] = Coefficients._fields
NUM_TIMING_FIELDS = len(TIMING_FIELDS)
BASE_S, WEIGHTS_S, TOKEN_S, COMM_S, SEQ_S, KV_S, PAIR_S = range(NUM_TIMING_FIELDS)


class MemoryOptions(Protocol):
    """The engine options that decide how much memory is left for the KV cache (vLLM's names)."""

    @property
    def max_num_batched_tokens(self) -> int: ...  # noqa: D102
    @property
    def max_num_seqs(self) -> int: ...  # noqa: D102
    @property
    def block_size(self) -> int: ...  # noqa: D102
    @property
    def gpu_memory_utilization(self) -> float: ...  # noqa: D102
    @property
    def num_gpu_blocks(self) -> int | None: ...  # noqa: D102


def analytic(model: Model, device: Device, tensor_parallel: int = 1, slowdown: float = 1.0) -> Coefficients:
    """Coefficients of `model` on `tensor_parallel` devices, all multiplied by `slowdown`.

    Per token: 2 FLOP per weight of the layers, and the memory traffic of norms, rotary embedding
    and activation function. Per sequence: 2 FLOP per weight of the output projection (logits are
    computed only where a token is sampled). Per pair: 4 * layers * heads * head_dim FLOP (scores and
    weighted sum). Communication: two ring all-reduces of one hidden vector per layer (Shoeybi et al.,
    Megatron-LM, arXiv 1909.08053), each moving 2 * (n - 1) / n of its bytes.

    Raises:
        FairleadError: if the model cannot be split over so many devices, or `slowdown` is not positive.
    """
    _check_split(model, tensor_parallel)
    if not (np.isfinite(slowdown) and slowdown > 0):
        raise FairleadError(f"slowdown is {slowdown}: give a positive number (1 is the device as it is)")
    n = tensor_parallel
    gemm_flops = n * device.flops * GEMM_EFFICIENCY
    bandwidth = n * device.bandwidth * BANDWIDTH_EFFICIENCY
    allreduces = 2 * model.layers if n > 1 else 0
    allreduce_bytes = 2 * (n - 1) / n * model.hidden * model.bytes_per_weight
    coefficients = Coefficients(
        base_s=OVERHEAD_S + allreduces * device.allreduce_latency_s,
        weights_s=(model.linear_params + model.head_params) * model.bytes_per_weight / bandwidth,
        token_s=2 * model.linear_params / gemm_flops
        + _activation_bytes(model, n) / (device.bandwidth * BANDWIDTH_EFFICIENCY),
        comm_s=allreduces * allreduce_bytes / (device.interconnect * ALLREDUCE_EFFICIENCY),
        seq_s=SAMPLING_S + 2 * model.head_params / gemm_flops,
        kv_s=model.kv_bytes_per_token / bandwidth,
        pair_s=4 * model.layers * model.heads * model.head_dim / (n * device.flops * ATTENTION_EFFICIENCY),
    )
    return coefficients.scaled(slowdown)


@njit(inline=True)
def iteration_time(
    c: npt.NDArray[np.float64], tokens: float, seqs: float, kv_tokens: float, pairs: float
) -> float:
    """Duration of one iteration, s; `c` (7,) holds `Coefficients` in order."""
    return float(
        c[BASE_S]
        + max(c[WEIGHTS_S], c[TOKEN_S] * tokens)
        + c[COMM_S] * tokens
        + c[SEQ_S] * seqs
        + c[KV_S] * kv_tokens
        + c[PAIR_S] * pairs
    )


def kv_blocks(model: Model, device: Device, tensor_parallel: int, options: MemoryOptions) -> int:
    """KV blocks of one replica, by vLLM's rule, or `options.num_gpu_blocks` where that is given.

    memory * gpu_memory_utilization - weights - runtime reserve - peak activations, all per device,
    divided by the bytes of one block. vLLM measures the activations in a profiling run; here they are
    the residual stream and the widest MLP tensors of one layer for a full token budget, and the
    float32 logits of a full batch, twice (logits and probabilities).

    Raises:
        FairleadError: if the model cannot be split so, or if not one block fits.
    """
    _check_split(model, tensor_parallel)
    if options.num_gpu_blocks is not None:
        return options.num_gpu_blocks
    n = tensor_parallel
    widths = 4 * model.hidden + 3 * model.intermediate / n
    activations = options.max_num_batched_tokens * widths * model.bytes_per_weight
    logits = 2 * 4 * options.max_num_seqs * model.vocab
    used = model.weight_bytes / n + RUNTIME_RESERVE_BYTES + activations + logits
    free = device.memory_bytes * options.gpu_memory_utilization - used
    blocks = int(free // (options.block_size * model.kv_bytes_per_token / n))
    if blocks < 1:
        raise FairleadError(
            f"{model.name} does not fit on {n} x {device.name}: it needs {used / 1e9:.1f} GB per device and "
            f"{device.memory_bytes * options.gpu_memory_utilization / 1e9:.1f} GB are usable; raise "
            "tensor_parallel or gpu_memory_utilization, or take a larger device"
        )
    return blocks


def _check_split(model: Model, tensor_parallel: int) -> None:
    """Refuses a tensor-parallel size that does not divide the attention heads evenly."""
    allowed = [n for n in range(1, model.kv_heads + 1) if model.heads % n == 0 == model.kv_heads % n]
    if tensor_parallel not in allowed:
        raise FairleadError(
            f"tensor_parallel {tensor_parallel} does not divide the {model.heads} heads and "
            f"{model.kv_heads} KV heads of {model.name}: use one of {', '.join(map(str, allowed))}"
        )


def _activation_bytes(model: Model, n: int) -> float:
    """Bytes that the element-wise kernels move per token and device.

    Per layer: two fused residual-add-and-norm (4 hidden vectors each, on every device), rotary
    embedding in place (Q and K read and written) and the gated activation (2 in, 1 out).
    """
    rotary = 2 * (model.heads + model.kv_heads) * model.head_dim
    per_layer = 8 * model.hidden + (rotary + 3 * model.intermediate) / n
    return model.layers * per_layer * model.bytes_per_weight
