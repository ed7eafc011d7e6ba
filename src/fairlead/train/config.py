"""Every setting of training, documented in place. Progress runs from 0 to 1 over the PPO iterations."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field

from fairlead.section import Section
from fairlead.train.schedule import Constant, Exponential, Linear, Schedule

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class NetworkConfig(Section):
    """Size of the policy network."""

    hidden: Annotated[int, Field(ge=2)] = 64
    """Width of the embeddings; the heads are half as wide. Twice the width is about four times the cost."""
    attention: Count = 16
    """Width of query, key and value in the attention across replicas."""
    critic: Literal["shared", "decoupled"] = "decoupled"
    """`decoupled`: a critic with an encoder of its own; `shared`: a value head on the actor's embeddings.
    The second is cheaper, but its value loss also moves what imitation has taught the embeddings."""


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

    iterations: Annotated[int, Field(ge=0)] = 60
    """Rounds of rollout and update, after the critic's warm-up."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 4
    """Iterations at the start that fit the critic only: after imitation the actor is good, it is not."""
    rollout_steps: Count = 256
    """Decisions per cluster and iteration. More: less noise and less bias, fewer updates."""
    reset_every: Count = 4
    """Iterations between fresh starts from empty clusters with new arrivals. An episode should be much longer
    than the clusters take to fill."""
    horizon_s: Positive = 30.0
    """Seconds of simulated time after which a reward counts for 1/e: longer than a request lives."""
    gae_lambda: Share = 0.995
    """GAE's lambda per decision. Towards 1: less trust in the critic, more noise (which the group baseline
    takes away for the most part)."""
    epochs: Count = 2
    """Passes over each rollout."""
    minibatch: Count = 8192
    """Decisions per gradient step."""
    clip: Positive = 0.2
    """The probability ratio is clipped to [1 - clip, 1 + clip]."""
    value_clip: Positive | None = None
    """Limit on the change of a value per iteration; none by default."""
    value_coefficient: Positive = 0.5
    """Weight of the value loss."""
    entropy_coefficient: Schedule = Constant(value=0.0)
    """Weight of the entropy bonus. None is needed after imitation, which leaves near-ties undecided."""
    actor_learning_rate: Schedule = Linear(start=5e-4, end=5e-5)
    """Adam's step for whatever the decision depends on. Low, because imitation comes first."""
    critic_learning_rate: Schedule = Linear(start=2e-3, end=2e-4)
    """Adam's step for what only the value depends on."""
    max_gradient_norm: Positive = 0.5
    """Longer gradients are scaled down to this."""
    group_baseline: bool = True
    """Subtract the mean advantage of the clusters that see the same arrivals, step by step."""
    advantage_normalisation: Literal["batch", "group", "none"] = "group"
    """Divide advantages by their standard deviation over the whole rollout, over each group of clusters
    (light and heavy loads then weigh alike), or not at all."""
    kl_control: Literal["none", "penalty", "adaptive"] = "none"
    """`penalty` adds `kl_coefficient` x KL(old || new) to the loss; `adaptive` moves the coefficient towards
    `kl_target`. KL is measured in any case."""
    kl_coefficient: Positive = 0.2
    """The penalty's weight (with `adaptive`: at the start)."""
    kl_target: Positive = 0.01
    """KL per iteration that `adaptive` aims at, in nats."""
    early_stop_kl: Positive | None = None
    """End an iteration's update when a minibatch's KL exceeds this. Off by default."""
    temperature: Schedule = Constant(value=1.0)
    """Actions are sampled from softmax(logits / temperature); the update uses the same distribution."""
    epsilon: Schedule = Constant(value=0.0)
    """Share of actions chosen uniformly; part of the sampled distribution and of its log-probability."""

    @property
    def total_iterations(self) -> int:
        """Critic warm-up and PPO."""
        return self.critic_warmup_iterations + self.iterations


