"""What steers PPO from iteration to iteration: schedules, and controllers that follow measurements."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from fairlead.train.ppo_config import PPOConfig, Pulses

LARGEST_LOG_WEIGHT = math.log(10.0)
LEAST_LOG_WEIGHT = math.log(1e-5)


class Knobs(NamedTuple):
    """The settings of one iteration, as they are after schedules and controllers."""

    actor_learning_rate: float
    critic_learning_rate: float
    entropy_coefficient: float
    kl_coefficient: float
    temperature: float
    epsilon: float
    train_actor: bool
    """False while the critic warms up."""
    clip: float = 0.2
    reference_kl: float = 0.0
    cloning: float = 0.0
    temperature_is_pulsing: bool = False
    explore_by: int | None = None
    """Index of the feature that tells quiet replicas from crowded ones in exploration; None: it is
    uniform."""


@dataclass
class Controllers:
    """All that the controllers remember; plain numbers, for the checkpoint."""

    kl_coefficient: float
    log_entropy_coefficient: float = math.log(0.01)
    log_temperature: float = 0.0
    step_factor: float = 1.0
    timid: int = 0
    """Iterations in a row with too little KL."""
    pulse_left: int = 0
    since_pulse: int = 0
    best: float = math.inf
    """Best held-out objective that counted as progress."""
    without_progress: int = 0
    """Evaluations since."""
    losing: int = 0
    """Evaluations in a row that a baseline won."""
    stagnations: int = field(default=0)
    """How often stagnation was found."""

    def knobs(self, config: PPOConfig, iteration: int) -> Knobs:
        """The settings of iteration 0, 1, ..."""
        progress = config.progress(iteration)
        temperature = config.temperature.at(progress)
        if config.temperature_entropy_target is not None:
            low, high = config.temperature_range
            temperature = min(max(temperature * math.exp(self.log_temperature), low), high)
        if self.pulse_left > 0 and config.pulses is not None:
            temperature *= config.pulses.magnitude
        weight = config.entropy_coefficient.at(progress)
        if config.entropy_target is not None:
            weight = math.exp(self.log_entropy_coefficient)
        return Knobs(
            actor_learning_rate=config.actor_learning_rate.at(progress) * self.step_factor,
            critic_learning_rate=config.critic_learning_rate.at(progress) * self.step_factor,
            entropy_coefficient=weight,
            kl_coefficient=self.kl_coefficient,
            temperature=temperature,
            epsilon=config.epsilon.at(progress),
            train_actor=iteration >= config.critic_warmup_iterations,
            clip=config.clip.at(progress),
            reference_kl=config.reference_kl.at(progress),
            cloning=config.cloning.at(progress),
            temperature_is_pulsing=self.pulse_left > 0,
        )

    def after_update(self, config: PPOConfig, kl: float, entropy_share: float) -> None:
        """Follow what an iteration measured: KL in nats, entropy as a share of the greatest possible."""
        self.kl_coefficient = next_kl_coefficient(self.kl_coefficient, kl, config)
        if config.entropy_target is not None:
            self.log_entropy_coefficient += config.entropy_target_rate * (
                config.entropy_target - entropy_share
            )
            self.log_entropy_coefficient = min(
                max(self.log_entropy_coefficient, LEAST_LOG_WEIGHT), LARGEST_LOG_WEIGHT
            )
        if config.temperature_entropy_target is not None:
            shortfall = config.temperature_entropy_target - entropy_share
            low, high = (math.log(bound) for bound in config.temperature_range)
            self.log_temperature = min(
                max(self.log_temperature + config.temperature_rate * shortfall, low - high), high - low
            )
        self._adapt_step(config, kl)
        self._pulse(config.pulses)

    def _adapt_step(self, config: PPOConfig, kl: float) -> None:
        adaptation = config.step_adaptation
        if adaptation is None:
            return
        self.timid = self.timid + 1 if kl < adaptation.low else 0
        if kl > adaptation.high:
            self.step_factor /= adaptation.factor
        elif self.timid >= adaptation.patience:
            self.step_factor *= adaptation.factor
            self.timid = 0
        self.step_factor = min(max(self.step_factor, 1 / adaptation.most), adaptation.most)

    def _pulse(self, pulses: Pulses | None) -> None:
        """One iteration has passed: a pulse may end or begin."""
        if pulses is None:
            return
        self.pulse_left = max(0, self.pulse_left - 1)
        self.since_pulse += 1
        stuck = self.without_progress >= pulses.stagnation_memory
        losing = pulses.losing_to is not None and self.losing >= pulses.losing_evaluations
        if self.since_pulse >= pulses.interval and (pulses.when == "always" or stuck or losing):
            self.pulse_left, self.since_pulse = pulses.length, 0
            self.stagnations += stuck
            self.without_progress = self.losing = 0

    def after_evaluation(self, pulses: Pulses | None, objective: float, against: dict[str, float]) -> None:
        """Follow a held-out objective (lower is better), and its ratio to that of each heuristic."""
        pulses = pulses or Pulses()
        if objective < self.best - pulses.stagnation_threshold * abs(self.best) or math.isinf(self.best):
            self.best, self.without_progress = objective, 0
        else:
            self.without_progress += 1
        if pulses.losing_to is not None:
            self.losing = self.losing + 1 if against.get(pulses.losing_to, 0.0) > 1.0 else 0

    def state(self) -> dict[str, Any]:
        """Everything, for a checkpoint."""
        return asdict(self)

    @staticmethod
    def load(state: dict[str, Any]) -> "Controllers":
        """What `state` was made from."""
        return Controllers(**{each.name: state[each.name] for each in fields(Controllers)})


def next_kl_coefficient(coefficient: float, kl: float, config: PPOConfig) -> float:
    """The penalty's weight for the next iteration (section 4 of the PPO paper, with `adaptive`)."""
    if config.kl_control != "adaptive":
        return coefficient
    if kl > 1.5 * config.kl_target:
        return min(2 * coefficient, 100.0)
    return max(coefficient / 2, 1e-4) if kl < config.kl_target / 1.5 else coefficient
