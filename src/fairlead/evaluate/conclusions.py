"""From rows to conclusions: the paired comparisons and the sentences of a tournament."""

from collections.abc import Sequence

from fairlead.errors import FairleadError
from fairlead.evaluate.results import ComparisonRow, Configuration, Results, Row, check_complete, seed_values
from fairlead.evaluate.statistics import LOWER_IS_BETTER, compare_ratios, typical
from fairlead.evaluate.words import all_words


def build_results(configuration: Configuration, rows: Sequence[Row]) -> Results:
    """The results document of a finished tournament.

    Each router is compared, metric by metric, with the heuristic that is best at that metric over the seeds.
    It was chosen by looking at the same seeds, so the reference is, if anything, a little too good.

    Raises:
        FairleadError: a cell is missing, there are fewer than two seeds, or no heuristic to compare with.
    """
    check_complete(configuration, rows)
    if not configuration.names("heuristic"):
        raise FairleadError("there is no heuristic to compare with: add one to the routers, for example lor")
    comparisons = [
        comparison
        for scenario, load in configuration.settings
        for metric in LOWER_IS_BETTER
        for comparison in _compare_routers(configuration, rows, scenario, load, metric)
    ]
    results = Results(
        configuration_hash=configuration.hash(),
        configuration=configuration,
        rows=list(rows),
        comparisons=comparisons,
        words=[],
    )
    return results.model_copy(update={"words": all_words(results)})


def _compare_routers(
    configuration: Configuration, rows: Sequence[Row], scenario: str, load: float, metric: str
) -> list[ComparisonRow]:
    lower_is_better = LOWER_IS_BETTER[metric]
    values = seed_values(configuration, rows, scenario, load, metric)
    sign = 1.0 if lower_is_better else -1.0
    best = min(configuration.names("heuristic"), key=lambda name: sign * typical(values[name]))
    compared = []
    for router in configuration.router_names:
        found = compare_ratios(values[router], values[best], lower_is_better=lower_is_better)
        ends = found.relative_interval or (None, None)
        compared.append(
            ComparisonRow(
                scenario=scenario,
                load=load,
                router=router,
                metric=metric,
                reference_router=best,
                mean=found.mean,
                reference=found.reference,
                difference=found.difference,
                relative_difference=found.relative_difference,
                ci_low=found.ci_low,
                ci_high=found.ci_high,
                relative_ci_low=ends[0],
                relative_ci_high=ends[1],
                method="itself" if router == best else found.method,
                verdict="reference" if router == best else found.verdict,
            )
        )
    return compared