class ImitationConfig(Section):
    """DAgger (Ross et al. 2011, arXiv:1011.0686): the student drives, the teacher says what was best."""

    rounds: Count = 6
    """Rounds of driving and fitting. In the first the teacher drives, afterwards the student."""
    steps: Count = 512
    """Decisions per cluster and round when the student drives."""
    teacher_steps: Count = 512
    """Decisions per cluster in the first round; every one is labelled."""
    label_every: Count = 1
    """Ask the teacher at every n-th decision when the student drives: neighbours are alike, teachers slow."""
    epochs: Count = 6
    """Passes over all demonstrations so far, per round."""
    minibatch: Count = 2048
    """Demonstrations per gradient step."""
    learning_rate: Schedule = Exponential(start=2e-3, end=3e-4)
    """Adam's step; progress runs over all rounds."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the entropy bonus: keeps near-ties undecided for PPO to settle."""
    max_gradient_norm: Positive = 1.0
    """Longer gradients are scaled down to this."""
    holdout_every: Annotated[int, Field(ge=2)] = 10
    """Every n-th labelled step is kept out of the fit; agreement and regret are measured on those."""


class EnvironmentConfig(Section):
    """The simulated clusters to learn on."""

    num_envs: Count = 128
    """Clusters side by side, a multiple of `group`; raised where there are more scenarios than groups."""
    group: Count = 8
    """Clusters that see the same arrivals, so that they differ by routing alone."""
    imitation_envs: Count = 32
    """Clusters for imitation, each with its own arrivals."""
    load: tuple[float, float] = (0.5, 0.95)
    """Range of the load, as fractions of capacity, drawn anew for each group and episode."""
    favor: tuple[float, float] = (0.0, 1.0)
    """Range of the dial (0 favors E2E, 1 TTFT): one policy learns all of it."""


class ValidationConfig(Section):
    """The held-out settings by which the best policy of a run is chosen."""

    loads: tuple[float, ...] = (0.5, 0.7, 0.9)
    """Fractions of capacity."""
    favors: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points on the dial; those outside the trained range are left out."""


class TrainConfig(Section):
    """One training run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of initial weights, arrivals and samples."""
    threads: Count = 2
    """CPU threads for torch. The result is reproducible for a given number."""
    environment: EnvironmentConfig = EnvironmentConfig()
    network: NetworkConfig = NetworkConfig()
    ppo: PPOConfig = PPOConfig()
    imitation: ImitationConfig | None = ImitationConfig()
    """The warm start; none: PPO from scratch."""
    teacher: str = "lookahead"
    """The router to imitate: lookahead, or a heuristic by name."""
    validation: ValidationConfig = ValidationConfig()
    minutes: Positive | None = None
    """Stop after this much time; default: when all iterations are done."""
    evaluate_every: Count = 5
    """Iterations between held-out evaluations; the best weights are kept."""
    checkpoint_every: Count = 1
    """Iterations between checkpoints; an interrupted run loses at most this many."""

    @property
    def validation_favors(self) -> tuple[float, ...]:
        """The points on the dial that are both trained and validated."""
        low, high = self.environment.favor
        inside = tuple(f for f in self.validation.favors if low <= f <= high)
        return inside or (low,) if low == high else tuple(dict.fromkeys((low, *inside, high)))

    def from_scratch(self) -> "TrainConfig":
        """The same run without imitation: a larger step and more entropy, no critic warm-up."""
        ppo = self.ppo.model_copy(
            update={
                "critic_warmup_iterations": 0,
                "iterations": self.ppo.total_iterations,
                "actor_learning_rate": Linear(start=1e-3, end=5e-5),
                "entropy_coefficient": Linear(start=0.01, end=0.0),
            }
        )
        return self.model_copy(update={"imitation": None, "ppo": ppo})

    @property
    def hash(self) -> str:
        """Short hash of all settings; checkpoints carry it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
