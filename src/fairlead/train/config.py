"""Every setting of training, documented in place. Progress runs from 0 to 1 over the PPO iterations."""

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from fairlead.env.reward_config import RewardConfig, SafetyConfig, SojournReward
from fairlead.errors import FairleadError
from fairlead.section import Section, first_problem, invalid
from fairlead.train.curriculum import Load, Stage, check_stages
from fairlead.train.live_config import LiveConfig
from fairlead.train.ppo_config import PPOConfig
from fairlead.train.schedule import Exponential, PositiveSchedule
from fairlead.view.features import FEATURES

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class NetworkConfig(Section):
    """Architecture of the policy network (`fairlead.policy.network`)."""

    hidden: Annotated[int, Field(ge=2)] = 64
    """Width of the embeddings; the heads are half as wide. Twice the width is about four times the cost."""
    encoder_layers: Count = 2
    """Layers of the encoder that each replica goes through by itself."""
    projection: Annotated[int, Field(ge=0)] = 0
    """Width of a projection of the features (LayerNorm, linear, GELU) before the encoder; 0: none."""
    layer_norm: bool = True
    """Normalise the output of every encoder layer before its ReLU (Ba et al. 2016). Without it what a network
    makes of an overloaded cluster, whose features are many times what others show, drowns the rest: from
    scratch some seeds then never learn (docs/experiments.md)."""
    attention: Count = 16
    """Width of query, key and value in the attention across replicas, over all heads."""
    attention_layers: Annotated[int, Field(ge=0)] = 1
    """Layers of attention; 0: replicas do not see each other, except through features that compare them."""
    attention_heads: Count = 1
    """Heads per layer, a divisor of `attention`."""
    gru_layers: Annotated[int, Field(ge=0)] = 0
    """Layers of a GRU over successive decisions, after the attention; 0: the view alone decides."""
    critic: Literal["shared", "decoupled"] = "decoupled"
    """`decoupled`: a critic with an encoder of its own; `shared`: a value head on the actor's embeddings.
    The second is cheaper, but its value loss also moves what imitation has taught the embeddings."""
    critic_attention: bool = False
    """Whether a decoupled critic attends across replicas too."""
    critic_gru_layers: Annotated[int, Field(ge=0)] = 0
    """Layers of a GRU in a decoupled critic."""
    exclude: tuple[str, ...] = ()
    """Names of features that the network does not see (`fairlead.view.features`), for ablations."""

    @model_validator(mode="after")
    def _consistent(self) -> "NetworkConfig":
        if self.attention % self.attention_heads:
            raise invalid(
                f"attention {self.attention} is no multiple of attention_heads {self.attention_heads}"
            )
        if self.critic == "shared" and (self.critic_attention or self.critic_gru_layers):
            raise invalid("critic_attention and critic_gru_layers are for a decoupled critic")
        return self

    @property
    def recurrent(self) -> bool:
        """Whether anything is remembered from decision to decision."""
        return self.gru_layers + self.critic_gru_layers > 0


class ImitationConfig(Section):
    """DAgger (Ross et al. 2011, arXiv:1011.0686): the student drives, the teacher says what was best."""

    rounds: Count = 6
    """Rounds of driving and fitting. In the first the teacher drives, afterwards the student."""
    steps: Count = 512
    """Decisions per cluster and round when the student drives."""
    teacher_steps: Count = 512
    """Decisions per cluster in the first round; every one is labelled."""
    label_every: Count = 1
    """Ask the teacher at every n-th decision when the student drives: neighbours are alike, teachers slow.
    Not with a memory, which needs them all."""
    counterfactual_decisions: Count = 48
    """Of the teacher `counterfactual`: for how many decisions it goes on with the run to price a choice."""
    epochs: Count = 6
    """Passes over all demonstrations so far, per round."""
    evaluate_every: Count = 2
    """Rounds between held-out evaluations; there is one after the last round in any case."""
    minibatch: Count = 2048
    """Demonstrations per gradient step."""
    loss: Literal["regret", "cross_entropy"] = "regret"
    """`regret`: expected cost above the cheapest choice, for teachers that price every choice (lookahead);
    those that only act are imitated by cross-entropy in any case."""
    soft_labels: Annotated[float, Field(ge=0)] = 0.3
    """With the loss `regret`: weight of the cross-entropy to soft labels, softmax(-regret / temperature),
    beside the expected regret. That has no gradient left where the student is sure of a wrong choice; soft
    labels are off where a view's prices vary, as a softmax of one price is not that of the mean: for a policy
    that is good already and a teacher `counterfactual`, 0 is better."""
    soft_temperature: Positive = 0.3
    """Of the soft labels, as a share of the mean regret."""
    learning_rate: PositiveSchedule = Exponential(start=2e-3, end=3e-4)
    """Adam's step; progress runs over all rounds."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the entropy bonus: keeps near-ties undecided for PPO to settle."""
    max_gradient_norm: Positive = 1.0
    """Longer gradients are scaled down to this."""
    holdout_every: Annotated[int, Field(ge=2)] = 10
    """Every n-th labelled step is kept out of the fit; agreement and regret are measured on those."""
    weights: dict[str, Positive] = Field(default_factory=dict)
    """What the clusters of a scenario count for, 1 where nothing is said: more for one that is hard to learn.
    A decision's loss, the entropy bonus aside, counts for so many, among those of all sizes of cluster."""
    sequence_length: Count = 32
    """With a memory: decisions per training sequence, of which `steps` and `teacher_steps` are multiples."""


