"""`fairlead simulate`: one router, one run, its metrics."""

from typing import Annotated

import typer

from fairlead.cli.first_run import capacity
from fairlead.cli.options import Favor, Json, OneScenario, load_list
from fairlead.cli.output import on_interrupt, print_json, print_table
from fairlead.errors import FairleadError

EXAMPLES = ("fairlead simulate --scenario chat-unequal --load 0.7 --router least_work",)


def command(
    scenario: OneScenario,
    load: Annotated[
        str | None,
        typer.Option(
            help="How busy the cluster is, as a fraction of its measured capacity. "
            "Default: the first of the scenario's loads.",
            metavar="FRACTION",
            show_default=False,
        ),
    ] = None,
    router: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="The router: a heuristic such as lor, p2c, least_work, lookahead, or a policy.",
        ),
    ] = "lor",
    favor: Favor = None,
    requests: Annotated[int, typer.Option(min=1, metavar="N", help="How many requests arrive.")] = 3000,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of arrivals, lengths and the router's own choices.")
    ] = 0,
    json: Json = False,
) -> None:
    """Simulate one run: requests arrive, a router places each, and the cluster serves them all.

    Prints what users of the cluster would feel: time to first token (TTFT), time per output token (TPOT)
    and end-to-end latency (E2E), with their tails, and throughput. The same options give the same numbers.
    """
    from fairlead.evaluate.tournament import simulate_once
    from fairlead.workload.suites import load_variant

    chosen = load_variant(scenario)
    loads = load_list(load) or [chosen.loads[0]]
    if len(loads) > 1:
        raise FairleadError("simulate takes one --load; `fairlead evaluate` takes several")
    capacity(chosen)
    with on_interrupt(lambda: "nothing was saved"):
        metrics = simulate_once(chosen, loads[0], router, requests, seed, favor)
    result = {
        "scenario": chosen.name,
        "load": loads[0],
        "router": router,
        "requests": requests,
        "seed": seed,
        **metrics,
    }
    if json:
        print_json(result)
        return
    typer.echo(f"{router} on {chosen.name} at load {loads[0]:g}: {requests} requests, seed {seed}")
    rows = [(name, f"{value:.4g}") for name, value in metrics.items() if isinstance(value, int | float)]
    print_table(("metric", "value"), rows, right=("value",))
