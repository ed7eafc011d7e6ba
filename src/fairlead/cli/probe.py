"""`fairlead probe`: what servers are and offer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fairlead.cli.options import Json
from fairlead.cli.output import print_json, say
from fairlead.cli.serve import gateway_settings
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.serve.probe import Finding

EXAMPLES = (
    "fairlead probe --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002",
    "fairlead probe --config gateway.yaml --measure --json",
)


def command(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A server to ask, such as http://10.0.0.1:8000; once for each.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE.yaml", help="Ask the backends of these settings.", show_default=False),
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=600, metavar="S", help="How long to wait for each answer.")
    ] = 5.0,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure how fast each is: nine completions, one at a time; it should be idle.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Ask servers what they are, what a router will know of them, and which settings suit them.

    Of each: version, models, KV cache, prefix caching, metrics, load reports, and the columns of the view
    that are missing or approximate. Each is sent a completion of one token. Ends with code 2 if one does not
    answer.
    """
    import asyncio

    import msgspec

    from fairlead.serve.probe import probe, suggest

    backends = gateway_settings(config, backend or []).backends
    findings = asyncio.run(probe(backends, timeout, measure=measure))
    if json:
        told = [msgspec.to_builtins(found) for found in findings]
        print_json({"backends": told, "settings": suggest(findings)})
    else:
        for found in findings:
            _show(found)
        if settings := suggest(findings):
            typer.echo(f"Settings for `fairlead serve --config`:\n\n{settings}", nl=False)
    silent = [found for found in findings if found.error]
    if silent:
        for found in silent[1:]:
            say(f"error: {found.url}: {found.error}")
        raise FairleadError(f"{silent[0].url}: {silent[0].error}")


def _show(found: "Finding") -> None:
    typer.echo(found.url)
    if found.error:
        typer.echo(f"  not usable     {found.error}\n")
        return
    models = [name + (f" (up to {most} tokens)" if most else "") for name, most in found.models.items()]
    cache = "not told"
    if found.kv_capacity_tokens is not None:
        cache = f"{found.kv_capacity_tokens} tokens ({found.num_gpu_blocks} blocks of {found.block_size})"
    caching = {True: "on", False: "off", None: "not told"}[found.prefix_caching]
    rows = {
        "health": "good" if found.healthy else "/health does not answer with 200",
        "version": found.version or "not told",
        "models": ", ".join(models) or "none",
        "KV cache": cache,
        "prefix caching": caching,
        "max_num_seqs": str(found.max_num_seqs or "not told"),
        "metrics": ", ".join(found.metrics) or "none",
        "load reports": "could not be tried" if found.orca is None else ", ".join(found.orca) or "none",
        "speed": "not measured",
        "/load": "not offered" if found.load is None else f"{found.load} requests",
    }
    if found.measured is not None:
        prefill, decode = found.measured
        rows["speed"] = f"{prefill:.0f} prompt tokens/s, {decode:.4g} s for a decode iteration"
    for name, value in rows.items():
        typer.echo(f"  {name:<16}{value}")
    typer.echo("  not exact in the router's view:")
    for name, reason in found.columns.items():
        typer.echo(f"    {name}: {reason}")
    typer.echo()
