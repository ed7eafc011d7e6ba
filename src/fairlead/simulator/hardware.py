"""Facts about accelerators and models, each with the document that states it.

Numbers that follow from others (parameters, bytes) are derived here, never typed in, so that a
new model is a handful of values copied from its `config.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fairlead.errors import FairleadError


@dataclass(frozen=True)
class Device:
    """One accelerator, as its data sheet describes it."""

    name: str
    flops: float
    """Dense BF16 tensor-core peak, FLOP/s (data sheets often print twice that, "with sparsity")."""
    bandwidth: float
    """Peak bandwidth of the device memory, B/s."""
    memory_bytes: int
    """Memory that the driver reports (`nvidia-smi`), bytes; with ECC on where it is an option."""
    interconnect: float
    """Bandwidth to the other devices of one tensor-parallel group, B/s in one direction."""
    allreduce_latency_s: float
    """Time of an all-reduce of almost nothing, s: about 10 us over NVLink, 30 us over PCIe."""
    source: str


@dataclass(frozen=True)
class Model:
    """A dense decoder-only transformer with grouped-query attention and a gated MLP.

    Field names are those of the Hugging Face `config.json`, shortened.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    source: str
    qkv_bias: bool = False
    tied_embeddings: bool = False
    bytes_per_weight: int = 2
    """Weights and KV cache in BF16."""

    @property
    def attention_params(self) -> int:
        """Weights of one layer's four attention projections (Q, K, V, output)."""
        query = self.heads * self.head_dim
        return self.hidden * (2 * query + 2 * self.kv_heads * self.head_dim)

    @property
    def mlp_params(self) -> int:
        """Weights of one layer's gate, up and down projections."""
        return 3 * self.hidden * self.intermediate

    @property
    def linear_params(self) -> int:
        """Weights of the matrix products that every token passes through, over all layers."""
        return self.layers * (self.attention_params + self.mlp_params)

    @property
    def head_params(self) -> int:
        """Weights of the output projection, used once per sampled token."""
        return self.hidden * self.vocab

    @property
    def total_params(self) -> int:
        """All parameters: layers, norms, biases, input embedding and output projection."""
        norms = (2 * self.layers + 1) * self.hidden
        biases = self.layers * (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        embeddings = self.head_params * (1 if self.tied_embeddings else 2)
        return self.linear_params + norms + biases + embeddings

    @property
    def weight_bytes(self) -> int:
        """Memory for all parameters, bytes."""
        return self.total_params * self.bytes_per_weight

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory for one token's keys and values over all layers, bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_weight


_MIB = 1024**2
_NVLINK_LATENCY_S = 10e-6
_PCIE_LATENCY_S = 30e-6

DEVICES: Mapping[str, Device] = {
    d.name: d
    for d in (
        Device(
            name="a10",
            flops=125e12,
            bandwidth=600e9,
            memory_bytes=23_028 * _MIB,
            interconnect=32e9,
            allreduce_latency_s=_PCIE_LATENCY_S,
            source="NVIDIA A10 Tensor Core GPU data sheet: 24 GB GDDR6, 600 GB/s, PCIe 4.0 x16",
        ),
        Device(
            name="l40s",
            flops=362.05e12,
            bandwidth=864e9,
            memory_bytes=46_068 * _MIB,
            interconnect=32e9,
            allreduce_latency_s=_PCIE_LATENCY_S,
            source="NVIDIA L40S data sheet: 48 GB GDDR6, 864 GB/s, PCIe 4.0 x16",
        ),
        Device(
            name="a100-80g",
            flops=312e12,
            bandwidth=2_039e9,
            memory_bytes=81_920 * _MIB,
            interconnect=300e9,
            allreduce_latency_s=_NVLINK_LATENCY_S,
            source="NVIDIA A100 data sheet, 80 GB SXM: HBM2e, 2,039 GB/s, NVLink 600 GB/s both ways",
        ),
        Device(
            name="h100",
            flops=989.4e12,
            bandwidth=3_350e9,
            memory_bytes=81_559 * _MIB,
            interconnect=450e9,
            allreduce_latency_s=_NVLINK_LATENCY_S,
            source="NVIDIA H100 data sheet, SXM: 80 GB HBM3, 3.35 TB/s, NVLink 900 GB/s both ways",
        ),
        Device(
            name="h200",
            flops=989.4e12,
            bandwidth=4_800e9,
            memory_bytes=143_771 * _MIB,
            interconnect=450e9,
            allreduce_latency_s=_NVLINK_LATENCY_S,
            source="NVIDIA H200 data sheet, SXM: 141 GB HBM3e, 4.8 TB/s, NVLink 900 GB/s both ways",
        ),
    )
}
"""Presets, by name."""

MODELS: Mapping[str, Model] = {
    m.name: m
    for m in (
        Model(
            name="llama-3-8b",
            layers=32,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_dim=128,
            intermediate=14_336,
            vocab=128_256,
            source="config.json of meta-llama/Meta-Llama-3-8B (8.03 B parameters)",
        ),
        Model(
            name="llama-3-70b",
            layers=80,
            hidden=8192,
            heads=64,
            kv_heads=8,
            head_dim=128,
            intermediate=28_672,
            vocab=128_256,
            source="config.json of meta-llama/Meta-Llama-3-70B (70.6 B parameters)",
        ),
        Model(
            name="qwen2.5-7b",
            layers=28,
            hidden=3584,
            heads=28,
            kv_heads=4,
            head_dim=128,
            intermediate=18_944,
            vocab=152_064,
            qkv_bias=True,
            source="config.json of Qwen/Qwen2.5-7B (7.61 B parameters, 6.53 B without embeddings)",
        ),
        Model(
            name="qwen2.5-32b",
            layers=64,
            hidden=5120,
            heads=40,
            kv_heads=8,
            head_dim=128,
            intermediate=27_648,
            vocab=152_064,
            qkv_bias=True,
            source="config.json of Qwen/Qwen2.5-32B (32.5 B parameters, 31.0 B without embeddings)",
        ),
    )
}
"""Presets, by name."""


def device(name: str) -> Device:
    """The device preset called `name`; FairleadError with the known names if there is none."""
    try:
        return DEVICES[name]
    except KeyError:
        raise FairleadError(f"unknown device {name!r}: use one of {', '.join(DEVICES)}") from None


def model(name: str) -> Model:
    """The model preset called `name`; FairleadError with the known names if there is none."""
    try:
        return MODELS[name]
    except KeyError:
        raise FairleadError(f"unknown model {name!r}: use one of {', '.join(MODELS)}") from None
