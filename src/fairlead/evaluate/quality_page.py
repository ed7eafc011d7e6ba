"""The results page: contests and their judgements as Markdown, a summary first."""

from collections.abc import Mapping, Sequence

import numpy as np

from fairlead.evaluate import figures
from fairlead.evaluate.contest import FRONTIER, METRICS, OBJECTIVE, Contest, Difference, Values, differ
from fairlead.evaluate.judgement import UNEQUAL_GOAL, Judgement, Summary
from fairlead.evaluate.phrasing import LABELS, MINUS, number
from fairlead.evaluate.standings import Standing, standings
from fairlead.view.preference import DEFAULT_FAVOR


def percent(value: float) -> str:
    """`+1.2`, with a true minus sign."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def shown(found: Difference) -> str:
    """`-1.2 % [-2.0, -0.4]`, bold where it is better for sure."""
    text = f"{percent(found.relative)} % [{percent(found.ci_low)}, {percent(found.ci_high)}]"
    return f"**{text}**" if found.better else text


def _of(count: int, total: int) -> str:
    return f"{count} of {total}"


def summary_lines(summary: Summary) -> list[str]:
    """The claims, each with its count."""
    s = summary
    lines = [
        f"- **Frontier**: in {_of(s.dominated, s.scenarios)} scenarios some setting of the dial is no worse "
        f"than each heuristic on mean E2E and on p99 TTFT (by the estimates alone: {s.dominated_strictly}).",
        f"- **One setting**: at favor {s.default_dial:g}, the default, the policy is better than each "
        f"heuristic on one of the two and worse on none in {_of(s.default_holds, s.scenarios)} scenarios "
        f"(by the estimates alone: {s.default_holds_strictly}). The setting for which most scenarios say so "
        "is "
        f"{s.best_dial:g}: {s.best_dial_holds}.",
    ]
    if s.unequal:
        lines.append(
            f"- **Unequal hardware**: in {_of(s.unequal_reached, s.unequal)} scenarios some setting takes "
            f"{100 * UNEQUAL_GOAL:.0f} % or more off the best heuristic's mean E2E, at no higher mean TTFT."
        )
    if s.specialists:
        share = "nothing to keep" if s.share_kept is None else f"{100 * s.share_kept:.0f} % of the gain"
        lines.append(
            f"- **Specialists**, trained for the scenario or its kind alone, in {s.specialists} of them: the "
            f"policy keeps {share} over the best heuristic, on what the dial weighs."
        )
    if s.large:
        lines.append(
            f"- **Large clusters**: better than `lor` on what the dial weighs in "
            f"{_of(s.large_beat_lor, s.large)}."
        )
    if s.with_headroom:
        lines.append(
            f"- **Against `lookahead`** at the same settings, on what the dial weighs: ahead in "
            f"{_of(s.ahead_of_lookahead, s.with_headroom)} scenarios with headroom."
        )
    return lines


def verdict(judgement: Judgement) -> str:
    """One scenario in a few words."""
    unmatched = [each.heuristic for each in judgement.matched if not each.dials]
    frontier = f"not matched: {', '.join(unmatched)}" if unmatched else "dominates"
    if not unmatched and not judgement.dominates_strictly:
        frontier = "dominates, within noise"
    fails = len(judgement.setting(DEFAULT_FAVOR).fails_against)
    return f"{frontier}; default " + (
        f"fails against {_of(fails, len(judgement.matched))}" if fails else "holds"
    )


def across(contests: Sequence[Contest]) -> list[str]:
    """Every router over all scenarios, which says what is lost by not knowing which heuristic is best."""

    def cells(standing: Standing) -> str:
        interval = f"[{percent(standing.ci_low)}, {percent(standing.ci_high)}]"
        worst = f"{percent(standing.worst)} % ({standing.worst_in})"
        return f"{percent(standing.mean)} % {interval} | {worst}"

    lines = [
        "Over all scenarios, against the best heuristic of each one (geometric mean and its 95 % interval "
        "over the scenarios, and the scenario where the router stands worst):",
        "",
        "| router | " + " | ".join(f"{LABELS[metric]} | worst" for metric in FRONTIER) + " |",
        "|---|" + "---|---|" * len(FRONTIER),
    ]
    for router, found in standings(contests).items():
        name = f"**{router}**" if router.startswith("learned") else router
        lines.append(f"| {name} | " + " | ".join(cells(found[metric]) for metric in FRONTIER) + " |")
    return [*lines, ""]


def overview(judgements: Sequence[Judgement], linked: bool = True) -> list[str]:
    """One line for each scenario."""
    lines = [
        f"| scenario | best heuristic: mean E2E | favor {DEFAULT_FAVOR:g} | best heuristic: p99 TTFT | "
        f"favor {DEFAULT_FAVOR:g} | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for j in judgements:
        cells = [
            text
            for metric in ("e2e_mean_s", "ttft_p99_s")
            for text in (j.best[metric], shown(j.default[metric]))
        ]
        name = f"[{j.scenario}](#{anchor(j.scenario)})" if linked else j.scenario
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {verdict(j)} |")
    return lines


def anchor(scenario: str) -> str:
    """What a heading becomes in a link."""
    return "".join(c for c in scenario.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def table(contest: Contest) -> list[str]:
    """Every router at one load: means over the seeds, and the difference to the best heuristic."""
    lines = [
        "| router | " + " | ".join(LABELS[m] for m in METRICS) + " |",
        "|---|" + "---|" * len(METRICS),
    ]
    rows: list[tuple[str, Sequence[Values]]] = [(n, [v]) for n, v in contest.heuristics.items()]
    rows += [(f"*lookahead*, favor {dial:g}", [v]) for dial, v in contest.lookahead.items()]
    rows += [(f"*specialist*, favor {dial:g}", [v]) for dial, v in contest.specialist.items()]
    rows += [(f"**learned**, favor {dial:g}", runs) for dial, runs in contest.learned.items()]
    for name, runs in rows:
        cells = []
        for metric in METRICS:
            best = contest.best_heuristics[metric]
            mean = number(metric, float(np.mean([values[metric].mean() for values in runs])))
            found = "best" if name == best else shown(differ(runs, contest.heuristics[best], metric))
            cells.append(f"{mean} ({found})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def details(contest: Contest, judgement: Judgement) -> list[str]:
    """What was claimed about one scenario, and the tables behind it."""
    lines = [f"## {contest.scenario}", "", f"{contest.replicas} replicas. {verdict(judgement)}.", ""]
    lines += _matches(judgement)
    fails = judgement.setting(DEFAULT_FAVOR).fails_against
    if fails:
        lines.append(
            f"- The default, {DEFAULT_FAVOR:g}, is not better on one and worse on none against: "
            f"{', '.join(fails)}"
        )
    if judgement.hardware is not None:
        h = judgement.hardware
        lines += [
            "",
            f"Unequal hardware, favor {h.dial:g} against {h.heuristic}: mean E2E {shown(h.e2e)}, mean TTFT "
            f"{shown(h.ttft)}.",
        ]
    if judgement.kept is not None:
        k = judgement.kept
        kept = "" if k.share is None else f": {100 * k.share:.0f} % of it"
        lines += [
            "",
            f"Off the best heuristic on what the dial weighs: the specialist {100 * k.specialist_gain:.1f} "
            "%, the "
            f"policy {100 * k.gain:.1f} %{kept}.",
        ]
    if judgement.over_lor is not None:
        lor = judgement.over_lor
        lines += ["", f"Against lor, on what the dial weighs at its default: {shown(lor[OBJECTIVE])}."]
    if judgement.over_lookahead is not None:
        a = judgement.over_lookahead
        lines += [
            "",
            f"Against lookahead, on what the dial weighs: {shown(a.default_dial)} at its default, "
            f"{percent(a.all_dials)} % over all settings. Headroom: "
            + (", ".join(LABELS[m] for m in judgement.headroom) or "none")
            + ".",
        ]
    lines += ["", f"![The frontier of {contest.scenario}](frontiers/{file_name(contest.scenario)})", ""]
    for load in contest.loads:
        lines += [
            f"<details><summary>Every router at {100 * load:.0f} % of capacity</summary>",
            "",
            *table(contest.at(load)),
            "",
            "</details>",
            "",
        ]
    return lines


def _matches(judgement: Judgement) -> list[str]:
    """At which settings each heuristic is matched; those with the same ones share a line."""
    by_dials: dict[str, list[str]] = {}
    for each in judgement.matched:
        dials = ", ".join(f"{dial:g}" for dial in each.dials) or "**no setting**"
        strict = ", ".join(f"{dial:g}" for dial in each.strict_dials) or "none"
        by_dials.setdefault(f"{dials} (by the estimates: {strict})", []).append(each.heuristic)
    return [f"- No worse at {dials}: {', '.join(names)}" for dials, names in by_dials.items()]


def file_name(scenario: str) -> str:
    """Of its picture."""
    return f"{scenario.replace(':', '-')}.svg"


def picture(contest: Contest) -> str:
    """The frontier over all loads, as an SVG file."""
    best = {m: contest.heuristics[contest.best(m)][m] for m in ("e2e_mean_s", "ttft_p99_s")}

    def point(runs: Sequence[Values]) -> figures.Point:
        x, y = (
            float(np.exp(np.mean([np.log(values[m] / best[m]).mean() for values in runs])))
            for m in ("e2e_mean_s", "ttft_p99_s")
        )
        return x, y

    loads = ", ".join(f"{100 * load:.0f} %" for load in contest.loads)
    return figures.standalone(
        figures.frontier(
            {name: point([values]) for name, values in contest.heuristics.items()},
            {dial: point(runs) for dial, runs in contest.learned.items()},
            {dial: point([values]) for dial, values in contest.lookahead.items()},
            f"{contest.scenario}, loads {loads} together",
            anchor(contest.scenario),
        )
    )


def page(
    contests: Mapping[str, Contest],
    judgements: Sequence[Judgement],
    summary: Summary,
    facts: Sequence[str],
    about: Mapping[str, str] | None = None,
) -> str:
    """The whole page; `facts` are the lines that say how it was made.

    Given `about`, what each scenario is in a sentence, the page says that instead of the tables behind its
    claims.
    """
    over = judgements[0].default["e2e_mean_s"].over
    lines = [
        "# Results",
        "",
        *facts,
        "",
        "## How to read it",
        "",
        "Differences are to the best heuristic for that metric (chosen on the same runs, which flatters "
        "it), as "
        "geometric means of paired ratios over the loads and seeds: negative is better. In brackets: the 95 "
        "% "
        f"interval, over the {over}; bold where it lies below 0. *No worse* means that it does not lie "
        "above 0; "
        "as a wide interval makes that easy, the same is counted by the estimates alone. Times are in "
        "seconds. "
        "`lookahead` is the teacher: no heuristic, and far too slow for most gateways.",
        "",
        "## Summary",
        "",
        *summary_lines(summary),
        "",
        *(across(list(contests.values())) if len(contests) > 1 else []),
        *overview(judgements, linked=about is None),
        "",
    ]
    if about is not None:
        lines += ["## The scenarios", "", *(f"- `{name}`: {about[name]}" for name in contests)]
        return "\n".join(lines) + "\n"
    for judgement in judgements:
        lines += details(contests[judgement.scenario], judgement)
    return "\n".join(lines).rstrip() + "\n"