class EnvironmentConfig(Section):
    """The simulated clusters to learn on."""

    num_envs: Count = 128
    """Clusters side by side, a multiple of `group`; raised where there are more scenarios than groups."""
    group: Count = 8
    """Clusters that see the same arrivals, so that they differ by routing alone."""
    imitation_envs: Count = 32
    """Clusters for imitation, each with its own arrivals."""
    load: tuple[Load, Load] | None = None
    """Range of the load, as fractions of capacity, drawn anew for each group and episode; by default from the
    lowest of the scenario's own `loads` to 0.05 above the highest."""
    favor: tuple[float, float] = (0.0, 1.0)
    """Range of the dial (0 favors E2E, 1 TTFT): one policy learns all of it."""
    favor_power: Positive = 2.0
    """How PPO's clusters are spread over that range: favor is drawn as low + (high - low) * u^power, u from
    0 to 1. Above 1 fewer of them weigh mostly the tail, whose costs are rare and large, so that little is
    learnt from each (docs/experiments.md). Imitation, whose prices owe less to chance, draws it evenly."""
    reward: RewardConfig = SojournReward()
    """What is maximised: `sojourn`, or `hybrid` with its many settings."""
    safety: SafetyConfig = SafetyConfig()
    """Limits that are watched, counted and logged."""
    curriculum: tuple[Stage, ...] = ()
    """Stages of PPO with loads, scenarios and rewards of their own; none by default."""


