"""Settings of PPO and its controllers, documented in place. Progress runs from 0 to 1 over the iterations."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fairlead.policy.heuristics import HEURISTICS
from fairlead.section import Section, did_you_mean, invalid
from fairlead.train.schedule import (
    Constant,
    Linear,
    PositiveSchedule,
    ShareSchedule,
    WeightSchedule,
)

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class StepAdaptation(Section):
    """Learning rates that follow the measured KL. The clip range is never touched."""

    low: Positive = 0.005
    """KL per iteration below which updates are too timid, in nats."""
    high: Positive = 0.15
    """KL per iteration above which they are too bold."""
    patience: Count = 3
    """Timid iterations in a row before the learning rates grow; bold ones act at once."""
    factor: Annotated[float, Field(gt=1)] = 1.5
    """By how much the learning rates grow or shrink."""
    most: Annotated[float, Field(ge=1)] = 10.0
    """The learning rates stay within their schedule times or divided by this."""

    @model_validator(mode="after")
    def _ordered(self) -> "StepAdaptation":
        if not self.low < self.high:
            raise invalid(f"low {self.low:g} must be below high {self.high:g}")
        return self


class Pulses(Section):
    """Short rises of the sampling temperature when learning stagnates."""

    interval: Count = 8
    """Least number of iterations from the start of one pulse to that of the next."""
    length: Count = 2
    """Iterations that a pulse lasts."""
    magnitude: Annotated[float, Field(gt=1)] = 2.0
    """The temperature is multiplied by this."""
    when: Literal["stagnation", "always"] = "stagnation"
    """`always` pulses at every interval, whatever the progress."""
    stagnation_threshold: Positive = 0.005
    """Relative improvement of the held-out objective that counts as progress."""
    stagnation_memory: Count = 5
    """Evaluations without progress before it counts as stagnation."""
    losing_to: str | None = None
    """Also pulse when the policy's objective has been worse than this heuristic's (e.g. `random`)."""
    losing_evaluations: Count = 3
    """For how many evaluations in a row."""

    @field_validator("losing_to")
    @classmethod
    def _known(cls, losing_to: str | None) -> str | None:
        if losing_to is not None and losing_to not in HEURISTICS:
            raise invalid(f"{losing_to!r} is no heuristic; {did_you_mean(losing_to, HEURISTICS)}")
        return losing_to

    @model_validator(mode="after")
    def _fits(self) -> "Pulses":
        if self.length >= self.interval:
            raise invalid(
                f"a pulse of {self.length} iterations is not shorter than the interval of {self.interval} "
                "between pulses"
            )
        return self


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347)."""

    iterations: Annotated[int, Field(ge=0)] = 60
    """Rounds of rollout and update, after the critic's warm-up."""
    critic_warmup_iterations: Annotated[int, Field(ge=0)] = 8
    """Iterations at the start that fit the critic only: after imitation the actor is good, it is not."""
    rollout_steps: Count = 256
    """Decisions per cluster and iteration. More: less noise and less bias, fewer updates."""
    reset_every: Count = 4
    """Iterations between fresh starts from empty clusters with new arrivals. An episode should be much longer
    than the clusters take to fill."""
    horizon_s: Positive = 30.0
    """Seconds of simulated time after which a reward counts for 1/e: longer than a request lives."""
    gae_lambda: Share = 0.99
    """GAE's lambda per decision. Towards 1: less trust in the critic, and more noise, as what the next
    1 / (1 - lambda) choices did counts as well."""
    normalise_rewards: bool = True
    """Divide rewards by the running standard deviation of discounted returns."""
    epochs: Count = 2
    """Passes over each rollout."""
    minibatch: Count = 8192
    """Decisions per gradient step."""
    clip: PositiveSchedule = Constant(value=0.2)
    """The probability ratio is clipped to [1 - clip, 1 + clip]."""
    value_clip: Positive | None = None
    """Limit on the change of a value per iteration; none by default."""
    value_coefficient: Positive = 0.1
    """Weight of the value loss."""
    compare_values: bool = True
    """Fit the critic to what tells the clusters of a group apart as closely as to what they share, and to
    each group as closely as to any other. Only what tells them apart is left in an advantage, and a plain
    squared error has little of it. Where a group is one cluster, the error is the plain one."""
    balance_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an auxiliary loss: a second head of the critic predicts the spread (standard deviation) of
    requests in flight over the replicas, averaged over the coming `horizon_s`. 0: there is no such head."""
    entropy_coefficient: WeightSchedule = Constant(value=0.0)
    """Weight of the entropy bonus. None is needed after imitation, which leaves near-ties undecided."""
    entropy_target: Share | None = None
    """Instead of a schedule: the weight follows this share of the greatest possible entropy, log(replicas),
    as in soft actor-critic. 0.65 is 1.3 bits for 4 replicas."""
    entropy_target_rate: Positive = 0.5
    """How fast: the logarithm of the weight moves by this times the entropy's shortfall, per iteration."""
    entropy_floor: Positive | None = None
    """Entropy in nats below which `entropy_floor_coefficient` x shortfall is added to the loss. Off by
    default: the policy may become as deterministic as the data says."""
    entropy_floor_coefficient: Positive = 0.1
    """Weight of the floor; its gradient pushes entropy up."""
    actor_learning_rate: PositiveSchedule = Linear(start=1e-3, end=1e-4)
    """Adam's step for whatever the decision depends on. Low, because imitation comes first."""
    critic_learning_rate: PositiveSchedule = Linear(start=1e-2, end=1e-3)
    """Adam's step for what only the value depends on: high, as PPO learns no faster than its critic."""
    step_adaptation: StepAdaptation | None = None
    """Let KL move the learning rates. Off by default."""
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
    reference_kl: WeightSchedule = Constant(value=0.0)
    """Weight of KL(policy || reference) in the loss. The reference is the policy at the start of PPO,
    frozen: the clone or `start_from`. Let it fall to 0: the policy is to become better than its teacher."""
    cloning: WeightSchedule = Constant(value=0.0)
    """Weight of the cloning loss, on demonstrations, mixed into PPO. Let it fall to 0."""
    cloning_minibatch: Count = 1024
    """Demonstrations per gradient step, where they are mixed in."""
    temperature: PositiveSchedule = Constant(value=1.0)
    """Actions are sampled from softmax(logits / temperature); the update uses the same distribution."""
    temperature_entropy_target: Share | None = None
    """The temperature moves until the sampled entropy is this share of log(replicas). Off by default."""
    temperature_rate: Positive = 0.1
    """How fast: the temperature's logarithm moves by this times the entropy's shortfall, per iteration."""
    temperature_range: tuple[Positive, Positive] = (0.5, 4.0)
    """Limits of the temperature under that controller."""
    pulses: Pulses | None = None
    """Temperature pulses. Off by default."""
    epsilon: ShareSchedule = Constant(value=0.0)
    """Share of actions chosen at random; part of the sampled distribution and of its log-probability."""
    exploration: Literal["uniform", "hierarchical"] = "uniform"
    """How `epsilon` chooses: among all replicas alike, or in two stages: first the half with fewer requests
    in flight or the rest, each with probability 1/2, then uniformly within."""
    sequence_length: Count = 32
    """With a memory: decisions per training sequence; each starts from the state stored at its first step."""
    burn_in: Annotated[int, Field(ge=0)] = 0
    """With a memory: decisions at the start of each sequence that only warm it up."""

    @model_validator(mode="after")
    def _consistent(self) -> "PPOConfig":
        if self.entropy_target is not None and self.entropy_coefficient.range[1] > 0:
            raise invalid("entropy_target and entropy_coefficient both set the weight of entropy: keep one")
        if self.exploration == "hierarchical" and self.epsilon.range[1] == 0:
            raise invalid(
                "exploration: hierarchical says how epsilon chooses, and epsilon is 0: set ppo.epsilon"
            )
        if self.temperature_range[0] > self.temperature_range[1]:
            raise invalid(f"temperature_range {list(self.temperature_range)} runs backwards")
        if self.compare_values and not self.group_baseline:
            raise invalid(
                "compare_values fits the critic to what group_baseline leaves of the advantages: without the "
                "baseline set ppo.compare_values=false too"
            )
        if self.burn_in >= self.sequence_length:
            raise invalid(
                f"burn_in {self.burn_in} leaves nothing of sequences of {self.sequence_length} decisions"
            )
        if self.kl_control == "adaptive" and self.early_stop_kl and self.early_stop_kl <= self.kl_target:
            raise invalid(f"early_stop_kl {self.early_stop_kl:g} stops before kl_target is reached")
        return self

    @property
    def total_iterations(self) -> int:
        """Critic warm-up and PPO."""
        return self.critic_warmup_iterations + self.iterations

    def progress(self, iteration: int) -> float:
        """Share of PPO that is done at iteration 0, 1, ...; 0 during the critic's warm-up."""
        done = max(0, iteration - self.critic_warmup_iterations)
        return min(1.0, done / max(1, self.iterations - 1))
