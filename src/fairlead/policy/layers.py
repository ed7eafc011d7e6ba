"""The parts of the policy network. All treat replicas alike: (..., R, x) in, (..., R, y) out."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

MASKED = -1e9
"""Score of a replica that must not be chosen: its probability is exactly zero, and nothing becomes NaN."""


@dataclass(frozen=True)
class Architecture:
    """Shape of a network; `fairlead.train.config.NetworkConfig` says what each means."""

    hidden: int = 64
    encoder_layers: int = 2
    projection: int = 0
    layer_norm: bool = False
    attention: int = 16
    attention_layers: int = 1
    attention_heads: int = 1
    gru_layers: int = 0
    critic: Literal["shared", "decoupled"] = "shared"
    critic_attention: bool = False
    critic_gru_layers: int = 0
    excluded: tuple[int, ...] = ()
    """Indices of features that the network does not see."""


def orthogonal(layer: nn.Linear, gain: float, generator: torch.Generator) -> nn.Linear:
    """Orthogonal weights and no bias (Saxe et al. 2014); returns the layer."""
    nn.init.orthogonal_(layer.weight, gain, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class Encoder(nn.Module):
    """Each replica by itself: an optional projection, then linear layers with ReLU."""

    def __init__(self, features: int, shape: Architecture, generator: torch.Generator) -> None:
        """(..., F) -> (..., hidden)."""
        super().__init__()
        self.norm = nn.LayerNorm(features) if shape.projection else None
        self.project = nn.Linear(features, shape.projection) if shape.projection else None
        width = shape.projection or features
        self.layers = nn.ModuleList()
        self.norms = nn.ModuleList()
        for i in range(shape.encoder_layers):
            self.layers.append(nn.Linear(width if i == 0 else shape.hidden, shape.hidden))
            if shape.layer_norm:
                self.norms.append(nn.LayerNorm(shape.hidden))
        # Whatever comes first in the network takes its random numbers first.
        for layer in self.layers:
            assert isinstance(layer, nn.Linear)
            orthogonal(layer, math.sqrt(2), generator)
        if self.project is not None:
            orthogonal(self.project, 1.0, generator)

    def forward(self, x: Tensor) -> Tensor:
        """One embedding for each replica."""
        if self.norm is not None and self.project is not None:
            x = nn.functional.gelu(self.project(self.norm(x)))
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = torch.relu(self.norms[i](x) if len(self.norms) else x)
        return x


class Attention(nn.Module):
    """Self-attention across replicas with a residual: (B, R, hidden) -> (B, R, hidden).

    Written as plain matrix products: at this size they are faster on a CPU than the fused kernels.
    """

    def __init__(self, hidden: int, width: int, heads: int, generator: torch.Generator) -> None:
        """`width` is that of query, key and value over all `heads`."""
        super().__init__()
        self.width, self.heads = width, heads
        self.query_key_value = orthogonal(nn.Linear(hidden, 3 * width, bias=False), 1.0, generator)
        self.mix = orthogonal(nn.Linear(width, hidden, bias=False), 1.0, generator)

    def weights(self, embedding: Tensor, available: Tensor | None) -> tuple[Tensor, Tensor]:
        """Who looks at whom (B, heads, R, R), and the values (B, heads, R, width/heads)."""
        batch, replicas, _ = embedding.shape
        query, key, value = (
            part.view(batch, replicas, self.heads, -1).transpose(1, 2)
            for part in self.query_key_value(embedding).split(self.width, -1)
        )
        scores = query @ key.transpose(2, 3) * (1 / math.sqrt(self.width // self.heads))
        return torch.softmax(_hide(scores, available, heads=True), -1), value

    def forward(self, embedding: Tensor, available: Tensor | None) -> Tensor:
        """Let each replica attend to all that are `available` (B, R)."""
        if self.heads == 1:
            query, key, value = self.query_key_value(embedding).split(self.width, -1)
            scores = query @ key.transpose(1, 2) * (1 / math.sqrt(self.width))
            found = torch.softmax(_hide(scores, available, heads=False), -1) @ value
        else:
            weights, value = self.weights(embedding, available)
            found = (weights @ value).transpose(1, 2).flatten(2)
        mixed: Tensor = embedding + self.mix(found)
        return mixed


def _hide(scores: Tensor, available: Tensor | None, *, heads: bool) -> Tensor:
    if available is None:
        return scores
    seen = available[:, None, None, :] if heads else available[:, None, :]
    return scores.masked_fill(~seen, MASKED)


class Memory(nn.Module):
    """GRU cells shared by all replicas: each replica has a state of its own (Cho et al. 2014).

    The embeddings have already seen the other replicas, so a state remembers the cluster from one replica's
    point of view, and permuting the replicas permutes the states.
    """

    def __init__(self, hidden: int, layers: int, generator: torch.Generator) -> None:
        """`layers` cells on top of each other; the state is (..., layers * hidden)."""
        super().__init__()
        self.hidden = hidden
        self.inputs = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in range(layers))
        self.states = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in range(layers))
        for layer in (*self.inputs, *self.states):
            assert isinstance(layer, nn.Linear)
            orthogonal(layer, 1.0, generator)

    @property
    def size(self) -> int:
        """Numbers in the state of one replica."""
        return self.hidden * len(self.inputs)

    def forward(self, embedding: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, hidden) and the state (B, R, size) -> what to go on with, and the next state."""
        x, following = embedding, []
        for into, own, before in zip(
            self.inputs, self.states, torch.split(state, self.hidden, -1), strict=True
        ):
            reset_x, update_x, new_x = into(x).chunk(3, -1)
            reset_h, update_h, new_h = own(before).chunk(3, -1)
            keep = torch.sigmoid(update_x + update_h)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            x = new + keep * (before - new)
            following.append(x)
        return embedding + x, torch.cat(following, -1)


