"""Trains `fairlead/generalist`, the policy that ships with Fairlead, and installs it.

    python benchmarks/generalist.py --out runs/generalist

Scenarios and settings are those of src/fairlead/policies/generalist.yaml: its stages are trained on all its
scenarios one after the other, each from where the one before ended. What ships is the last stage's policy. It
replaces generalist.onnx beside that file, and how the training went replaces generalist.json. `--set` changes
a setting of all stages for a trial, `--scenarios` the scenarios; `--no-install` leaves the package alone. An
interrupted run goes on with the same command.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fairlead import FairleadError, __version__
from fairlead.cli.options import read_settings, scenario_list
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.packaged import DIRECTORY
from fairlead.train.config import TrainConfig, checked
from fairlead.train.run import train
from fairlead.train.trainer import TrainResult

GENERALIST = DIRECTORY / "generalist.onnx"


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def recipe(options: argparse.Namespace) -> tuple[list[str], dict[str, TrainConfig]]:
    """The scenarios, and what is trained on them, stage by stage.

    Raises:
        FairleadError: for settings that are unknown or contradict each other.
    """
    content = read_settings(options.config, [])
    unknown = sorted(set(content) - {"scenarios", "training", "stages"})
    if unknown:
        raise FairleadError(
            f"{options.config}: unknown key {unknown[0]!r}; known: scenarios, training, stages"
        )
    named = [options.scenarios] if options.scenarios else content["scenarios"]
    scenarios = [name for text in named for name in text.split(",")]
    stages: dict[str, TrainConfig] = {}
    before = None
    for name, own in content["stages"].items():
        settings = over({"start_from": before, **content.get("training", {})}, own)
        stages[name] = checked(read_settings(None, options.set, settings), f"{options.config}, stage {name}")
        before = str(options.out / name / "policy.onnx")
    return scenarios, stages


def over(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`shared` settings with `own` above them, section by section."""
    return {
        key: {**shared[key], **own[key]} if isinstance(shared.get(key), dict) and key in own else value
        for key, value in {**shared, **own}.items()
    }


def record(results: dict[str, TrainResult], scenarios: list[str]) -> dict[str, Any]:
    """How the training went: what the JSON file beside the policy says."""
    last = list(results.values())[-1]
    return {
        "fairlead_version": __version__,
        "schema_hash": OnnxRouter(last.policy).metadata.schema_hash,
        "scenarios": scenarios,
        "objective": last.objective,
        "seconds": round(sum(result.seconds for result in results.values()), 1),
        "stages": {name: stage(result) for name, result in results.items()},
    }


def stage(result: TrainResult) -> dict[str, Any]:
    """What one training was and found."""
    return {
        "objective": result.objective,
        "chosen_after_iteration": result.iteration,
        "decisions": result.decisions,
        "seconds": round(result.seconds, 1),
        "seconds_by_phase": {phase: round(s, 1) for phase, s in result.seconds_by_phase.items()},
        "history": result.history,
        "config": OnnxRouter(result.policy).metadata.config,
    }


def run(config: TrainConfig, scenarios: list[str], out: Path) -> TrainResult:
    """One stage; one that was interrupted goes on, one that was finished is only read."""
    resume = (out / "checkpoint.pt").is_file()
    chosen = [] if resume else scenario_list([",".join(scenarios)])
    return train(config, chosen, out, resume, say=lambda text: say(f"{out.name}: {text}"))


def main() -> None:
    """Train, install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/generalist"), help="folder of the run")
    parser.add_argument("--config", type=Path, default=GENERALIST.with_suffix(".yaml"))
    parser.add_argument("--scenarios", help="others than the file's, separated by commas")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a training setting")
    parser.add_argument("--no-install", action="store_true", help="leave the packaged policy as it is")
    options = parser.parse_args()
    try:
        scenarios, stages = recipe(options)
        results = {name: run(config, scenarios, options.out / name) for name, config in stages.items()}
    except FairleadError as error:
        sys.exit(f"error: {error}")
    written = options.out / "generalist.json"
    written.write_text(json.dumps(record(results, scenarios), indent=1) + "\n", encoding="utf-8")
    if not options.no_install:
        shutil.copy(list(results.values())[-1].policy, GENERALIST)
        shutil.copy(written, GENERALIST.with_suffix(".json"))
        say(f"installed {GENERALIST}")


if __name__ == "__main__":
    main()