class ValidationConfig(Section):
    """The held-out settings by which the best policy of a run is chosen."""

    loads: Annotated[tuple[Load, ...], Field(min_length=1)] | None = None
    """Fractions of capacity; by default those of each scenario."""
    favors: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Points on the dial; those outside the trained range are left out."""
    seeds: Count = 3
    """Held-out runs at each of them. One scenario by itself needs more: in a suite chance averages out."""
    requests: Annotated[int, Field(ge=100)] = 800
    """In each of these runs on up to 4 replicas. Where prefixes are cached, short runs judge cold caches."""


class StabilityConfig(Section):
    """Signs of unstable training: counted and logged at every iteration of PPO."""

    entropy_collapse: Positive = 0.001
    """Entropy below this share of the greatest possible."""
    kl_spike: Positive = 0.2
    """KL of one iteration above this, in nats."""
    stop: bool = False
    """Whether either ends the run with an error."""


class TrainConfig(Section):
    """One training run."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of initial weights, arrivals and samples."""
    threads: Count = 2
    """CPU threads for torch. The result is reproducible for a given number."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network learns. Simulation and acting stay on the CPU."""
    environment: EnvironmentConfig = EnvironmentConfig()
    network: NetworkConfig = NetworkConfig()
    ppo: PPOConfig = PPOConfig()
    imitation: ImitationConfig | None = ImitationConfig()
    """The warm start; none: PPO from scratch."""
    teacher: str | dict[str, Positive] = "lookahead"
    """The router to imitate: lookahead, a heuristic by name, a policy (`fairlead/generalist` or a file), or
    several with their shares; or counterfactual, which tries each choice in the very run. That takes many
    times as long as lookahead and teaches what it leaves out: for a policy that is good already."""
    teachers: dict[str, str] = Field(default_factory=dict)
    """Scenarios with a teacher of their own: a router, a policy, `lookahead:privileged`, or
    `lookahead:contained`, for KV caches that do not suffice."""
    privileged: bool = False
    """Whether lookahead sees the simulator's true state while it labels; the student never does."""
    start_from: str | None = None
    """A policy whose actor the run starts from: `fairlead/generalist`, or an exported one (.onnx). Then there
    is no imitation unless that or a teacher is set."""
    live: LiveConfig | None = None
    """Training on live servers instead of simulated ones; set by `--backend`."""
    validation: ValidationConfig = ValidationConfig()
    stability: StabilityConfig = StabilityConfig()
    minutes: Positive | None = None
    """Stop after this much time, after a round of imitation or an iteration; a run that is resumed has
    what is left of it. Default: when all iterations are done."""
    evaluate_every: Count = 5
    """Iterations between held-out evaluations."""
    keep: Literal["best", "last"] = "best"
    """Which policy a run leaves: the best by held-out evaluation, or the last one evaluated, where what is
    learnt is less than evaluations can tell apart."""
    checkpoint_every: Count = 1
    """Iterations between checkpoints; an interrupted run loses at most this many."""
    debug: bool = False
    """Also log histograms of weights, gradients' inputs and attention to TensorBoard."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainConfig":
        if self.live is not None:
            self._check_live()
        steers = self.ppo.reference_kl.range[1] > 0
        if steers and self.imitation is None and self.start_from is None:
            raise invalid("ppo.reference_kl needs a reference: imitation, or start_from, a trained policy")
        if self.ppo.cloning.range[1] > 0 and self.imitation is None:
            raise invalid("ppo.cloning needs demonstrations: imitation is switched off")
        if self.network.recurrent:
            self._check_recurrent(steers)
        check_stages(self.environment.curriculum, self.environment.load, self.environment.reward)
        return self

    def _check_live(self) -> None:
        if self.start_from is None:
            raise invalid("training on live servers goes on from a policy: give --start-from policy.onnx")
        if self.imitation is not None:
            raise invalid("there is nobody to imitate on live servers: imitation must be null")
        if self.environment.reward.kind != "sojourn":
            raise invalid("on live servers the reward is sojourn: leave out environment.reward")
        if self.environment.curriculum:
            raise invalid("on live servers there is no curriculum: leave out environment.curriculum")
        if self.ppo.reset_every != 1:
            raise invalid("on live servers each iteration is an episode: ppo.reset_every must be 1")

    def _check_recurrent(self, steers: bool) -> None:
        if steers or self.ppo.cloning.range[1] > 0:
            raise invalid("ppo.reference_kl and ppo.cloning do not work with a GRU")
        if self.ppo.balance_coefficient > 0:
            raise invalid("ppo.balance_coefficient does not work with a GRU")
        if self.ppo.rollout_steps % self.ppo.sequence_length:
            raise invalid(
                f"ppo.rollout_steps {self.ppo.rollout_steps} is no multiple of ppo.sequence_length "
                f"{self.ppo.sequence_length}"
            )
        if self.imitation is not None:
            if self.imitation.label_every > 1:
                raise invalid(
                    "imitation.label_every does not work with a GRU, which learns from whole sequences: "
                    "leave it out"
                )
            length = self.imitation.sequence_length
            if self.imitation.steps % length or self.imitation.teacher_steps % length:
                raise invalid(
                    f"imitation.steps and teacher_steps are no multiples of sequence_length {length}"
                )

    def network_options(self, features: tuple[str, ...] = FEATURES) -> dict[str, object]:
        """Arguments of `RouterNetwork` for these features.

        Raises:
            FairleadError: if `network.exclude` names something else.
        """
        options = self.network.model_dump(exclude={"exclude"})
        unknown = sorted(set(self.network.exclude) - set(features))
        if unknown:
            raise FairleadError(f"network.exclude: there is no feature {unknown[0]}; {', '.join(features)}")
        available = features.index("available") if "available" in features else None
        excluded = tuple(features.index(name) for name in self.network.exclude)
        head = self.ppo.balance_coefficient > 0
        return options | {"excluded": excluded, "available": available, "balance_head": head}

    @property
    def validation_favors(self) -> tuple[float, ...]:
        """The points on the dial that are both trained and validated."""
        low, high = self.environment.favor
        inside = tuple(f for f in self.validation.favors if low <= f <= high)
        return inside or (low,) if low == high else tuple(dict.fromkeys((low, *inside, high)))

    @property
    def hash(self) -> str:
        """Short hash of all settings; checkpoints carry it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


__all__ = [
    "EnvironmentConfig",
    "ImitationConfig",
    "NetworkConfig",
    "PPOConfig",
    "StabilityConfig",
    "TrainConfig",
    "ValidationConfig",
]


def checked(settings: dict[str, Any], where: str = "training settings") -> TrainConfig:
    """`settings` as training takes them.

    Raises:
        FairleadError: with the first thing that is wrong with them; `where` says what they are.
    """
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise first_problem(error, where) from None
