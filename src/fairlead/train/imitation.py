"""Warm start by DAgger (Ross et al. 2011): the student drives, the teacher says what it should have done.

A teacher that prices every choice teaches more than one that only names the best: the expected regret
sum_a pi(a) * (cost(a) - least cost) does not mind a near-tie and minds a blunder. It is linear in the prices,
so that those of many occasions average out, but flat where the student is sure: soft labels beside it pull it
out of there. Teachers that only act are imitated by cross-entropy; how far that can go is limited where their
actions are not a function of the view.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fairlead.errors import FairleadError
from fairlead.train import losses
from fairlead.train.batches import joint_minibatches
from fairlead.train.config import ImitationConfig
from fairlead.train.demonstrations import Demonstrations, Examples
from fairlead.train.device import learning_on
from fairlead.train.failure import NotFinite
from fairlead.train.profiler import Profiler
from fairlead.train.rollout import Env, has_memory
from fairlead.train.teachers import Teacher, achievable

ACHIEVABLE_EVERY = 32
"""Steps between measurements of the achievable agreement, which asks the teacher many times."""


def collect(
    student: Any,
    env: Env,
    teacher: Teacher,
    demonstrations: Demonstrations,
    config: ImitationConfig,
    *,
    first: bool,
    seed: int,
    profiler: Profiler,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> float:
    """Drive from fresh episodes and add the labelled steps; the teacher drives if `first`.

    Clusters that share their arrivals would make identical decisions here: use groups of one.

    Returns:
        The agreement with the teacher that a deterministic policy could have reached (see `achievable`).

    Raises:
        FairleadError: if a cost is not finite.
    """
    teacher.reset(seed)
    teacher.meet(student)
    with profiler.phase("simulate"):
        observation, _ = env.reset(seed=seed)
    steps = config.teacher_steps if first else config.steps
    recurrent = has_memory(student)
    state = student.initial_state(env.num_envs, observation.shape[1]) if recurrent else None
    starts = np.zeros(env.num_envs, np.bool_)
    reachable: list[float] = []
    before = len(demonstrations)
    for t in range(steps):
        if first or recurrent or t % config.label_every == 0:
            with profiler.phase("teacher"):
                labels = teacher.label(env)
                if t % ACHIEVABLE_EVERY == 0:
                    reachable.append(achievable(teacher, env))
            if not np.isfinite(labels).all():
                raise FairleadError(f"the teacher {teacher.name} gave a cost that is not finite at step {t}")
            begins = state.numpy().copy() if state is not None and t % config.sequence_length == 0 else None
            demonstrations.add(observation, labels, begins, starts)
        if state is not None:
            with profiler.phase("forward"), torch.inference_mode():
                logits, _, state = student.step(torch.from_numpy(observation), state)
        elif not first:
            with profiler.phase("forward"), torch.inference_mode():
                logits = student.logits(torch.from_numpy(observation))
        if first:
            actions = labels if labels.ndim == 1 else labels.argmin(-1)
        else:
            actions = logits.argmax(-1).numpy()
        with profiler.phase("simulate"):
            observation, _, terminated, truncated, _ = env.step(np.asarray(actions, np.int64))
        starts = np.logical_or(terminated, truncated)
        if state is not None and starts.any():
            state = state * torch.from_numpy(~starts)[:, None, None]
        progress(t + 1, steps)
    demonstrations.weigh_alike(before)
    if config.weights:
        demonstrations.weigh(before, weights_in(env, config))
    return float(np.mean(reachable))


def weights_in(env: Env, config: ImitationConfig) -> npt.NDArray[np.float64]:
    """What each cluster of `env` counts for, (K,)."""
    names: list[str] = env.scenario_names  # type: ignore[attr-defined]
    return np.array([config.weights.get(name, 1.0) for name in names])


def logits_of(student: Any, examples: Examples) -> Tensor:
    """(decisions, R); sequences are run from their stored states and flattened."""
    if examples.states is None:
        logits: Tensor = student.logits(examples.observations)
        return logits
    assert examples.starts is not None
    found: Tensor = student.sequence(examples.observations, examples.states, examples.starts)[0]
    return found.flatten(0, 1)


def loss(logits: Tensor, labels: Tensor, config: ImitationConfig, weights: Tensor | None = None) -> Tensor:
    """Expected regret and soft labels of costs, or cross-entropy of actions; minus an entropy bonus.

    `weights` (B,) say what each decision counts for, the bonus aside.
    """
    log_probs = torch.log_softmax(logits, -1)
    found = losses.imitation(log_probs, labels, weights) - config.entropy_coefficient * losses.entropy(
        log_probs
    )
    if labels.ndim == 1 or config.soft_labels == 0:
        return found
    soft = losses.soft_labels(log_probs, labels, config.soft_temperature, weights)
    return found + config.soft_labels * soft


def examples_of(
    demonstrations: Sequence[Demonstrations], config: ImitationConfig, *, recurrent: bool
) -> list[Examples]:
    """What is fitted, for each size of cluster; weights have a mean of one over all sizes together."""
    parts = [_examples_of(each, config, recurrent=recurrent) for each in demonstrations]
    given = [part.weights for part in parts if part.weights is not None]
    if not given:
        return parts
    mean = sum(float(each.double().sum()) for each in given) / sum(each.numel() for each in given)
    return [p if p.weights is None else p._replace(weights=p.weights / mean) for p in parts]


def _examples_of(demonstrations: Demonstrations, config: ImitationConfig, *, recurrent: bool) -> Examples:
    """Labels as the configured loss wants them, regrets with a mean of one."""
    examples = demonstrations.examples(
        length=config.sequence_length if recurrent else 1, actions=config.loss == "cross_entropy"
    )
    if examples.acted:
        return examples
    # The loss then does not depend on the cost's unit.
    return examples._replace(labels=examples.labels / examples.labels.mean().clamp(min=1e-12))


def fit(
    student: Any,
    optimiser: torch.optim.Optimizer,
    demonstrations: Sequence[Demonstrations],
    config: ImitationConfig,
    round_: int,
    random: np.random.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
    device: str = "cpu",
) -> float:
    """Descend on all demonstrations of all parts; returns the mean loss of the last epoch.

    Raises:
        NotFinite: if the loss is not finite.
    """
    recurrent = has_memory(student)
    parts = [each.to(device) for each in examples_of(demonstrations, config, recurrent=recurrent)]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    size = max(1, config.minibatch // (config.sequence_length if recurrent else 1))
    with learning_on(device, student, optimiser):
        return _descend(student, optimiser, parts, config, round_, random, progress, parameters, size)


def _descend(
    student: Any,
    optimiser: torch.optim.Optimizer,
    parts: list[Examples],
    config: ImitationConfig,
    round_: int,
    random: np.random.Generator,
    progress: Callable[[int, int], None],
    parameters: list[nn.Parameter],
    size: int,
) -> float:
    for epoch in range(config.epochs):
        share = (round_ + epoch / config.epochs) / config.rounds
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate.at(share)
        total, seen = 0.0, 0
        for indices in joint_minibatches([part.size for part in parts], size, random):
            chosen = [part.take(i) for part, i in zip(parts, indices, strict=True) if len(i)]
            count = sum(part.size for part in chosen)
            error = torch.stack(
                [
                    loss(logits_of(student, part), _flat(part), config, _flat_weights(part))
                    * (part.size / count)
                    for part in chosen
                ]
            ).sum()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(error)
            nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
            optimiser.step()
            total += error.item() * count
            seen += count
            if not np.isfinite(total):
                tensors = {f"part {p}: {f}": t for p, e in enumerate(chosen) for f, t in e._asdict().items()}
                raise NotFinite(
                    f"imitation_loss is not finite in epoch {epoch + 1} of round {round_ + 1}",
                    "imitation_loss",
                    tensors,
                )
        progress(epoch + 1, config.epochs)
    return total / seen


def _flat(examples: Examples) -> Tensor:
    return examples.labels if examples.states is None else examples.labels.flatten(0, 1)


def _flat_weights(examples: Examples) -> Tensor | None:
    return None if examples.weights is None else examples.weights.flatten()


SCORES = ("agreement", "mean_regret", "uniform_regret")


def score(
    student: Any, demonstrations: Sequence[Demonstrations], config: ImitationConfig
) -> dict[str, float]:
    """How well the student's first choices do by the teacher's labels.

    Returns:
        `agreement`: share of decisions whose choice is as good as the teacher's. `mean_regret`: what the
        choices cost above the best, in the teacher's unit, and `uniform_regret`: the same for a uniform
        choice (NaN for a teacher that only acts). Means over all decisions of all parts.
    """
    rows, sizes = [], []
    recurrent = has_memory(student)
    for part in demonstrations:
        if not len(part):
            continue
        examples = part.examples(length=config.sequence_length if recurrent else 1)
        with torch.inference_mode():
            choices = logits_of(student, examples).argmax(-1)
        labels = _flat(examples)
        if examples.acted:
            rows.append((float((choices == labels).double().mean()), float("nan"), float("nan")))
        else:
            regret = labels.gather(1, choices[:, None]).double()
            rows.append(
                (float((regret == 0).double().mean()), float(regret.mean()), float(labels.double().mean()))
            )
        sizes.append(part.decisions)
    if not rows:  # nothing was held out: the cells stay empty
        return dict.fromkeys(SCORES, float("nan"))
    numbers = rows[0] if len(rows) == 1 else np.average(rows, 0, sizes).tolist()
    return dict(zip(SCORES, numbers, strict=True))
