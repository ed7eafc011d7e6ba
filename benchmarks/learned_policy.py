"""What each step of training is worth, over several training seeds: writes docs/learning.md.

    python benchmarks/learned_policy.py --out runs/learned --page docs/learning.md

For each training seed three policies are trained: the clone (imitation alone), with the warm start
(imitation, then PPO, as `make demo` does), and from scratch (PPO alone). They are compared with every
heuristic and with the teacher, lookahead, on the same unseen requests. `benchmarks/routing_quality.py`
judges one policy in detail.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np

from fairlead import FairleadError, __version__
from fairlead.bench.runs import Trained, train_once
from fairlead.cli.options import read_settings, scenario_list
from fairlead.evaluate.contest import OBJECTIVE, Contest, Difference, Values, differ
from fairlead.evaluate.quality import Plan, check, measure
from fairlead.evaluate.quality_page import shown
from fairlead.train.config import TrainConfig, checked
from fairlead.train.fine_tuning import IMITATION, from_scratch

DIALS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIRST_EVALUATION_SEED = 100
LABELS = {
    "clone": "imitation alone",
    "warm": "imitation, then PPO",
    "scratch": "PPO from scratch",
    "lookahead": "*lookahead*, the teacher",
}


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def configs(seed: int, settings: dict[str, Any]) -> dict[str, TrainConfig]:
    """The three trainings of one seed."""
    warm = checked({**settings, "seed": seed})
    nothing = warm.ppo.model_copy(update={"iterations": 0, "critic_warmup_iterations": 0})
    alone = {key: value for key, value in settings.items() if key not in IMITATION}
    return {
        "clone": warm.model_copy(update={"ppo": nothing}),
        "warm": warm,
        "scratch": checked(from_scratch({**alone, "seed": seed})),
    }


def gains(contest: Contest, runs: dict[float, list[Values]]) -> dict[float, Difference]:
    """By setting of the dial: what it weighs, against the heuristic that is best at that."""
    return {
        dial: differ(those, contest.heuristics[contest.best(OBJECTIVE, dial)], OBJECTIVE, dial)
        for dial, those in runs.items()
    }


def share(found: dict[float, Difference], reference: dict[float, Difference]) -> float | None:
    """How much of the reference's gain is kept, over the settings at which it gained half a percent."""
    dials = [dial for dial in reference if reference[dial].relative <= -0.005]
    if not dials:
        return None
    total = sum(np.log1p(reference[dial].relative) for dial in dials)
    return float(sum(np.log1p(found[dial].relative) for dial in dials) / total)


def compare(contests: dict[str, dict[str, Contest]]) -> dict[str, dict[str, dict[float, Difference]]]:
    """By scenario and kind of training: the gains over the best heuristic."""
    found: dict[str, dict[str, dict[float, Difference]]] = {}
    for scenario, by_kind in contests.items():
        warm = by_kind["warm"]
        found[scenario] = {kind: gains(c, dict(c.learned)) for kind, c in by_kind.items()}
        if warm.lookahead:
            found[scenario]["lookahead"] = gains(warm, {d: [v] for d, v in warm.lookahead.items()})
    return found


