"""What stays as it is while a run trains: its settings, its directory, who evaluates and who hears of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fairlead.errors import FairleadError
from fairlead.policy.export import export_onnx
from fairlead.policy.network import NetworkRouter
from fairlead.train import checkpoint
from fairlead.train.config import TrainConfig
from fairlead.train.rollout import Env
from fairlead.train.state import Best, TrainState, contents
from fairlead.train.threads import ACTING, torch_threads
from fairlead.train.tracking import Progress


class Judgement(NamedTuple):
    """What a held-out evaluation found."""

    objective: float
    """Lower is better."""
    against: Mapping[str, float] = {}
    """The policy's objective divided by that of each heuristic."""


Evaluate = Callable[[NetworkRouter], float | Judgement]
"""Held-out evaluation of a router."""
MakeEnvs = Callable[[], Env | Sequence[Env]]
"""One vector environment, or one for each size of cluster."""
OnProgress = Callable[[Progress], None]


@dataclass
class Run:
    """What stays as it is while a run trains, and what becomes of the policy in between."""

    config: TrainConfig
    directory: Path
    evaluate: Evaluate | None
    on_progress: OnProgress
    features: tuple[str, ...]
    extra_files: Mapping[str, str]
    heuristics: tuple[str, ...]

    def save(self, state: TrainState) -> None:
        """Write the checkpoint."""
        with state.profiler.phase("checkpoint"):
            checkpoint.save(self.directory / "checkpoint.pt", contents(state, self.features), self.config)

    def out_of_time(self, state: TrainState) -> bool:
        """Whether `minutes` are over, those of earlier sessions included."""
        return self.config.minutes is not None and state.seconds > 60 * self.config.minutes

    def judge(self, state: TrainState) -> Judgement:
        """Evaluate the network as it is and keep it if that is wanted; NaN without an evaluation."""
        if self.evaluate is None:
            return Judgement(float("nan"))
        self.on_progress(Progress("evaluation", state.iteration, self.config.ppo.total_iterations, {}))
        with state.profiler.phase("evaluate"), torch_threads(ACTING):
            found = self.evaluate(NetworkRouter(state.network))
        judgement = found if isinstance(found, Judgement) else Judgement(float(found))
        objective = float(judgement.objective)
        if objective != objective:
            raise FairleadError(f"the evaluation after iteration {state.iteration} gave NaN")
        state.history.append(
            {
                "iteration": state.iteration,
                "decisions": state.decisions,
                "seconds": state.seconds,
                "objective": objective,
            }
        )
        if self.config.keep == "last" or state.best is None or objective < state.best.objective:
            weights = {name: tensor.clone() for name, tensor in state.network.state_dict().items()}
            state.best = Best(objective, state.iteration, weights)
            self.export(state)
        state.controllers.after_evaluation(self.config.ppo.pulses, objective, dict(judgement.against))
        return judgement

    def export(self, state: TrainState) -> Path:
        """Write the network as it is to `policy.onnx`."""
        path = self.directory / "policy.onnx"
        training = {
            "seed": self.config.seed,
            "iteration": state.iteration,
            "decisions": state.decisions,
            "objective": state.best.objective if state.best else None,
        }
        config = self.config.model_dump(mode="json")
        export_onnx(state.network, path, config=config, training=training, features=self.features)
        return path