class Head(nn.Module):
    """A two-layer perceptron, hidden/2 wide, with one output: (..., hidden) -> (...)."""

    def __init__(self, hidden: int, gain: float, generator: torch.Generator) -> None:
        """`gain` is the scale of the last layer; 0 makes the output exactly zero."""
        super().__init__()
        self.layer_1 = nn.Linear(hidden, hidden // 2)
        self.layer_2 = nn.Linear(hidden // 2, 1)
        orthogonal(self.layer_1, math.sqrt(2), generator)
        if gain == 0.0:
            nn.init.zeros_(self.layer_2.weight)
            nn.init.zeros_(self.layer_2.bias)
        else:
            orthogonal(self.layer_2, gain, generator)

    def forward(self, embedding: Tensor) -> Tensor:
        """One number per embedding."""
        output: Tensor = self.layer_2(torch.relu(self.layer_1(embedding))).squeeze(-1)
        return output


class Trunk(nn.Module):
    """Embeddings of replicas that know of each other, and of the past: (B, R, F) -> (B, R, hidden)."""

    def __init__(
        self, features: int, shape: Architecture, gru_layers: int, attend: bool, generator: torch.Generator
    ) -> None:
        """With attention if `attend`, with a memory if `gru_layers` > 0."""
        super().__init__()
        self.encoder = Encoder(features, shape, generator)
        self.attention = nn.ModuleList(
            Attention(shape.hidden, shape.attention, shape.attention_heads, generator)
            for _ in range(shape.attention_layers if attend else 0)
        )
        self.memory = Memory(shape.hidden, gru_layers, generator) if gru_layers else None

    @property
    def state_size(self) -> int:
        """Numbers that are remembered for each replica."""
        return self.memory.size if self.memory is not None else 0

    def forward(self, observation: Tensor, available: Tensor | None) -> Tensor:
        """Without the memory: all that can be computed for many steps at once."""
        embedding: Tensor = self.encoder(observation)
        for layer in self.attention:
            embedding = layer(embedding, available)
        return embedding

    def remember(self, embedding: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the memory: (what to go on with, next state); without one, nothing changes."""
        if self.memory is None:
            return embedding, state
        found: tuple[Tensor, Tensor] = self.memory(embedding, state)
        return found


def pool(embedding: Tensor, available: Tensor | None) -> Tensor:
    """Mean and maximum over the replicas that are available: (B, R, x) -> (B, 2x)."""
    if available is None:
        return torch.cat([embedding.mean(1), embedding.amax(1)], -1)
    seen = available[..., None].to(embedding.dtype)
    mean = (embedding * seen).sum(1) / seen.sum(1).clamp(min=1.0)
    largest = embedding.masked_fill(~available[..., None], MASKED).amax(1)
    return torch.cat([mean, torch.where(available.any(1, keepdim=True), largest, mean)], -1)
