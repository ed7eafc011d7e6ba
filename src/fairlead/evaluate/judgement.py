"""What a contest says about a learned router: each claim computed from the runs, none written by hand.

"No worse" means that the 95 % interval of the paired ratio does not lie above 1; a wide interval would make
that easy, so the same is also counted strictly, by the estimates alone.
"""

from collections.abc import Sequence

import numpy as np

from fairlead.evaluate.contest import FRONTIER, METRICS, OBJECTIVE, Contest, Difference, differ, value
from fairlead.evaluate.headroom import WORTHWHILE
from fairlead.evaluate.results import Record
from fairlead.view.preference import DEFAULT_FAVOR

LARGE = 32
"""Clusters of so many replicas are larger than any that policies are trained on."""
HEADROOM_METRICS: tuple[str, ...] = ("e2e_mean_s", "ttft_mean_s", "ttft_p99_s")


class Matched(Record):
    """Whether some setting of the dial is no worse than a heuristic on both axes of the frontier."""

    heuristic: str
    dials: list[float]
    """The settings that are no worse, by the intervals."""
    strict_dials: list[float]
    """Those whose estimates are no worse."""


class Setting(Record):
    """One setting of the dial against each heuristic, on both axes of the frontier."""

    dial: float
    holds: bool
    """Better than each heuristic on at least one of the two and worse on none, by the intervals."""
    holds_strictly: bool
    """The same by the estimates: below on one, not above on the other."""
    fails_against: list[str]
    """The heuristics for which it does not hold, by the intervals."""


class Hardware(Record):
    """Against the heuristic with the best mean E2E, at the dial that is best for mean E2E.

    Of the settings whose mean TTFT is not above that heuristic's; of all, if there is none.
    """

    dial: float
    heuristic: str
    e2e: Difference
    ttft: Difference


class Kept(Record):
    """How much of a specialist's gain over the best heuristic the policy keeps, on the objective.

    Logarithms of ratios, averaged over the settings of the dial that both have.
    """

    specialist_gain: float
    """1 - specialist / best heuristic."""
    gain: float
    share: float | None
    """Of the logarithms; none where the specialist gained less than half a percent."""


class Ahead(Record):
    """Against another router on the objective, at the same setting of the dial."""

    default_dial: Difference
    all_dials: float
    """The geometric mean over all settings, minus 1."""


class Judgement(Record):
    """One scenario, at one load or over all of them."""

    scenario: str
    loads: list[float]
    replicas: int
    unequal: bool
    best: dict[str, str]
    """By metric: the best heuristic."""
    default: dict[str, Difference]
    """By metric: the default dial against that heuristic."""
    matched: list[Matched]
    settings: list[Setting]
    headroom: list[str]
    """The metrics with headroom: the best heuristic is worth something over round robin, or lookahead over
    it."""
    hardware: Hardware | None
    """Only where hardware is unequal."""
    kept: Kept | None
    """Only where there is a specialist."""
    over_lor: dict[str, Difference] | None
    """Only in large clusters: objective and metrics against `lor`, at the default dial."""
    over_lookahead: Ahead | None
    """Only where lookahead took part."""

    @property
    def dominates(self) -> bool:
        """Whether each heuristic is matched by some setting of the dial."""
        return all(each.dials for each in self.matched)

    @property
    def dominates_strictly(self) -> bool:
        """The same by the estimates alone."""
        return all(each.strict_dials for each in self.matched)

    def setting(self, dial: float) -> Setting:
        """What was found for one setting of the dial."""
        return next(each for each in self.settings if each.dial == dial)


def judge(contest: Contest) -> Judgement:
    """Everything that is claimed about the learned router in one contest.

    Raises:
        FairleadError: for a single seed.
    """
    best = contest.best_heuristics
    default = contest.learned[DEFAULT_FAVOR]
    against = {
        (dial, name): (differ(runs, values, FRONTIER[0]), differ(runs, values, FRONTIER[1]))
        for dial, runs in contest.learned.items()
        for name, values in contest.heuristics.items()
    }
    return Judgement(
        scenario=contest.scenario,
        loads=list(contest.loads),
        replicas=contest.replicas,
        unequal=contest.unequal,
        best=best,
        default={m: differ(default, contest.heuristics[best[m]], m) for m in METRICS},
        matched=[
            Matched(
                heuristic=name,
                dials=[d for d in contest.learned if not any(x.worse for x in against[d, name])],
                strict_dials=[d for d in contest.learned if all(x.not_above for x in against[d, name])],
            )
            for name in contest.heuristics
        ],
        settings=[
            _setting(dial, {name: against[dial, name] for name in contest.heuristics})
            for dial in contest.learned
        ],
        headroom=_headroom(contest),
        hardware=_hardware(contest) if contest.unequal else None,
        kept=_kept(contest) if contest.specialist else None,
        over_lor=_over_lor(contest) if contest.replicas >= LARGE and "lor" in contest.heuristics else None,
        over_lookahead=_ahead(contest) if contest.lookahead else None,
    )


def _setting(dial: float, against: dict[str, tuple[Difference, Difference]]) -> Setting:
    def holds(pair: tuple[Difference, Difference]) -> bool:
        return any(x.better for x in pair) and not any(x.worse for x in pair)

    def strictly(pair: tuple[Difference, Difference]) -> bool:
        return any(x.relative < 0.0 for x in pair) and all(x.not_above for x in pair)

    return Setting(
        dial=dial,
        holds=all(holds(pair) for pair in against.values()),
        holds_strictly=all(strictly(pair) for pair in against.values()),
        fails_against=[name for name, pair in against.items() if not holds(pair)],
    )


