"""What teachers have labelled so far, for clusters of one size."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Examples(NamedTuple):
    """Labelled decisions as tensors; for a network with a memory, sequences with a second axis L."""

    observations: Tensor
    """(N, R, F), or (N, L, R, F)."""
    labels: Tensor
    """Regrets cost - least cost (N, R) float32, or actions (N,) int64; or with an axis L."""
    states: Tensor | None = None
    """(N, R, S) remembered before each sequence."""
    starts: Tensor | None = None
    """(N, L) whether an episode begins."""
    weights: Tensor | None = None
    """(N,) or (N, L) what each counts for; None: all alike."""

    @property
    def size(self) -> int:
        """Decisions or sequences."""
        return len(self.labels)

    def take(self, indices: Tensor) -> "Examples":
        """Those at `indices`."""
        return Examples(*(None if tensor is None else tensor[indices] for tensor in self))  # type: ignore[arg-type]

    def to(self, device: str) -> "Examples":
        """The same on another device."""
        return self if device == "cpu" else Examples(*(None if t is None else t.to(device) for t in self))  # type: ignore[arg-type]

    @property
    def acted(self) -> bool:
        """Whether the labels are actions rather than regrets."""
        return not self.labels.is_floating_point()


_LISTS = ("observations", "labels", "states", "starts", "weights")


class Demonstrations:
    """Observations (N, R, F) and the teacher's labels, in the order they were collected."""

    def __init__(self) -> None:
        """None yet."""
        self.observations: list[npt.NDArray[np.float32]] = []
        self.labels: list[npt.NDArray[Any]] = []
        self.states: list[npt.NDArray[np.float32]] = []
        """With a memory: (K, R, S) before each step that begins a sequence, else an empty array."""
        self.starts: list[npt.NDArray[np.bool_]] = []
        """(K,) whether the step begins an episode."""
        self.weights: list[npt.NDArray[np.float32]] = []
        """(K,) what the clusters count for at each step; an empty array: 1."""

    def add(
        self,
        observations: npt.NDArray[np.float32],
        labels: npt.NDArray[Any],
        state: npt.NDArray[np.float32] | None = None,
        starts: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Append one labelled step of K clusters; `state` where a sequence begins."""
        self.observations.append(np.array(observations, np.float32))
        actions = labels.ndim == 1
        self.labels.append(np.array(labels, np.int64 if actions else np.float64))
        self.states.append(np.empty(0, np.float32) if state is None else state)
        self.starts.append(np.zeros(len(labels), np.bool_) if starts is None else starts)
        self.weights.append(np.empty(0, np.float32))

    def weigh(self, since: int, weights: npt.NDArray[np.float64]) -> None:
        """Say what the K clusters count for, (K,), in the steps after the first `since`."""
        self.weights[since:] = [np.array(weights, np.float32) for _ in self.weights[since:]]

    def __len__(self) -> int:
        """Labelled steps (of K clusters each)."""
        return len(self.labels)

    @property
    def decisions(self) -> int:
        """Labelled decisions."""
        return sum(map(len, self.labels))

    def _select(self, steps: list[int]) -> "Demonstrations":
        found = Demonstrations()
        for name in _LISTS:
            setattr(found, name, [getattr(self, name)[i] for i in steps])
        return found

    def split(self, every: int, length: int = 1) -> tuple["Demonstrations", "Demonstrations"]:
        """Those to fit, and every `every`-th sequence of `length` steps, to measure on."""
        held = [i // length % every == every - 1 for i in range(len(self))]
        return (
            self._select([i for i, h in enumerate(held) if not h]),
            self._select([i for i, h in enumerate(held) if h]),
        )

    def since(self, step: int) -> "Demonstrations":
        """Those collected after the first `step` labelled steps."""
        return self._select(list(range(step, len(self))))

    def examples(self, *, length: int = 1, actions: bool = False) -> Examples:
        """All of them as tensors; `length` > 1 gives sequences, `actions` the teacher's choices alone.

        Raises:
            ValueError: if steps of sequences are missing.
        """
        labels = np.stack(self.labels)
        if actions and labels.ndim == 3:
            labels = labels.argmin(-1)
        if labels.ndim == 3:
            labels = (labels - labels.min(-1, keepdims=True)).astype(np.float32)
        observations = torch.from_numpy(np.stack(self.observations))
        found = torch.from_numpy(np.ascontiguousarray(labels))
        if length == 1:
            weights = self._weights()
            return Examples(
                observations.flatten(0, 1),
                found.flatten(0, 1),
                weights=None if weights is None else weights.flatten(0, 1),
            )
        if len(self) % length or any((len(s) > 0) != (i % length == 0) for i, s in enumerate(self.states)):
            raise ValueError(f"{len(self)} steps are not whole sequences of {length}")

        def sequences(steps: Tensor) -> Tensor:
            found: Tensor = steps.view(-1, length, *steps.shape[1:]).transpose(1, 2).flatten(0, 1)
            return found

        states = np.concatenate([state for state in self.states if len(state)])
        starts = torch.from_numpy(np.stack(self.starts))
        weights = self._weights()
        return Examples(
            sequences(observations),
            sequences(found),
            torch.from_numpy(states),
            sequences(starts),
            None if weights is None else sequences(weights),
        )

    def _weights(self) -> Tensor | None:
        """(steps, K), or None where nothing was said."""
        if not any(map(len, self.weights)):
            return None
        each = zip(self.weights, self.labels, strict=True)
        return torch.from_numpy(np.stack([w if len(w) else np.ones(len(x), np.float32) for w, x in each]))

    def weigh_alike(self, since: int) -> None:
        """Scale the costs of the steps after the first `since`, so that every cluster's mean regret is 1.

        Clusters differ in hardware, load and point on the dial, and so in what a second of waiting is worth:
        else a few of them would decide what all of the network learns.
        """
        steps = self.labels[since:]
        if not steps or steps[0].ndim == 1:
            return
        costs = np.stack(steps)
        regrets = costs - costs.min(-1, keepdims=True)
        scale = regrets.mean((0, 2))
        scale = np.where(scale > 0, scale, 1.0)
        self.labels[since:] = list(regrets * (1.0 / scale)[:, None])

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return {name: [torch.from_numpy(each) for each in getattr(self, name)] for name in _LISTS}

    def load(self, state: dict[str, Any]) -> None:
        """Take over a `state()`."""
        for name in _LISTS:
            setattr(self, name, [each.numpy() for each in state[name]])
