"""How metrics and differences are put in words and figures, the same everywhere."""

from fairlead.view.tail import TAIL_SHARE

LABELS: dict[str, str] = {
    "ttft_mean_s": "mean TTFT",
    "ttft_p50_s": "p50 TTFT",
    "ttft_p90_s": "p90 TTFT",
    "ttft_p99_s": "p99 TTFT",
    "tpot_mean_s": "mean TPOT",
    "tpot_p99_s": "p99 TPOT",
    "e2e_mean_s": "mean E2E",
    "e2e_p50_s": "p50 E2E",
    "e2e_p90_s": "p90 E2E",
    "e2e_p99_s": "p99 E2E",
    "throughput_rps": "throughput",
    "goodput_rps": "goodput",
    "imbalance": "imbalance",
    "retries_mean": "retries per request",
    "prefix_hit_rate": "prefix hit rate",
    "scheduling_delay_p99_s": "p99 scheduling delay",
    "ttft_worst_mean_s": f"mean TTFT of the worst {100 * TAIL_SHARE:g} %",
}
"""The short name of each metric."""

SHOWN: tuple[str, ...] = (
    "ttft_mean_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "e2e_mean_s",
    "e2e_p50_s",
    "e2e_p99_s",
    "tpot_p99_s",
    "throughput_rps",
    "imbalance",
)
"""The metrics that tables show; `results.json` has all of them."""

HEADLINE: tuple[str, ...] = ("e2e_mean_s", "ttft_mean_s", "e2e_p99_s", "ttft_p99_s")
"""The metrics that sentences are about."""

MINUS = "\N{MINUS SIGN}"
SPACE = "\N{NO-BREAK SPACE}"
MARKS: dict[str, str] = {
    "better": "✓",
    "worse": "✗",
    "undecided": "~",
    "equal": "=",
    "reference": "best",
    "least": "least",
    "unjudged": "",
}
"""A sign for each way to stand beside the reference, so that none is told by colour alone."""


def unit(metric: str) -> str:
    """The unit that `number` uses for a metric; empty for a pure number."""
    if metric.startswith("tpot"):
        return "ms"
    return {"_s": "s", "ps": "1/s"}.get(metric[-2:], "")


def number(metric: str, value: float) -> str:
    """Three significant digits, without the unit; times per token in milliseconds."""
    if metric.startswith("tpot"):
        value *= 1000.0
    if value >= 99.95:
        return f"{value:.0f}"
    if value >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"


def quantity(metric: str, value: float) -> str:
    """The number with its unit."""
    return f"{number(metric, value)}{SPACE}{unit(metric)}".rstrip()


def percent(fraction: float, *, signed: bool = True) -> str:
    """A fraction as a figure in percent, without the sign for it: one decimal below 10, none above."""
    value = 100.0 * fraction
    digits = f"{abs(value):.1f}" if abs(value) < 9.95 else f"{abs(value):.0f}"
    if not signed or value == 0.0:
        return digits
    # The sign stays where the digits round to zero: it says on which side of 0 an interval ends.
    return (MINUS if value < 0 else "+") + digits


def percent_load(load: float) -> str:
    """A load as in `70 % load`."""
    return f"{100 * load:g}{SPACE}% load"


def listing(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