def _headroom(contest: Contest) -> list[str]:
    found = []
    for metric in HEADROOM_METRICS:
        best = contest.heuristics[contest.best_heuristics[metric]]
        steps = [differ([values], best, metric) for values in contest.lookahead.values()]
        if "round_robin" in contest.heuristics:
            steps.append(differ([best], contest.heuristics["round_robin"], metric))
        if any(step.better and step.relative <= -WORTHWHILE for step in steps):
            found.append(metric)
    return found


def _hardware(contest: Contest) -> Hardware:
    name = contest.best_heuristics["e2e_mean_s"]
    rows = {
        dial: (
            differ(runs, contest.heuristics[name], "e2e_mean_s"),
            differ(runs, contest.heuristics[name], "ttft_mean_s"),
        )
        for dial, runs in contest.learned.items()
    }
    allowed = {dial: row for dial, row in rows.items() if row[1].not_above} or rows
    dial = min(allowed, key=lambda d: allowed[d][0].relative)
    return Hardware(dial=dial, heuristic=name, e2e=rows[dial][0], ttft=rows[dial][1])


def _kept(contest: Contest) -> Kept:
    gains = []
    for dial in contest.learned.keys() & contest.specialist.keys():
        best = np.log(value(contest.heuristics[contest.best(OBJECTIVE, dial)], OBJECTIVE, dial)).mean()
        theirs = best - np.log(value(contest.specialist[dial], OBJECTIVE, dial)).mean()
        ours = best - np.mean([np.log(value(v, OBJECTIVE, dial)).mean() for v in contest.learned[dial]])
        gains.append((float(theirs), float(ours)))
    theirs, ours = (float(each) for each in np.mean(gains, 0))
    share = ours / theirs if theirs >= 0.005 else None
    return Kept(specialist_gain=float(-np.expm1(-theirs)), gain=float(-np.expm1(-ours)), share=share)


def _over_lor(contest: Contest) -> dict[str, Difference]:
    runs, lor = contest.learned[DEFAULT_FAVOR], contest.heuristics["lor"]
    return {metric: differ(runs, lor, metric, DEFAULT_FAVOR) for metric in (OBJECTIVE, *METRICS)}


def _ahead(contest: Contest) -> Ahead:
    found = {
        dial: differ(runs, contest.lookahead[dial], OBJECTIVE, dial)
        for dial, runs in contest.learned.items()
        if dial in contest.lookahead
    }
    mean = float(np.mean([np.log1p(each.relative) for each in found.values()]))
    return Ahead(default_dial=found[DEFAULT_FAVOR], all_dials=float(np.expm1(mean)))


class Summary(Record):
    """The claims over many scenarios: each as a count of those for which it holds, and out of how many."""

    scenarios: int
    dominated: int
    """Scenarios in which each heuristic is matched by some setting of the dial, by the intervals."""
    dominated_strictly: int
    default_dial: float
    default_holds: int
    """Scenarios in which the default dial is better than each heuristic on one axis and worse on none."""
    default_holds_strictly: int
    best_dial: float
    """The setting for which that holds in most scenarios."""
    best_dial_holds: int
    unequal: int
    unequal_reached: int
    """Of those with unequal hardware: mean E2E at least 15 % below, mean TTFT not above."""
    specialists: int
    share_kept: float | None
    """Mean over the scenarios in which a specialist gained anything."""
    large: int
    large_beat_lor: int
    """Large clusters in which the objective is below that of `lor` for sure."""
    with_headroom: int
    """Scenarios with headroom in which lookahead took part."""
    ahead_of_lookahead: int
    """Of these: the objective is below lookahead's, over all settings of the dial."""


UNEQUAL_GOAL = 0.15


def summarise(judgements: Sequence[Judgement]) -> Summary:
    """Counts over the scenarios (one judgement each)."""
    dials = [each.dial for each in judgements[0].settings]
    holding = {dial: sum(j.setting(dial).holds for j in judgements) for dial in dials}
    best_dial = max(dials, key=lambda dial: (holding[dial], dial == DEFAULT_FAVOR))
    hardware = [j.hardware for j in judgements if j.hardware is not None]
    shares = [j.kept.share for j in judgements if j.kept is not None and j.kept.share is not None]
    large = [j.over_lor for j in judgements if j.over_lor is not None]
    ahead = [j.over_lookahead for j in judgements if j.over_lookahead is not None and j.headroom]
    return Summary(
        scenarios=len(judgements),
        dominated=sum(j.dominates for j in judgements),
        dominated_strictly=sum(j.dominates_strictly for j in judgements),
        default_dial=DEFAULT_FAVOR,
        default_holds=holding[DEFAULT_FAVOR],
        default_holds_strictly=sum(j.setting(DEFAULT_FAVOR).holds_strictly for j in judgements),
        best_dial=best_dial,
        best_dial_holds=holding[best_dial],
        unequal=len(hardware),
        unequal_reached=sum(h.e2e.relative <= -UNEQUAL_GOAL and h.ttft.not_above for h in hardware),
        specialists=sum(j.kept is not None for j in judgements),
        share_kept=float(np.mean(shares)) if shares else None,
        large=len(large),
        large_beat_lor=sum(each[OBJECTIVE].better for each in large),
        with_headroom=len(ahead),
        ahead_of_lookahead=sum(each.all_dials < 0.0 for each in ahead),
    )
