"""Fine-tunes a policy on each of many scenarios by itself, as `fairlead train --start-from` does.

    python benchmarks/fine_tuning.py --scenarios drawn~1000..1023 --out runs/fine-tuned
    python benchmarks/routing_quality.py --scenarios drawn~1000..1023 --policies runs/fine-tuned/policies ...

What it leaves in OUT/policies, a SCENARIO.onnx for each, is what `routing_quality.py --policies` and
`--specialists` take: the first measures the tuned policies, the second how much of what they gained the
policy that they started from has already. An interrupted run goes on with the same command.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from generalist import Training, run_stage, say

from fairlead import FairleadError
from fairlead.cli.options import read_settings, scenario_list
from fairlead.policy.packaged import GENERALIST
from fairlead.simulator.capacity import capacity_rps
from fairlead.train import fine_tuning
from fairlead.train.config import checked
from fairlead.workload.scenario import Scenario


def trainings(names: str, policy: str, assignments: list[str]) -> list[Training]:
    """One for each scenario, on one thread; its settings are those of `fairlead train`.

    Raises:
        FairleadError: for scenarios, settings or a policy that cannot be used.
    """
    settings: dict[str, Any] = {"threads": 1, **read_settings(None, assignments), "start_from": policy}
    config = checked(fine_tuning.with_defaults(fine_tuning.with_network(settings)))
    return [
        Training(f"policies/{found.name}", config, [text])
        for given in names.split(",")
        for text, found in _one_by_one(given)
    ]


def _one_by_one(text: str) -> list[tuple[str, Scenario]]:
    """What `text` stands for, each under a name that can be loaded: a suite or a range is many scenarios."""
    found = scenario_list([text])
    return [(text, found[0])] if len(found) == 1 else [(each.name, each) for each in found]


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
        work = trainings(options.scenarios, options.policy, options.set)
        for training in work:
            capacity_rps(scenario_list(training.scenarios)[0])  # measured once, not by each process
        for name, result in run_stage(work, options).items():
            say(f"{name}: {result.history[0]['objective']:.4f} before, {result.objective:.4f} in the end")
    except FairleadError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
