"""The headroom of the standard suite, as the page docs/scenarios.md.

    python benchmarks/suite.py --page docs/scenarios.md

Takes a few minutes; what was measured before by the same version is not measured again.
"""

import argparse
from pathlib import Path

from fairlead.cli.output import ProgressBar, say
from fairlead.evaluate.headroom import DIALS, REQUESTS, SEEDS, Headroom, Step, headroom_of_all
from fairlead.evaluate.phrasing import LABELS, number, percent
from fairlead.simulator.capacity import capacity_rps
from fairlead.workload.scenario import load_scenario
from fairlead.workload.suites import load_suite


def step(found: Step) -> str:
    """A relative difference with its interval, in percent."""
    text = f"{percent(found.relative)} % [{percent(found.ci_low)}, {percent(found.ci_high)}]"
    return f"**{text}**" if found.worthwhile else text


def rows(found: Headroom) -> list[str]:
    """One line of the table for each metric."""
    lines = []
    for m in found.metrics:
        cells = [
            f"{found.load:g}",
            f"{found.rate_rps:.3g}",
            LABELS[m.metric],
            number(m.metric, m.round_robin),
            f"{number(m.metric, m.heuristic.value)} {m.heuristic.router}",
            step(m.heuristic),
            f"{number(m.metric, m.lookahead.value)}",
            step(m.lookahead),
            step(m.true_lengths),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def page(name: str) -> str:
    """The whole page, measured or from the cache."""
    suite = load_suite(name)
    scenarios = [load_scenario(each) for each in suite.scenarios]
    with ProgressBar() as progress:
        found = headroom_of_all(scenarios, progress=progress)
    dials = ", ".join(f"{LABELS[metric]} {dial:g}" for metric, dial in DIALS.items())
    lines = [
        "# Scenarios and their headroom",
        "",
        "Made by `python benchmarks/suite.py --page docs/scenarios.md`; every number comes from that run. "
        "The same, with every interval as JSON:",
        "",
        "<!-- test: skip because it takes minutes -->",
        "```console",
        f"fairlead scenarios --suite {name}",
        f"fairlead scenarios --suite {name} --json",
        "```",
        "",
        f"`suite/{name}` stands for all of these scenarios wherever scenarios are named, for example in "
        f"`fairlead train --scenario suite/{name}`. {suite.description}",
        "",
        "**Headroom** is what routing can change at all. First the best heuristic against round robin, then "
        "`lookahead` against that heuristic; lookahead uses only what a router may know, so a learned router "
        "can reach it. It goes by the speeds that are declared and does not correct them by what is "
        "streamed, as views do for the heuristics: where speeds are not declared, or change, it is no bound. "
        "Last, lookahead that is told how long every answer will be: no router can reach that, "
        f"it says what better guesses of lengths would be worth. Lookahead's dial is set for each metric: "
        f"{dials}. Loads are fractions of the measured capacity. Times are in seconds, means over "
        f"{len(SEEDS)} seeds of {REQUESTS} requests; percentages are geometric means of the paired ratios, "
        "negative is better, with 95 % intervals over the seeds. Bold: at least 3 % better, and the interval "
        "excludes 0. The best heuristic is chosen on the same seeds, which flatters it a little.",
        "",
        "Training, validation and evaluation draw arrivals, lengths and everything else from random streams "
        "of their own (their names begin with `train`, `validate` or `evaluate`), so a suite needs no list "
        "of scenarios for training and another for testing: no request of an evaluation was trained on.",
        "",
    ]
    for scenario in scenarios:
        rate = capacity_rps(scenario)
        lines += [
            f"## {scenario.name}",
            "",
            suite.scenarios[scenario.name],
            "",
            f"{scenario.description} Capacity: {rate:.3g} requests/s.",
            "",
            "| load | requests/s | metric | round robin | best heuristic | against round robin | lookahead "
            "| against the best heuristic | lengths known (unreachable), against lookahead |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        here = [each for each in found if each.scenario == scenario.name]
        for each in here:
            lines += rows(each)
        lines.append("")
        lines += [f"Load {each.load:g} {each.in_words}.\n" for each in here if not each.places]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--page", type=Path, required=True, help="write the page here")
    arguments = parser.parse_args()
    arguments.page.write_text(page(arguments.suite), encoding="utf-8")
    say(f"wrote {arguments.page}")


if __name__ == "__main__":
    main()
