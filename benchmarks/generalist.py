"""Trains `fairlead/generalist`, the policy that ships with Fairlead, and installs it.

    python benchmarks/generalist.py --out runs/generalist

Scenarios and settings are those of src/fairlead/policies/generalist.yaml: its stages are trained one after
the other, each from where the one before ended, on the recipe's scenarios and those that the stage adds. A
stage with `kinds` is several trainings, each on scenarios of one kind alone, which then teach these
scenarios in the next stage without, as far as it has them (where several know a scenario, the last one
does); where `teacher`, `teachers` or `start_from` name a stage or a kind (`specialise/chat`), its policy is
meant. `taught_by` is `teachers` the other way round: who teaches, and which scenarios (the last one counts;
`teachers` goes before it). A stage with `mean_of` trains nothing: it is the mean of the stages that it names
(`policy/averaging.py`). What ships is the last stage's policy. It replaces generalist.onnx beside that file,
and how the training went replaces generalist.json. `--set` changes a setting of all stages for a trial,
`--scenarios` the scenarios; `--no-install` leaves the package alone. An interrupted run goes on with the
same command.
"""

import argparse
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba

from fairlead import FairleadError, __version__
from fairlead.cli.options import read_settings, scenario_list
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.averaging import average
from fairlead.policy.packaged import DIRECTORY
from fairlead.train.config import TrainConfig, checked
from fairlead.train.run import train
from fairlead.train.trainer import TrainResult

GENERALIST = DIRECTORY / "generalist.onnx"


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


class Training(NamedTuple):
    """One training of the recipe."""

    name: str
    """A stage, or `STAGE/KIND`; also its folder."""
    config: TrainConfig
    scenarios: list[str]


class Stage(NamedTuple):
    """A step of the recipe: trainings, or the mean of policies of stages before."""

    name: str
    trainings: list[Training]
    mean_of: list[str]


def settings(options: argparse.Namespace) -> list[Stage]:
    """What to train, stage by stage: one training, or one for each kind of scenarios.

    Raises:
        FairleadError: for settings that are unknown or contradict each other.
    """
    content = read_settings(options.config, [])
    unknown = sorted(set(content) - {"scenarios", "training", "stages"})
    if unknown:
        raise FairleadError(
            f"{options.config}: unknown key {unknown[0]!r}; known: scenarios, training, stages"
        )
    everything = options.scenarios.split(",") if options.scenarios else list(content["scenarios"])
    stages: list[Stage] = []
    policies: dict[str, str] = {}
    taught: dict[str, str] = {}
    before = None
    for stage, own in content["stages"].items():
        if "mean_of" in own:
            stages.append(Stage(stage, [], _parts(options, stage, own, policies)))
            policies[stage] = str(options.out / stage / "policy.onnx")
            before = stage
            continue
        shared = _over({"start_from": before, **content.get("training", {})}, own)
        kinds = shared.pop("kinds", None)
        more = _flat(shared.pop("scenarios", []))
        taught_by = shared.pop("taught_by", {})
        if kinds is not None and (more or taught_by):
            raise FairleadError(
                f"{options.config}, stage {stage}: its kinds name their scenarios and teachers, and it others"
            )
        if kinds is None:
            its = everything if options.scenarios else [*everything, *_besides(everything, more)]
            here = {scenario.name for scenario in scenario_list(its)} if taught else set()
            known = {name: training for name, training in taught.items() if name in here}
            assigned = {name: who for who, names in taught_by.items() for name in _flat(names)}
            if known or assigned:
                shared["teachers"] = {**known, **assigned, **shared.get("teachers", {})}
            trainings = {stage: (shared, its)}
            before, taught = stage, {}
        else:
            trainings = {f"{stage}/{kind}": _of_kind(shared, dict(its)) for kind, its in kinds.items()}
            taught |= {name: training for training, (_, names) in trainings.items() for name in names}
        its_own = [
            Training(name, _config(options, name, s, policies), its) for name, (s, its) in trainings.items()
        ]
        stages.append(Stage(stage, its_own, []))
        policies |= {name: str(options.out / name / "policy.onnx") for name in trainings}
    return stages


def _parts(
    options: argparse.Namespace, stage: str, own: dict[str, Any], policies: dict[str, str]
) -> list[str]:
    if set(own) != {"mean_of"}:
        raise FairleadError(f"{options.config}, stage {stage}: nothing stands beside mean_of")
    for name in own["mean_of"]:
        if name not in policies:
            raise FairleadError(f"{options.config}, stage {stage}: no stage before it is called {name!r}")
    return list(own["mean_of"])