def page(
    found: dict[str, dict[str, dict[float, Difference]]],
    trained: dict[str, Trained],
    options: argparse.Namespace,
) -> str:
    """docs/learning.md."""
    lines = [
        "# What each step of training is worth",
        "",
        f"Made by `python benchmarks/learned_policy.py --scenarios {options.scenarios} "
        f"--seeds {options.seeds} --evaluation-seeds {options.evaluation_seeds} "
        f"--requests {options.requests} --page docs/learning.md`; every number comes from that run.",
        "",
        f"Fairlead {__version__}, {platform.machine()}, {os.cpu_count()} cores. {options.seeds} training "
        "seeds on "
        f"{options.scenarios}; {options.evaluation_seeds} evaluation seeds of {options.requests} requests, "
        "which no "
        "training saw.",
        "",
        "## Training",
        "",
        "*Ahead after*: when a held-out evaluation first found the policy ahead of each setting's best "
        "heuristic, on "
        "average. *Objective*: of the policy that was kept, on held-out requests; 1 is the best heuristic's.",
        "",
        "| run | decisions | time | ahead after | objective |",
        "|---|---|---|---|---|",
    ]
    for name, run in trained.items():
        ahead = "never" if run.ahead_after_s is None else f"{run.ahead_after_s:.0f} s"
        lines.append(
            f"| {name} | {run.decisions:,} | {run.seconds:.0f} s | {ahead} | {run.validation or np.nan:.4f} |"
        )
    lines += [
        "",
        "## On unseen requests",
        "",
        "What the dial weighs (mean E2E, mean TTFT and its tail) against the heuristic that is best at it, "
        "as geometric "
        "means of paired ratios over the loads: negative is better. In brackets the 95 % interval: over "
        "training "
        "seeds for policies, over evaluation seeds for lookahead; bold where it lies below 0. "
        "*Of lookahead's gain*: the share of lookahead's gain over the best heuristic, over the settings at "
        "which it gains half a percent.",
        "",
    ]
    for scenario, by_kind in found.items():
        dials = list(by_kind["warm"])
        lines += [
            f"### {scenario}",
            "",
            "| | " + " | ".join(f"favor {d:g}" for d in dials) + " | of lookahead's gain |",
            "|---|" + "---|" * (len(dials) + 1),
        ]
        for kind, cells in by_kind.items():
            kept = share(cells, by_kind["lookahead"]) if "lookahead" in by_kind else None
            text = "" if kept is None or kind == "lookahead" else f"{100 * kept:.0f} %"
            lines.append(f"| {LABELS[kind]} | " + " | ".join(shown(cells[d]) for d in dials) + f" | {text} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Train, evaluate, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/learned"), help="goes on where it stopped")
    parser.add_argument("--scenarios", default="chat-equal,chat-unequal")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--evaluation-seeds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all trainings")
    parser.add_argument("--page", type=Path, help="write the page here, for example docs/learning.md")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")
    options = parser.parse_args()
    scenarios = scenario_list([options.scenarios])
    settings = read_settings(None, options.set)
    policies = options.out / "policies"
    policies.mkdir(parents=True, exist_ok=True)
    trained = {
        f"{kind}-{seed}": train_once(config, scenarios, policies, f"{kind}-{seed}", say)
        for seed in range(options.seeds)
        for kind, config in configs(seed, settings).items()
    }
    contests: dict[str, dict[str, Contest]] = {scenario.name: {} for scenario in scenarios}
    for kind in ("clone", "warm", "scratch"):
        plan = check(
            Plan(
                policies=tuple(str(run.policy) for name, run in trained.items() if name.startswith(kind)),
                dials=DIALS,
                seeds=tuple(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + options.evaluation_seeds)),
                requests=options.requests,
            ),
            scenarios,
        )
        for scenario in scenarios:
            folder = options.out / "runs" / scenario.name.replace(":", "-")
            contests[scenario.name][kind] = measure(plan, scenario, folder)
    found = compare(contests)
    text = page(found, trained, options)
    if options.page:
        options.page.write_text(text, encoding="utf-8")
    content = {
        "training": {name: run.model_dump(mode="json") for name, run in trained.items()},
        "gains": {
            s: {kind: {d: c.model_dump() for d, c in cells.items()} for kind, cells in by_kind.items()}
            for s, by_kind in found.items()
        },
    }
    numbers = json.dumps(content, indent=1)
    (options.out / "learned.json").write_text(numbers + "\n", encoding="utf-8")
    print(numbers if options.json else text)


if __name__ == "__main__":
    try:
        main()
    except FairleadError as error:
        sys.exit(f"error: {error}")
