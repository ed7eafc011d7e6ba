"""`fairlead emulate`: a scenario's cluster as vLLM-compatible servers."""

from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.options import Json, OneScenario
from fairlead.cli.output import print_json

if TYPE_CHECKING:
    from fairlead.emulate.cluster import Server

EXAMPLES = ("fairlead emulate --scenario chat-unequal --port 9000",)


def command(
    scenario: OneScenario,
    port: Annotated[
        int,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            help="The port of the first replica; the others follow. 0: any that are free.",
        ),
    ] = 9000,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    speed: Annotated[
        float,
        typer.Option(min=0.01, max=100, metavar="FACTOR", help="How many times as fast as real time."),
    ] = 1.0,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model name to serve. Default: the scenario's.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Seed of the length of answers that nobody said the length of."
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Serve a scenario's cluster: one vLLM-compatible HTTP endpoint for each replica, without a GPU.

    Timing, queueing and metrics are the simulator's, in real time. Any gateway can be tried in front of them.
    Prints the endpoints and runs until Ctrl-C.
    """
    import asyncio

    import uvloop

    from fairlead.emulate.clock import LoopClock
    from fairlead.emulate.cluster import build, serve
    from fairlead.workload.suites import load_variant

    chosen = load_variant(scenario)

    def announce(servers: "list[Server]") -> None:
        urls = [f"http://{server.host}:{server.port}" for server in servers]
        name = servers[0].endpoint.model
        if json:
            print_json({"scenario": chosen.name, "model": name, "speed": speed, "endpoints": urls})
            return
        typer.echo(f"{chosen.name}: {len(urls)} replicas of {name}, {speed:g} times real time; Ctrl-C ends")
        for url in urls:
            typer.echo(url)

    async def run() -> None:
        clock = LoopClock(asyncio.get_running_loop(), speed)
        servers = build(chosen, clock, host=host, port=port, seed=seed, model=model)
        await serve(servers, announce)

    uvloop.run(run())