def _besides(these: list[str], more: list[str]) -> list[str]:
    """`more` without what is there already, each once: lists that aliases repeat overlap."""
    there = {scenario.name for scenario in scenario_list(these)} if more else set()
    return [name for name in dict.fromkeys(more) if name not in there]


def _flat(names: list[Any]) -> list[str]:
    """A list of names in which lists may stand, as YAML's aliases put them there."""
    return [name for each in names for name in ([each] if isinstance(each, str) else _flat(each))]


def _over(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`shared` settings with `own` above them, section by section."""
    return {
        key: {**shared[key], **own[key]} if isinstance(shared.get(key), dict) and key in own else value
        for key, value in {**shared, **own}.items()
    }


def _of_kind(stage: dict[str, Any], kind: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A stage's settings with those of one of its kinds, and the kind's scenarios."""
    names = list(kind.pop("scenarios"))
    return _over(stage, kind), names


def _config(
    options: argparse.Namespace, name: str, content: dict[str, Any], policies: dict[str, str]
) -> TrainConfig:
    """Checked, with the files of the policies that it names."""
    named: dict[str, Any] = {
        key: policies.get(content[key], content[key]) for key in ("start_from", "teacher") if key in content
    }
    teachers = {scenario: policies.get(who, who) for scenario, who in content.get("teachers", {}).items()}
    given = read_settings(None, options.set, {**content, **named, "teachers": teachers})
    return checked(given, f"{options.config}, stage {name}")


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


def main() -> None:
    """Train, install."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/generalist"), help="folder of the run")
    parser.add_argument("--config", type=Path, default=GENERALIST.with_suffix(".yaml"))
    parser.add_argument("--scenarios", help="others than the file's, separated by commas")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a training setting")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, in a stage with kinds")
    parser.add_argument("--no-install", action="store_true", help="leave the packaged policy as it is")
    options = parser.parse_args()
    try:
        stages = settings(options)
        results: dict[str, TrainResult] = {}
        policy = options.out
        for each in stages:
            if each.mean_of:
                policy = mean(options.out, each)
            else:
                results |= run_stage(each.trainings, options)
                policy = list(results.values())[-1].policy
    except FairleadError as error:
        sys.exit(f"error: {error}")
    names = [training.scenarios for each in stages for training in each.trainings][-1]
    written = options.out / "generalist.json"
    written.write_text(json.dumps(record(results, names), indent=1) + "\n", encoding="utf-8")
    if not options.no_install:
        shutil.copy(policy, GENERALIST)
        shutil.copy(written, GENERALIST.with_suffix(".json"))
        say(f"installed {GENERALIST}")


def mean(out: Path, stage: Stage) -> Path:
    """The policy of a stage that is the mean of others."""
    policy = out / stage.name / "policy.onnx"
    policy.parent.mkdir(exist_ok=True)
    average([out / name / "policy.onnx" for name in stage.mean_of], policy)
    return policy


def run_stage(stage: list[Training], options: argparse.Namespace) -> dict[str, TrainResult]:
    """The trainings of a stage, `--jobs` at a time; each takes a core."""
    work = partial(run, options.out)
    if len(stage) == 1 or options.jobs == 1:
        found = [work(training) for training in stage]
    else:
        with ProcessPoolExecutor(
            options.jobs, get_context("spawn"), initializer=numba.set_num_threads, initargs=(1,)
        ) as pool:
            found = list(pool.map(work, stage))
    return {training.name: result for training, result in zip(stage, found, strict=True)}


def run(out: Path, training: Training) -> TrainResult:
    """One training; one that was interrupted goes on, one that was finished is only read.

    The policy of a kind is also put where `routing_quality.py --specialists OUT/STAGE` looks for it.
    """
    folder = out / training.name
    resume = (folder / "checkpoint.pt").is_file()
    scenarios = scenario_list([",".join(training.scenarios)])
    result = train(
        training.config,
        [] if resume else scenarios,
        folder,
        resume,
        say=lambda text: say(f"{training.name}: {text}"),
    )
    if folder.parent != out:
        for scenario in scenarios:
            shutil.copy(result.policy, folder.parent / f"{scenario.name}.onnx")
    return result


if __name__ == "__main__":
    main()
