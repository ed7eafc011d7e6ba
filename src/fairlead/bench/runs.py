"""Training runs of a benchmark: each trained once, kept with what it took, and not trained again."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from fairlead.errors import FairleadError
from fairlead.train.config import TrainConfig
from fairlead.workload.scenario import Scenario


class Trained(BaseModel):
    """What a training run left and took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Path
    identity: str
    """Of settings and scenarios."""
    seconds: float
    decisions: int
    validation: float | None
    """The held-out objective of the policy that was kept: 1 is the best heuristic's."""
    iteration: int
    """After which that was."""
    ahead_after_s: float | None
    """When a held-out evaluation first found it ahead of the best heuristics on average; None: never."""
    said: list[str]


def train_once(
    config: TrainConfig,
    scenarios: Sequence[Scenario],
    folder: Path,
    name: str,
    say: Callable[[str], None] = lambda message: None,
) -> Trained:
    """The policy `name` in `folder`: trained now, or found there with the same settings and scenarios.

    Raises:
        FairleadError: as `train`, and if the folder has a policy of that name with other settings.
    """
    from fairlead.train.run import train

    identity = "-".join([config.hash, *(scenario.hash()[:8] for scenario in scenarios)])
    summary = folder / f"{name}.json"
    if summary.exists():
        found = Trained.model_validate_json(summary.read_text(encoding="utf-8"))
        if found.identity != identity:
            raise FairleadError(f"{folder} has another {name}, trained otherwise: choose another folder")
        return found
    say(f"training {name}")
    run = folder / "training" / name
    shutil.rmtree(run, ignore_errors=True)
    said: list[str] = []
    started = time.monotonic()
    result = train(config, scenarios, run, say=said.append)
    policy = folder / f"{name}.onnx"
    shutil.copy(result.policy, policy)
    ahead = [row["seconds"] for row in result.history if row["objective"] < 1.0]
    trained = Trained(
        policy=policy,
        identity=identity,
        seconds=time.monotonic() - started,
        decisions=result.decisions,
        validation=result.objective,
        iteration=result.iteration,
        ahead_after_s=ahead[0] if ahead else None,
        said=said,
    )
    summary.write_text(json.dumps(trained.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
    return trained
