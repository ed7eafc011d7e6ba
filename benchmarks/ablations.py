"""What single settings of training are worth: each against the default, over paired training seeds.

    python benchmarks/ablations.py --out runs/ablations --page docs/ablations.md
    python benchmarks/ablations.py --only curriculum,"shared critic" --training-seeds 5

Everything but the setting is the same, seed by seed: arrivals, initial weights of what both have, requests of
the evaluation. What was trained or run once is kept in `--out`; an interrupted run goes on with the same
command. `--set` changes a setting of all of them, for example to train less.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from fairlead import FairleadError, __version__
from fairlead.bench.ablation import ABLATIONS, BASE, Effect, effect
from fairlead.bench.runs import Trained, train_once
from fairlead.cli.options import load_list, read_settings, scenario_list
from fairlead.evaluate.contest import Contest
from fairlead.evaluate.quality import Plan, check, measure
from fairlead.evaluate.quality_page import shown
from fairlead.train.config import TrainConfig, checked
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload.scenario import Scenario

FIRST_EVALUATION_SEED = 200
DIALS = (0.0, 0.25, 0.5, 0.75, 1.0)


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def config_of(variant: str, seed: int, common: list[str]) -> TrainConfig:
    """The settings of one run.

    Raises:
        FairleadError: if `--set` and the variant contradict each other.
    """
    changes = ABLATIONS[variant] if variant != BASE else {}
    own = [f"{key}={json.dumps(value)}" for key, value in changes.items()]
    return checked(read_settings(None, [*common, *own, f"seed={seed}"]), f"the settings of {variant}")


def train_all(
    variants: list[str], scenarios: list[Scenario], options: argparse.Namespace
) -> dict[str, list[Trained]]:
    """The policies of each variant, one for each training seed."""
    configs = {v: [config_of(v, s, options.set) for s in range(options.training_seeds)] for v in variants}
    folder = options.out / "policies"
    folder.mkdir(parents=True, exist_ok=True)
    return {
        variant: [
            train_once(config, scenarios, folder, f"{file_name(variant)}-{seed}", say)
            for seed, config in enumerate(those)
        ]
        for variant, those in configs.items()
    }


def file_name(variant: str) -> str:
    """Without blanks and signs."""
    return "".join(c if c.isalnum() else "_" for c in variant)


def called() -> str:
    """The command that makes the page."""
    return shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]])


def page(effects: list[Effect], options: argparse.Namespace) -> str:
    """docs/ablations.md."""
    lines = [
        "# What single settings are worth",
        "",
        f"Made by `{called()}`; every number on this page comes from that run.",
        "",
        f"Fairlead {__version__}, {platform.machine()}. {options.training_seeds} training seeds; "
        f"{options.seeds} evaluation seeds of {options.requests} requests, which no training saw; scenarios: "
        f"{options.scenarios}. Settings of all runs: {', '.join(options.set) or 'the defaults'}.",
        "",
        "Each row is the default training with one setting changed, against the default: geometric means of "
        "ratios, "
        "negative is better, with 95 % intervals over the pairs of training seeds; bold where the interval "
        "lies below 0. *Objective*: what the dial weighs, over all its settings; the others at favor "
        f"{DEFAULT_FAVOR:g}.",
        "",
        "| changed | objective | mean E2E | p99 TTFT |",
        "|---|---|---|---|",
    ]
    for each in effects:
        cells = [each.variant, shown(each.objective), shown(each.e2e), shown(each.ttft_p99)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What was changed, by setting:", ""]
    for each in effects:
        changes = ", ".join(f"`{k}: {json.dumps(v)}`" for k, v in ABLATIONS[each.variant].items())
        lines.append(f"- {each.variant}: {changes}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, evaluate, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"variants, separated by commas; default: {', '.join(ABLATIONS)}")
    parser.add_argument("--scenarios", default="chat-equal,chat-unequal")
    parser.add_argument("--loads", help="of the evaluation; default: each scenario's own")
    parser.add_argument("--training-seeds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10, help="evaluation seeds")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--page", type=Path, help="write the table here, for example docs/ablations.md")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    options = parser.parse_args()
    variants = options.only.split(",") if options.only else list(ABLATIONS)
    unknown = [each for each in variants if each not in ABLATIONS]
    if unknown:
        raise FairleadError(f"there is no variant {unknown[0]!r}; known: {', '.join(ABLATIONS)}")
    if options.training_seeds < 2:
        raise FairleadError("intervals are over training seeds: --training-seeds 2 or more")
    scenarios = scenario_list([options.scenarios])
    trained = train_all([BASE, *variants], scenarios, options)
    loads = load_list(options.loads)

    def contests(variant: str) -> list[Contest]:
        plan = check(
            Plan(
                policies=tuple(str(each.policy) for each in trained[variant]),
                dials=DIALS,
                seeds=tuple(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + options.seeds)),
                requests=options.requests,
                lookahead=False,
                loads=None if loads is None else tuple(loads),
            ),
            scenarios,
        )
        return [measure(plan, s, options.out / "runs" / s.name.replace(":", "-")) for s in scenarios]

    base = contests(BASE)
    effects = [effect(each, list(zip(contests(each), base, strict=True))) for each in variants]
    content = {
        "effects": [each.model_dump() for each in effects],
        "training": {v: [each.model_dump(mode="json") for each in runs] for v, runs in trained.items()},
    }
    text = json.dumps(content, indent=1)
    (options.out / "ablations.json").write_text(text + "\n", encoding="utf-8")
    table = page(effects, options)
    if options.page:
        options.page.write_text(table, encoding="utf-8")
    print(text if options.json else table)


if __name__ == "__main__":
    try:
        main()
    except FairleadError as error:
        sys.exit(f"error: {error}")
