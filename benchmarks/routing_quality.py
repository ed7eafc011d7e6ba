"""How good a learned router is, scenario by scenario, against every heuristic: writes docs/results.md.

    python benchmarks/routing_quality.py --out runs/quality --page docs/results.md
    python benchmarks/routing_quality.py --scenarios my-cluster.yaml,chat-unequal:64 --out runs/mine --json

Every router serves the same requests, which no training has seen. `NAME:64` is a scenario with 64 replicas.
Several policies are training seeds of one kind: intervals are over them then, otherwise over the evaluation
seeds. What was run once is kept in `--out`, router by router: an interrupted measurement goes on with the
same command, and a new policy costs its own runs only.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba

from fairlead import FairleadError, __version__
from fairlead.cli.options import load_list, scenario_list
from fairlead.evaluate.contest import Contest
from fairlead.evaluate.judgement import judge, summarise
from fairlead.evaluate.quality import Plan, check, measure
from fairlead.evaluate.quality_page import file_name, page, picture, summary_lines
from fairlead.evaluate.standings import standings
from fairlead.evaluate.tournament import simulate_once
from fairlead.policy.packaged import GENERALIST
from fairlead.simulator.capacity import capacity_rps
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload.scenario import Scenario

SCENARIOS = "suite/standard,chat-equal:32,chat-unequal:32,chat-unequal:64"
DIALS = "0,0.3,0.5,0.75,1"
SEEDS = 10
REQUESTS = 3000
FIRST_SEED = 100


def say(message: str) -> None:
    """Progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def contest_of(plan: Plan, out: Path, scenario: Scenario) -> Contest:
    """One scenario, in a process of its own perhaps."""
    folder = out / scenario.name.replace(":", "-")
    found = measure(plan, scenario, folder, lambda router: say(f"{scenario.name}: {router}"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frontier.svg").write_text(picture(found), encoding="utf-8")
    return found


def contests(plan: Plan, scenarios: list[Scenario], out: Path, jobs: int) -> dict[str, Contest]:
    """All of them, `jobs` at a time, the largest clusters first: they take longest."""
    for scenario in scenarios:
        capacity_rps(scenario)  # measured and kept, and compiled along the way
    work = partial(contest_of, plan, out)
    if jobs == 1:
        return {scenario.name: work(scenario) for scenario in scenarios}
    if plan.lookahead:
        simulate_once(scenarios[0], 0.5, "lookahead", 50, 0)  # compiled once, not by each process
    ordered = sorted(scenarios, key=lambda scenario: -scenario.num_replicas)
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=numba.set_num_threads, initargs=(1,)
    ) as pool:
        found = dict(zip([s.name for s in ordered], pool.map(work, ordered), strict=True))
    return {scenario.name: found[scenario.name] for scenario in scenarios}


def facts(options: argparse.Namespace, plan: Plan) -> list[str]:
    """How the page was made."""
    seeds = f"{len(plan.seeds)} evaluation seeds of {plan.requests} requests each (more in larger clusters)"
    asked = {
        "--scenarios": (options.scenarios, SCENARIOS),
        "--policies": (options.policies, GENERALIST),
        "--loads": (options.loads, None),
        "--dials": (options.dials, DIALS),
        "--seeds": (options.seeds, SEEDS),
        "--requests": (options.requests, REQUESTS),
        "--first-seed": (options.first_seed, FIRST_SEED),
    }
    given = "".join(f" {name} {value}" for name, (value, default) in asked.items() if value != default)
    given += " --no-lookahead" if options.no_lookahead else ""
    given += " --brief" if options.brief else ""
    given += f" --specialists {' '.join(map(str, options.specialists))}" if options.specialists else ""
    return [
        f"Made by `python benchmarks/routing_quality.py{given} --page {options.page}`; every number on this "
        "page comes from that run.",
        "",
        f"Fairlead {__version__}, {platform.machine()}. Policies: {', '.join(plan.policies)}. {seeds}, "
        "which no "
        f"training saw; settings of the dial: {', '.join(f'{d:g}' for d in plan.dials)} (default "
        f"{DEFAULT_FAVOR:g}).",
    ]


def write_page(path: Path, text: str, found: dict[str, Contest]) -> None:
    """The page and the pictures beside it."""
    pictures = path.parent / "frontiers"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, contest in found.items():
        (pictures / file_name(name)).write_text(picture(contest), encoding="utf-8")
    path.write_text(text, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenarios", default=SCENARIOS, help=f"names or files; default: {SCENARIOS}")
    parser.add_argument(
        "--policies",
        default=GENERALIST,
        help=f"names or files, or a folder of SCENARIO.onnx; default: {GENERALIST}",
    )
    parser.add_argument("--loads", help="fractions of capacity; default: each scenario's own")
    parser.add_argument("--dials", default=DIALS, help=f"default: {DIALS}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="evaluation seeds")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="in each run on up to 4 replicas")
    parser.add_argument(
        "--first-seed", type=int, default=FIRST_SEED, help="of the evaluation: others to choose by, say"
    )
    parser.add_argument("--no-lookahead", action="store_true", help="leave the slow reference out")
    parser.add_argument(
        "--specialists", type=Path, nargs="+", default=[], metavar="DIR", help="with SCENARIO.onnx files"
    )
    parser.add_argument("--jobs", type=int, default=2, help="scenarios at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--page", type=Path, help="write the results page here, with frontiers/ beside it")
    parser.add_argument(
        "--brief", action="store_true", help="a page without the tables behind its claims, for many scenarios"
    )
    parser.add_argument("--json", action="store_true", help="print quality.json")
    return parser.parse_args()


def main() -> None:
    """Measure, judge, write."""
    options = arguments()
    loads = load_list(options.loads)
    scenarios = scenario_list([options.scenarios])
    plan = check(
        Plan(
            policies=tuple(options.policies.split(",")),
            dials=tuple(float(each) for each in options.dials.split(",")),
            seeds=tuple(range(options.first_seed, options.first_seed + options.seeds)),
            requests=options.requests,
            lookahead=not options.no_lookahead,
            loads=None if loads is None else tuple(loads),
            specialists=tuple(options.specialists),
        ),
        scenarios,
    )
    found = contests(plan, scenarios, options.out, options.jobs)
    judgements = [judge(contest) for contest in found.values()]
    by_load = [judge(contest.at(load)) for contest in found.values() for load in contest.loads]
    summary = summarise(judgements)
    content = {
        "policies": plan.policies,
        "seeds": plan.seeds,
        "requests": plan.requests,
        "dials": plan.dials,
        "summary": summary.model_dump(),
        "summary_of_single_loads": summarise(by_load).model_dump(),
        "scenarios": [each.model_dump() for each in judgements],
        "single_loads": [each.model_dump() for each in by_load],
    }
    if len(found) > 1:
        content["standings"] = {
            router: {metric: each.model_dump() for metric, each in by_metric.items()}
            for router, by_metric in standings(list(found.values())).items()
        }
    text = json.dumps(content, indent=1)
    (options.out / "quality.json").write_text(text + "\n", encoding="utf-8")
    if options.page:
        about = {each.name: each.description for each in scenarios} if options.brief else None
        text_of_page = page(found, judgements, summary, facts(options, plan), about)
        write_page(options.page, text_of_page, {} if options.brief else found)
    if options.json:
        print(text)
    else:
        print("\n".join(summary_lines(summary)))


if __name__ == "__main__":
    try:
        main()
    except FairleadError as error:
        sys.exit(f"error: {error}")
