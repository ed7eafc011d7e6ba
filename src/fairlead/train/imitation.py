"""Warm start by DAgger (Ross et al. 2011): the student drives, the teacher says what it should have done.

A teacher that prices every choice teaches more than one that only names the best: the expected regret
sum_a pi(a) * (cost(a) - least cost) does not mind a near-tie and minds a blunder. Teachers that only act are
imitated by cross-entropy; how far that can go is limited where their actions are not a function of the view.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairlead.errors import FairleadError
from fairlead.train import losses
from fairlead.train.batches import minibatches
from fairlead.train.config import ImitationConfig
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import Env


class Student(Protocol):
    """What imitation needs of a network."""

    def logits(self, observation: Tensor) -> Tensor:
        """(B, R, F) -> (B, R)."""
        ...


class Teacher(NamedTuple):
    """Labels the decisions at hand in an environment."""

    name: str
    label: Callable[[Any], npt.NDArray[Any]]
    """environment -> costs of all choices (K, R), lower is better; or chosen replicas (K,) integers."""


def lookahead(w_ttft: float | None = None, w_e2e: float | None = None) -> Teacher:
    """The teacher that simulates each choice: costs of `env.teacher_costs`, by default at its own weights."""
    return Teacher("lookahead", lambda env: env.teacher_costs(w_ttft, w_e2e))


class Demonstrations:
    """Observations (N, R, F) and the teacher's labels, in the order they were collected."""

    def __init__(self) -> None:
        """None yet."""
        self.observations: list[npt.NDArray[np.float32]] = []
        self.labels: list[npt.NDArray[Any]] = []

    def add(self, observations: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> None:
        """Append one labelled step of K clusters."""
        self.observations.append(np.array(observations, np.float32))
        actions = labels.ndim == 1
        self.labels.append(np.array(labels, np.int64 if actions else np.float64))

    def __len__(self) -> int:
        """Labelled steps (of K clusters each)."""
        return len(self.labels)

    def split(self, every: int) -> tuple["Demonstrations", "Demonstrations"]:
        """Those to fit, and every `every`-th step, to measure on."""
        fit, holdout = Demonstrations(), Demonstrations()
        for i, (observations, labels) in enumerate(zip(self.observations, self.labels, strict=True)):
            side = holdout if i % every == every - 1 else fit
            side.observations.append(observations)
            side.labels.append(labels)
        return fit, holdout

    def since(self, step: int) -> "Demonstrations":
        """Those collected after the first `step` labelled steps."""
        recent = Demonstrations()
        recent.observations, recent.labels = self.observations[step:], self.labels[step:]
        return recent

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Observations (N, R, F); regrets cost - least cost (N, R) float32 or actions (N,) int64."""
        labels = np.concatenate(self.labels)
        if labels.ndim == 2:
            labels = (labels - labels.min(-1, keepdims=True)).astype(np.float32)
        return torch.from_numpy(np.concatenate(self.observations)), torch.from_numpy(labels)

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return {
            "observations": [torch.from_numpy(each) for each in self.observations],
            "labels": [torch.from_numpy(each) for each in self.labels],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a `state()`."""
        self.observations = [each.numpy() for each in state["observations"]]
        self.labels = [each.numpy() for each in state["labels"]]


def collect(
    student: Student,
    env: Env,
    teacher: Teacher,
    demonstrations: Demonstrations,
    config: ImitationConfig,
    *,
    first: bool,
    seed: int,
    profiler: Profiler,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Drive from fresh episodes and add the labelled steps; the teacher drives if `first`.

    Clusters that share their arrivals would make identical decisions here: use groups of one.

    Raises:
        FairleadError: if a cost is not finite.
    """
    with profiler.phase("simulate"):
        observation, _ = env.reset(seed=seed)
    steps = config.teacher_steps if first else config.steps
    for t in range(steps):
        if first or t % config.label_every == 0:
            with profiler.phase("teacher"):
                labels = teacher.label(env)
            if not np.isfinite(labels).all():
                raise FairleadError(f"the teacher {teacher.name} gave a cost that is not finite at step {t}")
            demonstrations.add(observation, labels)
        if first:
            actions = labels if labels.ndim == 1 else labels.argmin(-1)
        else:
            with profiler.phase("forward"), torch.inference_mode():
                actions = student.logits(torch.from_numpy(observation)).argmax(-1).numpy()
        with profiler.phase("simulate"):
            observation, *_ = env.step(np.asarray(actions, np.int64))
        progress(t + 1, steps)


def loss(logits: Tensor, labels: Tensor, entropy_coefficient: float) -> Tensor:
    """Expected regret of costs or cross-entropy of actions, minus an entropy bonus."""
    log_probs = torch.log_softmax(logits, -1)
    if labels.ndim == 2:
        error = losses.expected_regret(log_probs, labels)
    else:
        error = losses.cross_entropy(log_probs, labels)
    return error - entropy_coefficient * losses.entropy(log_probs)


def fit(
    student: Student,
    optimiser: torch.optim.Optimizer,
    demonstrations: Demonstrations,
    config: ImitationConfig,
    round_: int,
    random: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Descend on all demonstrations; returns the mean loss of the last epoch.

    Raises:
        FairleadError: if the loss is not finite.
    """
    observations, labels = demonstrations.tensors()
    if labels.ndim == 2:
        labels = labels / labels.mean().clamp(min=1e-12)  # the loss then does not depend on the cost's unit
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for epoch in range(config.epochs):
        share = (round_ + epoch / config.epochs) / config.rounds
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate.at(share)
        total = 0.0
        for indices in minibatches(len(labels), config.minibatch, random):
            error = loss(student.logits(observations[indices]), labels[indices], config.entropy_coefficient)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(error)
            nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            optimiser.step()
            total += error.item() * len(indices)
        if not np.isfinite(total):
            raise FairleadError(f"imitation_loss is not finite in epoch {epoch + 1} of round {round_ + 1}")
        progress(epoch + 1, config.epochs)
    return total / len(labels)


SCORES = ("agreement", "mean_regret", "uniform_regret")


def score(student: Student, demonstrations: Demonstrations) -> dict[str, float]:
    """How well the student's first choices do by the teacher's labels.

    Returns:
        `agreement`: share of decisions whose choice is as good as the teacher's. `mean_regret`: what the
        choices cost above the best, in the teacher's unit, and `uniform_regret`: the same for a uniform
        choice (NaN for a teacher that only acts).
    """
    observations, labels = demonstrations.tensors()
    with torch.inference_mode():
        choices = student.logits(observations).argmax(-1)
    if labels.ndim == 1:
        numbers = (float((choices == labels).double().mean()), float("nan"), float("nan"))
    else:
        regret = labels.gather(1, choices[:, None]).double()
        numbers = (float((regret == 0).double().mean()), float(regret.mean()), float(labels.double().mean()))
    return dict(zip(SCORES, numbers, strict=True))
