"""Settings of the rewards, documented in place."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fairlead.policy.heuristics import HEURISTICS
from fairlead.section import Section, did_you_mean, invalid

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class SojournReward(Section):
    """Minus the weighted waiting between two decisions (`fairlead.env.rewards`)."""

    kind: Literal["sojourn"] = "sojourn"


class LatencyPenalty(Section):
    """What a request costs when it completes, as a function of r = latency / threshold."""

    shape: Literal["linear", "logistic", "piecewise"] = "linear"
    """`linear`: scale x r. `logistic`: scale / (1 + exp(-steepness (r - centre))). `piecewise`: scale x r up
    to the threshold, beyond it scale x (1 + excess_slope (r - 1)): it goes on telling bad from terrible."""
    scale: Weight = 0.5
    """Height of the penalty; 0 switches it off."""
    steepness: Positive = 2.0
    """Of the logistic curve, per threshold of latency; smaller is shallower."""
    centre: Positive = 1.3
    """Of the logistic curve, in thresholds: its middle, beyond the objective rather than at it."""
    excess_slope: Positive = 2.0
    """Slope of the piecewise penalty beyond the threshold."""
    cap: Positive | None = None
    """Largest penalty of one request; none by default, since a cap hides how bad it was."""


class HybridReward(Section):
    """A weighted sum of components, each logged raw and scaled with its share of the variance."""

    kind: Literal["hybrid"] = "hybrid"
    """Chooses this reward."""
    sojourn_weight: Weight = 0.05
    """Of the `sojourn` reward (request-seconds, weighed by the dial): latency comes first."""
    latency: Literal["e2e", "ttft"] = "e2e"
    """Which latency the absolute score, the penalty and the low-latency bonus are about."""
    latency_threshold_s: Positive = 6.0
    """The objective for it, in seconds."""
    latency_penalty: LatencyPenalty = LatencyPenalty()
    absolute_weight: Weight = 0.8
    """Of the absolute score: throughput_weight x min(throughput / target, throughput_cap) - latency_weight x
    (recent latency / threshold)."""
    delta_weight: Weight = 0.2
    """Of the delta score: the absolute score above its own moving average."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Weight of the newest score in that moving average, per decision."""
    throughput_weight: Weight = 0.5
    """Of throughput in the absolute score."""
    latency_weight: Weight = 0.5
    """Of latency in the absolute score."""
    throughput_target: Positive | Literal["offered"] = "offered"
    """Requests per second, or `offered`: the rate at which requests have arrived recently."""
    throughput_cap: Positive = 1.0
    """Most that throughput / target counts for."""
    throughput_loss_cap: Share = 1.0
    """Most that a dip in throughput below its target may cost, as a share of the target."""
    window_s: Positive = 10.0
    """Time constant of what `recent` means above, in seconds."""
    served_weight: Weight = 0.0
    """Reward for each completed request."""
    imbalance_weight: Weight = 0.1
    """Of the spread of requests in flight over the replicas, at each decision."""
    imbalance: Literal["std", "range"] = "std"
    """How the spread is measured: standard deviation, or most - least. Divided by the number of replicas +
    the mean in flight, so that no single component explodes in an almost empty cluster."""
    low_latency_bonus: Weight = 0.0
    """Reward for each completion below `low_latency_margin` x threshold, growing to its full size at 0."""
    low_latency_margin: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Where the low-latency bonus begins, as a share of the threshold."""
    p99_bonus: Weight = 0.0
    """Reward for each window of `tail_window` completions whose P99 is below `p99_margin` x threshold."""
    p99_margin: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Where the P99 bonus begins, as a share of the threshold."""
    p95_improvement_weight: Weight = 0.0
    """Of the relative fall of P95 from one window of `tail_window` completions to the next."""
    tail_window: Annotated[int, Field(ge=10)] = 100
    """Completions per cluster over which the tails above are taken."""
    baseline_weight: Weight = 0.0
    """Of the weighted request-seconds saved relative to the baseline, in the time between two decisions."""
    baseline: str = "lor"
    """A heuristic that serves the same arrivals in a shadow cluster of its own, or `moving_average`: the
    cluster's own past."""
    goodput_weight: Weight = 0.0
    """Reward for each completion that met both service-level objectives of its scenario."""
    queue_variance_weight: Weight = 0.0
    """Of minus the variance of requests in flight over the replicas, as a potential (Ng et al. 1999): shaping
    that leaves the best policy what it is."""
    waiting_weight: Weight = 0.0
    """Of minus the number of requests without a first token, as a potential."""
    potential_horizon_s: Positive = 30.0
    """Discount horizon of the potentials; that of PPO, for the theorem to hold."""
    least_busy_bonus: Weight = 0.0
    """Reward for choosing a replica with the fewest requests in flight. It prescribes a rule: take care."""
    scale_factor: Positive = 1.0
    """All of the above times this (PPO divides by the running deviation of returns in any case)."""
    clip: tuple[float, float] | None = None
    """Least and greatest total per decision; they need not be symmetric. None by default. The share of
    decisions at either end is logged."""

    @field_validator("baseline")
    @classmethod
    def _known(cls, baseline: str) -> str:
        if baseline not in (*HEURISTICS, "moving_average"):
            raise invalid(
                f"{baseline!r} is no heuristic; {did_you_mean(baseline, [*HEURISTICS, 'moving_average'])}"
            )
        return baseline

    @model_validator(mode="after")
    def _consistent(self) -> "HybridReward":
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise invalid(f"clip {list(self.clip)} runs backwards: give the least reward first")
        return self


RewardConfig = Annotated[SojournReward | HybridReward, Field(discriminator="kind")]
"""Which reward, and its settings."""


class SafetyConfig(Section):
    """Limits that are watched in every run; each crossing is counted and logged."""

    latency_cutoff: Positive = 2.0
    """A TTFT, or a wait for it so far, beyond this many times the scenario's objective is a failure."""
    scheduling_delay_p99_s: Positive = 5.0
    """Limit on the P99, over the latest completions, of the time to the first token beyond the prompt's own
    prefill."""
    starvation_s: Positive = 30.0
    """Longest wait for a first token, as long as others that came later have been served."""
    queue_growth: Positive = 1.25
    """Requests in the system may grow by this factor from one window of decisions to the next, but not in
    three windows in a row."""
    window: Annotated[int, Field(ge=10)] = 128
    """Decisions in such a window, and completions in the P99."""
    end_episode: bool = False
    """Whether a crossing ends the episode, as a terminal state: of all clusters, which run in lock-step."""
    penalty: Weight = 0.0
    """Taken off the reward of a cluster at a decision at which a limit was crossed."""
