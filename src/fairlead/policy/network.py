"""The policy network: one score per replica, the same weights for any number of replicas.

By default a two-layer encoder shared by all replicas (F -> 64 -> 64), one single-head self-attention layer
across the replicas with a residual, and a score per replica. The critic has an encoder of its own. Nothing
depends on a replica's index: permuting the replicas permutes the scores and leaves the value.

About 100 kFLOP forward per decision at 4 replicas. Options: layer normalisation (training's default), a
projection of the features, several heads and layers of attention or none, a GRU that remembers earlier
decisions (`fairlead.policy.layers`).
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairlead.policy.layers import MASKED, Architecture, Attention, Head, Trunk, pool
from fairlead.view.features import FEATURES, NUM_FEATURES, features_batch
from fairlead.view.preference import DEFAULT_FAVOR, check_favor
from fairlead.view.schema import View

AVAILABLE = "available"
"""The feature that is 1 for a replica that may be chosen and 0 for one that may not."""


class Critic(nn.Module):
    """A value of its own: (B, R, F) -> (B,).

    Each replica is encoded alike and the embeddings are pooled by mean and maximum. A value sums up the
    cluster; it need not compare replicas with each other, so by default there is no attention, which is what
    costs most.
    """

    def __init__(self, features: int, shape: Architecture, generator: torch.Generator) -> None:
        """A trunk of its own and a head."""
        super().__init__()
        self.trunk = Trunk(features, shape, shape.critic_gru_layers, shape.critic_attention, generator)
        self.head = Head(2 * shape.hidden, 1.0, generator)


class RouterNetwork(nn.Module):
    """Actor and critic.

    The last layer of the actor starts at zero, so the first policy is uniform; everything else is
    orthogonal. A network with a memory (`state_size` > 0) is used through `step` and `sequence`.
    """

    def __init__(
        self,
        features: int = NUM_FEATURES,
        *,
        hidden: int = 64,
        encoder_layers: int = 2,
        projection: int = 0,
        layer_norm: bool = False,
        attention: int = 16,
        attention_layers: int = 1,
        attention_heads: int = 1,
        gru_layers: int = 0,
        critic: Literal["shared", "decoupled"] = "shared",
        critic_attention: bool = False,
        critic_gru_layers: int = 0,
        excluded: Sequence[int] = (),
        available: int | None = FEATURES.index(AVAILABLE) if AVAILABLE in FEATURES else None,
        balance_head: bool = False,
        seed: int = 0,
    ) -> None:
        """Fresh weights.

        Args:
            features: F, the size of a replica's feature vector.
            hidden: width of the embeddings; the heads are half as wide.
            encoder_layers: of the encoder of each replica.
            projection: width of a normalised projection of the features; 0: none.
            layer_norm: normalise each encoder layer.
            attention: width of query, key and value in the attention layers.
            attention_layers: number of them; 0: replicas do not see each other.
            attention_heads: a divisor of `attention`.
            gru_layers: of the actor's memory; 0: none.
            critic: `shared` puts a value head on the actor's embeddings; `decoupled` gives the critic an
                encoder of its own.
            critic_attention: whether a decoupled critic attends across replicas too.
            critic_gru_layers: of a decoupled critic's memory.
            excluded: indices of features that are not looked at.
            available: index of the feature that says which replicas may be chosen, if there is one.
            balance_head: a second head on what the value is computed from: `balance`.
            seed: of the initial weights.
        """
        super().__init__()
        shape = Architecture(
            hidden,
            encoder_layers,
            projection,
            layer_norm,
            attention,
            attention_layers,
            attention_heads,
            gru_layers,
            critic,
            critic_attention,
            critic_gru_layers,
            tuple(excluded),
        )
        generator = torch.Generator().manual_seed(seed)
        self.features, self.shape = features, shape
        self.available = available if available is not None and available < features else None
        seen = torch.ones(features)
        seen[list(excluded)] = 0.0
        self.register_buffer("seen", seen, persistent=False)
        self.trunk = Trunk(features, shape, gru_layers, True, generator)
        self.score_head = Head(hidden, 0.0, generator)
        # Only one of the two exists.
        self.value_head = Head(hidden, 1.0, generator) if critic == "shared" else None
        self.critic = Critic(features, shape, generator) if critic == "decoupled" else None
        width = hidden if critic == "shared" else 2 * hidden
        self.balance_head = Head(width, 1.0, generator) if balance_head else None

    # ---- what goes in

    def _input(self, observation: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the encoders see, and which replicas may be chosen."""
        assert isinstance(self.seen, Tensor)
        available = None if self.available is None else observation[..., self.available] > 0.5
        if available is not None and bool(available.all()):
            available = None  # nothing to hide, and masking takes time
        return observation * self.seen if self.shape.excluded else observation, available

    @staticmethod
    def _masked(logits: Tensor, available: Tensor | None) -> Tensor:
        return logits if available is None else logits.masked_fill(~available, MASKED)

    # ---- without a memory

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """(B, R, F) float32 -> logits (B, R) and value (B,)."""
        self._check_stateless()
        x, available = self._input(observation)
        embedding = self.trunk(x, available)
        return self._masked(self.score_head(embedding), available), self._value(x, embedding, available)

    def logits(self, observation: Tensor) -> Tensor:
        """(B, R, F) -> (B, R): the actor alone."""
        self._check_stateless()
        x, available = self._input(observation)
        return self._masked(self.score_head(self.trunk(x, available)), available)

    def value(self, observation: Tensor) -> Tensor:
        """(B, R, F) -> (B,): the critic alone."""
        self._check_stateless()
        x, available = self._input(observation)
        embedding = None if self.value_head is None else self.trunk(x, available)
        return self._value(x, embedding, available)

    def _value(self, x: Tensor, embedding: Tensor | None, available: Tensor | None) -> Tensor:
        value: Tensor
        if self.critic is not None:
            value = self.critic.head(pool(self.critic.trunk(x, available), available))
        else:
            assert self.value_head is not None and embedding is not None
            value = self.value_head(_mean(embedding, available))
        return value

    def balance(self, observation: Tensor) -> Tensor:
        """(B, R, F) -> (B,): the spread of load over the replicas that its own head expects.

        An auxiliary task: what it teaches goes into the critic's embeddings, with a shared critic into the
        actor's.
        """
        self._check_stateless()
        assert self.balance_head is not None
        x, available = self._input(observation)
        found: Tensor
        if self.critic is not None:
            found = self.balance_head(pool(self.critic.trunk(x, available), available))
        else:
            found = self.balance_head(_mean(self.trunk(x, available), available))
        return found

    def _check_stateless(self) -> None:
        if self.state_size:
            raise ValueError("this network has a memory: use `step` or `sequence`, which carry its state")

    # ---- with a memory

    @property
    def state_size(self) -> int:
        """Numbers remembered for each replica; 0 without a memory."""
        return self.actor_state_size + (0 if self.critic is None else self.critic.trunk.state_size)

    @property
    def actor_state_size(self) -> int:
        """How many of these are the actor's; they come first."""
        return self.trunk.state_size

    def initial_state(self, batch: int, replicas: int) -> Tensor:
        """Nothing remembered: (batch, replicas, state_size) zeros."""
        return torch.zeros(batch, replicas, self.state_size)

    def step(self, observation: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, R, F) and state (B, R, S) -> logits (B, R), values (B,), next state (B, R, S)."""
        x, available = self._input(observation)
        own = None if self.critic is None else self.critic.trunk(x, available)
        return self._finish(self.trunk(x, available), own, available, state)

    def _finish(
        self, embedding: Tensor, own: Tensor | None, available: Tensor | None, state: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From embeddings of one step (of the actor's trunk and the critic's own) to its results."""
        size = self.actor_state_size
        embedding, actor_state = self.trunk.remember(embedding, state[..., :size])
        value: Tensor
        if self.critic is not None:
            assert own is not None
            own, critic_state = self.critic.trunk.remember(own, state[..., size:])
            value = self.critic.head(pool(own, available))
            actor_state = torch.cat([actor_state, critic_state], -1)
        else:
            assert self.value_head is not None
            value = self.value_head(_mean(embedding, available))
        return self._masked(self.score_head(embedding), available), value, actor_state

    def sequence(self, observations: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Consecutive steps of B clusters, each sequence from the stored state of its own first step.

        Args:
            observations: (B, L, R, F).
            state: (B, R, S) before the first step.
            starts: (B, L) whether an episode begins at a step: nothing is remembered from before it.

        Returns:
            Logits (B, L, R) and values (B, L).
        """
        batch, length = observations.shape[:2]
        x, available = self._input(observations)
        seen = None if available is None else available.flatten(0, 1)
        embeddings = self.trunk(x.flatten(0, 1), seen).unflatten(0, (batch, length))
        owns = None
        if self.critic is not None:
            owns = self.critic.trunk(x.flatten(0, 1), seen).unflatten(0, (batch, length))
        logits, values = [], []
        for t in range(length):
            state = state * (~starts[:, t])[:, None, None]
            score, value, state = self._finish(
                embeddings[:, t],
                None if owns is None else owns[:, t],
                None if available is None else available[:, t],
                state,
            )
            logits.append(score)
            values.append(value)
        return torch.stack(logits, 1), torch.stack(values, 1)

    # ---- looking inside

    def attention_weights(self, observation: Tensor) -> list[Tensor]:
        """Of each attention layer: who looks at whom, (B, heads, R, R), rows summing to one."""
        x, available = self._input(observation)
        embedding = self.trunk.encoder(x)
        found = []
        for layer in self.trunk.attention:
            assert isinstance(layer, Attention)
            found.append(layer.weights(embedding, available)[0])
            embedding = layer(embedding, available)
        return found

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """What decides; a shared trunk belongs to the actor."""
        yield from self.trunk.parameters()
        yield from self.score_head.parameters()

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """What only the value depends on."""
        for part in (self.critic, self.value_head, self.balance_head):
            if part is not None:
                yield from part.parameters()


def _mean(embedding: Tensor, available: Tensor | None) -> Tensor:
    """Mean over the replicas that are available: (B, R, x) -> (B, x)."""
    if available is None:
        return embedding.mean(1)
    seen = available[..., None].to(embedding.dtype)
    return (embedding * seen).sum(1) / seen.sum(1).clamp(min=1.0)


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
        self._state: Tensor | None = None

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Forget what was remembered."""
        self._state = None

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(K, R, F) -> (K, R); with a memory, of the next decision of K clusters since the last `reset`."""
        observation = torch.from_numpy(features)
        with torch.no_grad():
            if not self.network.state_size:
                found = self.network.logits(observation)
            else:
                if self._state is None or self._state.shape[:2] != observation.shape[:2]:
                    self._state = self.network.initial_state(*observation.shape[:2])
                found, _, self._state = self.network.step(observation, self._state)
        logits: npt.NDArray[np.float32] = found.numpy()
        return logits

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """The replica with the highest score for each cluster's request: (K,)."""
        actions: npt.NDArray[np.int64] = self.logits(features_batch(view, self.favor)).argmax(-1)
        return actions
