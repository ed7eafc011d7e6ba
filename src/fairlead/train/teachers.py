"""Who is imitated: routers that label the decisions at hand, alone or in a mixture."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fairlead import rng
from fairlead.env.vector import dear_where_away
from fairlead.errors import FairleadError
from fairlead.policy import bulkhead
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.heuristics import HEURISTICS, Heuristic
from fairlead.policy.packaged import is_packaged, policy_path
from fairlead.train.counterfactual import Counterfactual
from fairlead.view.features import features_batch
from fairlead.view.schema import AVAILABLE, View

UNTEACHABLE = ("random", "round_robin", "p2c")
"""Their choices do not follow from what a router sees."""

COUNTERFACTUAL = "counterfactual"
"""The teacher that goes on with the very run for each choice."""
DECISIONS = 48
"""For so many decisions, by default."""

Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]


class Label(Protocol):
    """What a teacher says about the decisions at hand."""

    def __call__(self, env: Any, here: Mask | None = None) -> Labels:
        """Costs of all choices (K, R), lower is better; or chosen replicas (K,) integers.

        Only the rows that are `here` (K,) count, by default all: a slow teacher leaves the others out.
        """
        ...


class Teacher(NamedTuple):
    """Labels the decisions at hand in an environment."""

    name: str
    label: Label
    reset: Callable[[int], None] = lambda seed: None
    """Begin anew with a seed, so that a round of imitation can be repeated exactly."""
    undecided: Callable[[Any], Mask | None] = lambda env: None
    """The clusters (K,) in which it may label the same decision differently, so that perfect agreement cannot
    be reached; None: in no cluster."""
    meet: Callable[[Any], None] = lambda student: None
    """Told whom it teaches, before each round."""


def lookahead(*, privileged: bool = False, contained: bool = False) -> Teacher:
    """The teacher that simulates each choice: costs of `env.teacher_costs`.

    A `privileged` one sees the simulator's true state while labelling; the student sees only its view. A
    `contained` one keeps what fits into no KV cache behind the bulkhead (`policy.bulkhead`): lookahead takes
    what is cheapest for the requests at hand, and does not see that those to come will fell the cluster.
    """

    def label(env: Any, here: Mask | None = None) -> Labels:
        costs: Labels = env.teacher_costs(privileged=True) if privileged else env.teacher_costs()
        if contained:
            view = env.clusters.view
            costs = bulkhead.contained(costs, view.replicas, view.request)
        return costs

    name = "contained lookahead" if contained else "lookahead"
    return Teacher(f"privileged {name}" if privileged else name, label)


def counterfactual(decisions: int = DECISIONS) -> Teacher:
    """The teacher that goes on with the run for each choice: costs of `train.counterfactual`.

    It knows the future: the same decision has other prices in another run, and only their mean can be learnt.
    """
    prices = Counterfactual(decisions)

    def label(env: Any, here: Mask | None = None) -> Labels:
        return prices(env, everywhere(env) if here is None else here)

    return Teacher(COUNTERFACTUAL, label, prices.reset, meet=prices.meet)


def heuristic(name: str) -> Teacher:
    """A heuristic as a teacher, ties broken at random."""
    router = Heuristic(name)
    clusters = [0, 0]

    def reset(seed: int) -> None:
        clusters[:] = [0, seed]

    def label(env: Any, here: Mask | None = None) -> Labels:
        if clusters[0] != env.num_envs:
            clusters[0] = env.num_envs
            router.reset(env.num_envs, env.clusters.R, clusters[1])
        return router.route(env.clusters.view)

    return Teacher(name, label, reset, everywhere)


def policy(name: str) -> Teacher:
    """A trained policy as a teacher: costs are how far each choice's logit is below the highest.

    What it has learnt from noisy prices it hands on without their noise, and in a moment (policy
    distillation, Rusu et al. 2016, arXiv:1511.06295). It decides at the dial of each cluster.

    Raises:
        FairleadError: for a file that is no policy of this schema, and for one with a memory.
    """
    router = OnnxRouter(policy_path(name), name=name)
    if router.has_memory:
        raise FairleadError(f"{name} cannot be imitated: it has a memory, which belongs to its own runs")

    def label(env: Any, here: Mask | None = None) -> Labels:
        its = everywhere(env) if here is None else here
        view = env.clusters.view
        logits = router.logits(features_batch(View(view.replicas[its], view.request[its]), env.favor[its]))
        away = view.replicas[its][..., AVAILABLE] == 0.0
        costs: Labels = np.zeros((env.num_envs, env.clusters.R))
        costs[its] = dear_where_away(np.where(away, np.inf, logits.max(-1, keepdims=True) - logits))
        return costs

    return Teacher(name, label)


def everywhere(env: Any) -> Mask:
    """All clusters of an environment."""
    return np.ones(env.num_envs, np.bool_)


def mixture(parts: Mapping[Teacher, float]) -> Teacher:
    """For each cluster and decision one of the teachers, drawn with these shares; it labels by its choice."""
    teachers, shares = list(parts), np.array(list(parts.values()))
    bounds = np.cumsum(shares / shares.sum())
    drawing = [np.random.default_rng(0)]

    def reset(seed: int) -> None:
        drawing[0] = rng.stream(seed, "train", "teachers")
        for teacher in teachers:
            teacher.reset(seed)

    def meet(student: Any) -> None:
        for teacher in teachers:
            teacher.meet(student)

    def label(env: Any, here: Mask | None = None) -> Labels:
        choices = np.stack([choice(teacher.label(env, here)) for teacher in teachers])
        who = np.searchsorted(bounds, drawing[0].random(choices.shape[1]), side="right")
        chosen: Labels = choices[np.minimum(who, len(teachers) - 1), np.arange(choices.shape[1])]
        return chosen

    named = " + ".join(
        f"{share:.0%} {teacher.name}" for teacher, share in zip(teachers, shares / shares.sum(), strict=True)
    )
    return Teacher(named, label, reset, everywhere, meet)


def by_scenario(default: Teacher, others: Mapping[str, Teacher]) -> Teacher:
    """Costs by `default`, except in clusters of the scenarios that have a teacher of their own.

    A teacher that only acts gives costs too: nothing for its choice, 1 for any other. Clusters are weighed
    alike in the end (`Demonstrations.weigh_alike`), so units need not agree.
    """

    def reset(seed: int) -> None:
        for teacher in (default, *others.values()):
            teacher.reset(seed)

    def meet(student: Any) -> None:
        for teacher in (default, *others.values()):
            teacher.meet(student)

    def shares(env: Any) -> list[tuple[Teacher, Mask]]:
        who = [others.get(name, default) for name in env.scenario_names]
        return [(teacher, np.array([each is teacher for each in who])) for teacher in dict.fromkeys(who)]

    def undecided(env: Any) -> Mask:
        found = np.zeros(env.num_envs, np.bool_)
        for teacher, its in shares(env):
            theirs = teacher.undecided(env)
            found |= False if theirs is None else its & theirs
        return found

    def label(env: Any, here: Mask | None = None) -> Labels:
        costs: Labels = np.zeros((env.num_envs, env.clusters.R))
        for teacher, its in shares(env):
            asked = its if here is None else its & here
            if asked.any():
                costs[asked] = _costs(teacher.label(env, asked), env.clusters.R)[asked]
        return costs

    named = ", ".join(f"{teacher.name} in {name}" for name, teacher in others.items())
    return Teacher(f"{default.name}, {named}", label, reset, undecided, meet)


def _costs(labels: Labels, replicas: int) -> Labels:
    return labels if labels.ndim == 2 else 1.0 - np.eye(replicas)[labels]


def choice(labels: Labels) -> Labels:
    """The teacher's choice (K,): of costs the cheapest."""
    best: Labels = labels if labels.ndim == 1 else labels.argmin(-1)
    return best


