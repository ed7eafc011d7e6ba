"""The policy network: one score per replica, the same weights for any number of replicas.

A two-layer encoder shared by all replicas (27 -> 64 -> 64 by default), one single-head self-attention
layer across the replicas with a residual, and a score per replica. The critic has an encoder of its own.
Nothing depends on a replica's index: permuting the replicas permutes the scores and leaves the value.

About 100 kFLOP forward per decision at 4 replicas. The attention is written as plain matrix products:
at this size they are faster on a CPU than the fused kernels, and `fairlead.policy.artefact` can write them as
they are.
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairlead.view.features import NUM_FEATURES, features_batch
from fairlead.view.preference import DEFAULT_FAVOR, check_favor
from fairlead.view.schema import View


def _orthogonal(layer: nn.Linear, gain: float, generator: torch.Generator) -> None:
    nn.init.orthogonal_(layer.weight, gain, generator)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Trunk(nn.Module):
    """Embeddings of replicas that know of each other: (B, R, F) -> (B, R, hidden)."""

    def __init__(self, features: int, hidden: int, attention: int, generator: torch.Generator) -> None:
        """`attention` is the width of query, key and value."""
        super().__init__()
        self.attention = attention
        self.encoder_1 = nn.Linear(features, hidden)
        self.encoder_2 = nn.Linear(hidden, hidden)
        self.query_key_value = nn.Linear(hidden, 3 * attention, bias=False)
        self.mix = nn.Linear(attention, hidden, bias=False)
        _orthogonal(self.encoder_1, math.sqrt(2), generator)
        _orthogonal(self.encoder_2, math.sqrt(2), generator)
        _orthogonal(self.query_key_value, 1.0, generator)
        _orthogonal(self.mix, 1.0, generator)

    def forward(self, observation: Tensor) -> Tensor:
        """Encode each replica, then let each attend to all."""
        embedding = torch.relu(self.encoder_2(torch.relu(self.encoder_1(observation))))
        query, key, value = self.query_key_value(embedding).split(self.attention, -1)
        scores = query @ key.transpose(1, 2) * (1 / math.sqrt(self.attention))
        mixed: Tensor = embedding + self.mix(torch.softmax(scores, -1) @ value)
        return mixed


class Head(nn.Module):
    """A two-layer perceptron, hidden/2 wide, with one output: (..., hidden) -> (...)."""

    def __init__(self, hidden: int, gain: float, generator: torch.Generator) -> None:
        """`gain` is the scale of the last layer; 0 makes the output exactly zero."""
        super().__init__()
        self.layer_1 = nn.Linear(hidden, hidden // 2)
        self.layer_2 = nn.Linear(hidden // 2, 1)
        _orthogonal(self.layer_1, math.sqrt(2), generator)
        if gain == 0.0:
            nn.init.zeros_(self.layer_2.weight)
            nn.init.zeros_(self.layer_2.bias)
        else:
            _orthogonal(self.layer_2, gain, generator)

    def forward(self, embedding: Tensor) -> Tensor:
        """One number per embedding."""
        output: Tensor = self.layer_2(torch.relu(self.layer_1(embedding))).squeeze(-1)
        return output


class Critic(nn.Module):
    """A value of its own: (B, R, F) -> (B,).

    Each replica is encoded alike and the embeddings are pooled by mean and maximum. A value sums up the
    cluster; it need not compare replicas with each other, so there is no attention, which is what costs most.
    """

    def __init__(self, features: int, hidden: int, generator: torch.Generator) -> None:
        """`hidden` is the width of the embeddings."""
        super().__init__()
        self.encoder_1 = nn.Linear(features, hidden)
        self.encoder_2 = nn.Linear(hidden, hidden)
        self.head = Head(2 * hidden, 1.0, generator)
        _orthogonal(self.encoder_1, math.sqrt(2), generator)
        _orthogonal(self.encoder_2, math.sqrt(2), generator)

    def forward(self, observation: Tensor) -> Tensor:
        """Encode, pool, judge."""
        embedding = torch.relu(self.encoder_2(torch.relu(self.encoder_1(observation))))
        value: Tensor = self.head(torch.cat([embedding.mean(1), embedding.amax(1)], -1))
        return value


class RouterNetwork(nn.Module):
    """Actor and critic.

    The last layer of the actor starts at zero, so the first policy is uniform; everything else is
    orthogonal.
    """

    def __init__(
        self,
        features: int = NUM_FEATURES,
        *,
        hidden: int = 64,
        attention: int = 16,
        critic: Literal["shared", "decoupled"] = "shared",
        seed: int = 0,
    ) -> None:
        """Fresh weights.

        Args:
            features: F, the size of a replica's feature vector.
            hidden: width of the embeddings; the heads are half as wide.
            attention: width of query, key and value in the attention layer.
            critic: `shared` puts a value head on the actor's embeddings; `decoupled` gives the critic an
                encoder of its own.
            seed: of the initial weights.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.features = features
        self.trunk = Trunk(features, hidden, attention, generator)
        self.score_head = Head(hidden, 0.0, generator)
        # Only one of the two exists.
        self.value_head = Head(hidden, 1.0, generator) if critic == "shared" else None
        self.critic = Critic(features, hidden, generator) if critic == "decoupled" else None

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, F) float32 -> logits (B, R) and value (B,)."""
        embedding = self.trunk(observation)
        return self.score_head(embedding), self._value(observation, embedding)

    def logits(self, observation: Tensor) -> Tensor:
        """(B, R, F) -> (B, R): the actor alone."""
        logits: Tensor = self.score_head(self.trunk(observation))
        return logits

    def value(self, observation: Tensor) -> Tensor:
        """(B, R, F) -> (B,): the critic alone."""
        return self._value(observation, None if self.value_head is None else self.trunk(observation))

    def _value(self, observation: Tensor, embedding: Tensor | None) -> Tensor:
        value: Tensor
        if self.critic is not None:
            value = self.critic(observation)
        else:
            assert self.value_head is not None and embedding is not None
            value = self.value_head(embedding.mean(1))
        return value

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What decides; a shared trunk belongs to the actor."""
        yield from self.trunk.parameters()
        yield from self.score_head.parameters()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What only the value depends on."""
        for part in (self.critic, self.value_head):
            if part is not None:
                yield from part.parameters()


class NetworkRouter:
    """Routes by the highest score of a network in training. Never explores."""

    def __init__(
        self, network: RouterNetwork, *, name: str = "learned", favor: float = DEFAULT_FAVOR
    ) -> None:
        """`favor` is the point on the dial between E2E (0) and TTFT (1).

        Raises:
            FairleadError: for a favor outside [0, 1].
        """
        self.network = network
        self.name = name
        self.favor = check_favor(favor)

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Nothing to forget."""

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(K, R, F) -> (K, R)."""
        with torch.no_grad():
            logits: npt.NDArray[np.float32] = self.network.logits(torch.from_numpy(features)).numpy()
        return logits

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """The replica with the highest score for each cluster's request: (K,)."""
        actions: npt.NDArray[np.int64] = self.logits(features_batch(view, self.favor)).argmax(-1)
        return actions
