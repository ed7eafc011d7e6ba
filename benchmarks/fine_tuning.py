"""Fine-tunes a policy on each of many scenarios by itself, as `fairlead train --start-from` does.

    python benchmarks/fine_tuning.py --scenarios drawn~1000..1023 --out runs/fine-tuned
    python benchmarks/routing_quality.py --scenarios drawn~1000..1023 --policies runs/fine-tuned/policies ...

What it leaves in OUT/policies, a SCENARIO.onnx for each, is what `routing_quality.py --policies` and
`--specialists` take: the first measures the tuned policies, the second how much of what they gained the
policy that they started from has already. An interrupted run goes on with the same command.
"""

import argparse
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numba
from generalist import run, say

from fairlead import FairleadError
from fairlead.cli.options import read_settings, scenario_list
from fairlead.policy.packaged import GENERALIST
from fairlead.simulator.capacity import capacity_rps
from fairlead.train import fine_tuning
from fairlead.train.config import TrainConfig, checked
from fairlead.train.trainer import TrainResult
from fairlead.workload.scenario import Scenario


def settings(policy: str, assignments: list[str]) -> TrainConfig:
    """Those of `fairlead train`, on one thread.

    Raises:
        FairleadError: for settings or a policy that cannot be used.
    """
    given: dict[str, Any] = {"threads": 1, **read_settings(None, assignments), "start_from": policy}
    return checked(fine_tuning.with_defaults(fine_tuning.with_network(given)))


def tune(config: TrainConfig, out: Path, named: tuple[str, str]) -> TrainResult:
    """One training, on the scenario of this text and name; its policy is put where others look for it."""
    text, name = named
    result = run(config, [text], out / name)
    shutil.copy(result.policy, out / f"{name}.onnx")
    return result


def one_by_one(names: str) -> list[tuple[str, Scenario]]:
    """Each scenario with a text that it can be loaded by: a suite or a range stands for many.

    Raises:
        FairleadError: for an unknown one.
    """
    found: list[tuple[str, Scenario]] = []
    for text in names.split(","):
        its = scenario_list([text])
        found += [(text, its[0])] if len(its) == 1 else [(each.name, each) for each in its]
    return found


def main() -> None:
    """Train them all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--scenarios", default="suite/standard", help="names or files; default: suite/standard"
    )
    parser.add_argument("--policy", default=GENERALIST, help=f"what to start from; default: {GENERALIST}")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a training setting")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on a core")
    parser.add_argument("--out", type=Path, default=Path("runs/fine-tuned"))
    options = parser.parse_args()
    try:
        config = settings(options.policy, options.set)
        scenarios = one_by_one(options.scenarios)
        for _, scenario in scenarios:
            capacity_rps(scenario)  # measured once, not by each process
        named = [(text, scenario.name) for text, scenario in scenarios]
        work = partial(tune, config, options.out / "policies")
        if options.jobs == 1:
            found = [work(each) for each in named]
        else:
            with ProcessPoolExecutor(
                options.jobs, get_context("spawn"), initializer=numba.set_num_threads, initargs=(1,)
            ) as pool:
                found = list(pool.map(work, named))
        for (_, name), result in zip(named, found, strict=True):
            say(f"{name}: {result.history[0]['objective']:.4f} before, {result.objective:.4f} in the end")
    except FairleadError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
