"""Who wins where, in plain sentences, also where the learned router loses."""

from collections import Counter

from fairlead.evaluate.phrasing import HEADLINE, LABELS, SPACE, listing, percent, percent_load, quantity
from fairlead.evaluate.results import ComparisonRow, Results
from fairlead.evaluate.statistics import LOWER_IS_BETTER, Comparison, compare_ratios


def headline(results: Results) -> list[str]:
    """The outcome over all settings: a sentence per learned router, or one on the heuristics."""
    learned = results.configuration.names("learned")
    if not learned:
        return [_best_heuristics_overall(results)]
    return [_learned_overall(results, router) for router in learned]


def setting_words(results: Results, scenario: str, load: float) -> list[str]:
    """The outcome of one setting: the best heuristics, then each router that was measured against them."""
    configuration = results.configuration
    place = f"{scenario} at {percent_load(load)}"
    sentences = [f"{place}: {_best_heuristics(results, scenario, load)}"]
    for router in configuration.names("learned", "lookahead"):
        cells = [results.comparison(scenario, load, router, metric) for metric in HEADLINE]
        sentences.append(f"{place}: {router} {_against_best(cells)}.")
    for teacher in configuration.names("lookahead"):
        for router in configuration.names("learned"):
            sentences.append(f"{place}: {router}'s {_gap(results, scenario, load, router, teacher)}.")
    return sentences


def all_words(results: Results) -> list[str]:
    """The headline, how to read the brackets, then every setting."""
    seeds = len(results.configuration.seeds)
    sentences = headline(results)
    sentences.append(
        "Percentages are geometric means of the ratios, run by run; brackets hold their "
        f"95{SPACE}% interval, paired over {seeds} seeds."
    )
    for scenario, load in results.configuration.settings:
        sentences += setting_words(results, scenario, load)
    return sentences


def _learned_overall(results: Results, router: str) -> str:
    settings = results.configuration.settings
    parts = []
    for metric in ("e2e_mean_s", "ttft_mean_s"):
        cells = [results.comparison(scenario, load, router, metric) for scenario, load in settings]
        parts.append(f"{LABELS[metric]} is {_tally(cells)}")
    count = "one setting" if len(settings) == 1 else f"{len(settings)} settings"
    return f"{router} against the best heuristic for each metric, in {count}: {'; '.join(parts)}."


def _tally(cells: list[ComparisonRow]) -> str:
    """For example `better in 3 (by 4.1 to 25 %) and undecided in 1`."""
    parts = []
    for verdict in ("better", "worse", "undecided", "equal"):
        found = [cell for cell in cells if _outcome(cell) == verdict]
        if not found:
            continue
        sizes = sorted(abs(c.relative_difference) for c in found if c.relative_difference is not None)
        size = ""
        if sizes and verdict in ("better", "worse"):
            ends = dict.fromkeys(percent(end, signed=False) for end in (sizes[0], sizes[-1]))
            size = f" (by {' to '.join(ends)}{SPACE}%)"
        parts.append(f"{verdict} in {len(found)}{size}")
    return listing(parts)


def _best_heuristics_overall(results: Results) -> str:
    settings = results.configuration.settings
    anyone = results.configuration.router_names[0]
    parts = []
    for metric in HEADLINE:
        best = Counter(results.comparison(*setting, anyone, metric).reference_router for setting in settings)
        names = [
            name if count == len(settings) else f"{name} (in {count} of {len(settings)} settings)"
            for name, count in best.most_common()
        ]
        parts.append(f"on {LABELS[metric]}: {listing(names)}")
    where = "in the one setting" if len(settings) == 1 else f"in {len(settings)} settings"
    return f"No learned router took part. The best heuristic {where} {'; '.join(parts)}."


def _best_heuristics(results: Results, scenario: str, load: float) -> str:
    """For example `the best heuristic is least_work on mean E2E (5.38 s), ...`."""
    anyone = results.configuration.router_names[0]
    by_router: dict[str, list[str]] = {}
    for metric in HEADLINE:
        cell = results.comparison(scenario, load, anyone, metric)
        text = f"{LABELS[metric]} ({quantity(metric, cell.reference)})"
        by_router.setdefault(cell.reference_router, []).append(text)
    return f"the best heuristic is {listing([f'{name} on {listing(m)}' for name, m in by_router.items()])}."


def _against_best(cells: list[ComparisonRow]) -> str:
    """For example `wins on mean E2E (...); loses on p99 TTFT (...)`."""
    verbs = {
        "better": "wins on",
        "worse": "loses on",
        "undecided": "is undecided on",
        "equal": "is equal on",
    }
    parts = []
    for verdict, verb in verbs.items():
        found = [cell for cell in cells if _outcome(cell) == verdict]
        if found:
            parts.append(f"{verb} {listing([_cell_in_words(cell) for cell in found])}")
    return "; ".join(parts)


def _outcome(cell: ComparisonRow | Comparison) -> str:
    """The verdict; runs that are all the same are equal, which is not undecided."""
    return "equal" if cell.equal else cell.verdict


def _cell_in_words(cell: ComparisonRow) -> str:
    """For example `mean E2E (4.05 s, 25 % below least_work [22 to 27 %])`."""
    amount = _amount(cell, cell.metric, cell.reference_router)
    return f"{LABELS[cell.metric]} ({quantity(cell.metric, cell.mean)}, {amount})"


def _amount(cell: ComparisonRow | Comparison, metric: str, reference: str) -> str:
    """For example `25 % below least_work [22 to 27 %]`; signed where the interval holds both sides."""
    if cell.difference == 0.0:
        return f"the same as {reference}"
    if cell.relative_difference is None or cell.relative_interval is None:
        side = "below" if cell.difference < 0 else "above"
        return f"{quantity(metric, abs(cell.difference))} {side} {reference}"
    side = "below" if cell.relative_difference < 0 else "above"
    ends = sorted(cell.relative_interval, key=abs)
    signed = min(ends) < 0 < max(ends)
    low, high = (percent(end, signed=signed) for end in (sorted(ends) if signed else ends))
    size = percent(cell.relative_difference, signed=False)
    return f"{size}{SPACE}% {side} {reference} [{low} to {high}{SPACE}%]"


def _gap(results: Results, scenario: str, load: float, router: str, teacher: str) -> str:
    """For example `its mean E2E is 1.2 % above [...] (worse) and its mean TTFT ... (undecided)`."""
    parts = []
    for metric in ("e2e_mean_s", "ttft_mean_s"):
        ours, theirs = (results.values(scenario, load, name, metric) for name in (router, teacher))
        gap = compare_ratios(ours, theirs, lower_is_better=LOWER_IS_BETTER[metric])
        parts.append(f"{LABELS[metric]} is {_amount(gap, metric, teacher)} ({_outcome(gap)})")
    return listing(parts)