def make_teacher(
    who: str | Mapping[str, float],
    *,
    privileged: bool = False,
    elsewhere: Mapping[str, str] | None = None,
    decisions: int = DECISIONS,
) -> Teacher:
    """The teacher called `who`: lookahead, a heuristic whose choices follow from the view, or a mixture.

    Or a policy, `fairlead/generalist` or a file, or `counterfactual`, whose runs go on for so many
    `decisions`. `elsewhere` names other teachers by scenario; `lookahead:privileged` is one of them, and
    `lookahead:contained`.

    Raises:
        FairleadError: for an unknown router or file, one that cannot be imitated, and for privilege that a
            teacher cannot use.
    """
    if elsewhere:
        known = {name: _single(name, False, decisions) for name in elsewhere.values()}
        others = {scenario: known[name] for scenario, name in elsewhere.items()}
        return by_scenario(make_teacher(who, privileged=privileged, decisions=decisions), others)
    if not isinstance(who, str):
        if len(who) == 1:
            return make_teacher(next(iter(who)), privileged=privileged, decisions=decisions)
        parts = {_single(name, privileged and name == "lookahead", decisions): s for name, s in who.items()}
        return mixture(parts)
    return _single(who, privileged, decisions)


def _single(name: str, privileged: bool, decisions: int) -> Teacher:
    kind, _, way = name.partition(":")
    if kind == "lookahead" and way in ("", "privileged", "contained"):
        return lookahead(privileged=privileged or way == "privileged", contained=way == "contained")
    if privileged:
        raise FairleadError(f"{name} cannot be privileged: only lookahead can")
    if name == COUNTERFACTUAL:
        return counterfactual(decisions)
    if is_packaged(name) or name.endswith(".onnx"):
        return policy(name)
    if name in UNTEACHABLE:
        raise FairleadError(
            f"{name} cannot be imitated: its choices do not follow from what a router sees; "
            "take another teacher, for example lookahead or least_work"
        )
    if name not in HEURISTICS:
        known = [each for each in ("lookahead", COUNTERFACTUAL, *HEURISTICS) if each not in UNTEACHABLE]
        raise FairleadError(
            f"unknown router {name!r}: known teachers are {', '.join(known)}, and policy files (.onnx)"
        )
    return heuristic(name)


def achievable(teacher: Teacher, env: Any, repeats: int = 16) -> float:
    """The agreement that a deterministic policy could reach at the decisions at hand.

    Mean over clusters of the share of the most frequent of `repeats` labels; 1 for a teacher that always says
    the same.
    """
    here = teacher.undecided(env)
    if here is None or not here.any():
        return 1.0
    labels = np.stack([choice(teacher.label(env, here)) for _ in range(repeats)])
    most = [np.bincount(labels[:, c]).max() / repeats if here[c] else 1.0 for c in range(labels.shape[1])]
    return float(np.mean(most))
