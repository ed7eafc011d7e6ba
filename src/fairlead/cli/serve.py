"""`fairlead serve`: the gateway in front of real servers."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.options import read_settings
from fairlead.cli.output import say
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.serve.settings import GatewaySettings

EXAMPLES = (
    "fairlead serve --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002",
    "fairlead serve --config gateway.yaml --policy runs/mine/policy.onnx --favor 0.8",
)

MEASURE = "`fairlead probe --measure` finds it"
"""Said of backends whose speeds are not declared."""


def command(
    backend: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="A server to pass requests on to, such as http://10.0.0.1:8000; once for each.",
            show_default=False,
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="Who decides: fairlead/generalist, a policy.onnx of your own, or a heuristic such as "
            "least_work, lor, p2c. Default: fairlead/generalist.",
            show_default=False,
        ),
    ] = None,
    favor: Annotated[
        float | None,
        typer.Option(
            metavar="DIAL",
            help="What a trained policy favors, from 0 (end-to-end latency) to 1 (first tokens, above all "
            "late ones). Default: 0.5: end-to-end latency, but no long waits for a first token.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Where to listen. Default: 127.0.0.1.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", help="Where to listen. Default: 8000; 0: any.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Settings; the options above override it. SIGHUP reads it again.",
            show_default=False,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One setting, such as queue.max_requests=200; may be repeated.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="tokenizer.json",
            help="Count the tokens of prompts with the model's own tokenizer instead of estimating them.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check the settings and the policy, then exit.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API in front of several vLLM servers, and route each request by a policy.

    Requests under /v1 are passed on as they are, streams included; /health, /ready and /metrics are the
    gateway's own. One JSON line for each request goes to stdout. SIGTERM: finish, then end.
    """
    from fairlead.compiled import is_cached

    def settings() -> "GatewaySettings":
        return gateway_settings(
            config,
            backend or [],
            assignments or [],
            policy=policy,
            favor=favor,
            host=host,
            port=port,
            tokenizer=tokenizer,
        )

    chosen = settings()
    if not is_cached():
        say("compiling (only the first time; half a minute) ...")
    try:
        import uvloop

        from fairlead.serve.descriptors import raise_limit
        from fairlead.serve.server import Server
    except ModuleNotFoundError as error:
        raise FairleadError(f"serving needs {error.name}: pip install {error.name}") from None
    if check:
        from fairlead.serve.gateway import Gateway

        Gateway(chosen)
        say(f"the settings are good: {len(chosen.backends)} backends, policy {chosen.policy.router}")
        if undeclared := [each.url for each in chosen.backends if each.assumed]:
            say(f"how fast is not declared of {', '.join(undeclared)}: {MEASURE}")
        return

    raise_limit()

    async def main() -> None:
        server = Server(chosen, settings)
        await server.start()
        server.handle_signals()
        if undeclared := [each.url for each in chosen.backends if each.assumed]:
            server.gateway.events("speeds_assumed", backends=undeclared, advice=MEASURE)
        scheme = "https" if chosen.tls is not None else "http"
        server.gateway.events(
            "listening",
            url=f"{scheme}://{chosen.host}:{server.port}",
            backends=[each.url for each in chosen.backends],
            policy=chosen.policy.router,
            **({"admin": f"http://{chosen.admin.host}:{server.admin_port}"} if chosen.admin else {}),
        )
        await server.serve()

    uvloop.run(main())


def gateway_settings(
    config: Path | None,
    backends: list[str],
    assignments: Sequence[str] = (),
    *,
    policy: str | None = None,
    favor: float | None = None,
    host: str | None = None,
    port: int | None = None,
    tokenizer: Path | None = None,
) -> "GatewaySettings":
    """The settings of the file, with what the options say on top."""
    from fairlead.serve.settings import parse_settings

    content = read_settings(config, assignments)
    if backends:
        content["backends"] = [{"url": url} for url in backends]
    given: dict[str, Any] = {"host": host, "port": port}
    content |= {key: value for key, value in given.items() if value is not None}
    for key, value in (("router", policy), ("favor", favor)):
        if value is not None:
            section = content.setdefault("policy", {})
            if not isinstance(section, dict):
                raise FairleadError("policy: should be a mapping of keys, for example {router: lor}")
            section[key] = value
    if tokenizer is not None:
        section = content.setdefault("tokens", {})
        if not isinstance(section, dict):
            raise FairleadError("tokens: should be a mapping of keys, for example {prompts: backend}")
        section |= {"prompts": "tokenizer", "tokenizers": {"*": str(tokenizer)}}
    return parse_settings(content, str(config) if config is not None else "fairlead serve")
