"""`fairlead train`: train a routing policy in simulation, or fine-tune one on live servers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.first_run import announce_compilation, capacity
from fairlead.cli.options import (
    GatewaySettingsFile,
    LiveRate,
    LiveServers,
    load_list,
    read_settings,
    scenario_list,
)
from fairlead.cli.output import ProgressBar, on_interrupt, say
from fairlead.cli.serve import gateway_settings
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from fairlead.serve.settings import GatewaySettings
    from fairlead.train.config import TrainConfig
    from fairlead.workload.scenario import Scenario

EXAMPLES = (
    "fairlead train --scenario chat-unequal --out runs/mine",
    "fairlead train --scenario chat-equal,chat-unequal --out runs/both --minutes 20 --set ppo.epochs=4",
    "fairlead train --scenario my-cluster.yaml --start-from fairlead/generalist --out runs/tuned",
    "fairlead train --out runs/both --resume",
    "fairlead train --backend http://127.0.0.1:8001 --backend http://127.0.0.1:8002 --rate 4 "
    "--scenario chat-equal --start-from runs/mine/policy.onnx --requests 4000 --minutes 30 --out runs/tuned",
)


def command(
    context: typer.Context,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="A new folder for the policy, checkpoints and logs.", show_default=False
        ),
    ],
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            "--scenario",
            "-s",
            metavar="NAME_OR_FILE,...",
            help="Scenarios to train on: names, YAML files or `suite/standard`, separated by commas, or the "
            "option repeated. `NAME:16` is one with 16 replicas.",
            show_default=False,
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="How busy the clusters are while training: each episode draws a load between these "
            "fractions of capacity, and the policy is validated at those named. Default: from the lowest of "
            "each scenario's own loads to 0.05 above the highest, validated at its own.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Training settings (YAML, TOML or JSON); what it leaves out keeps its default.",
            show_default=False,
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.", show_default=False
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="ROUTER",
            help="The router that the policy imitates before it learns on its own. Default: lookahead.",
            show_default=False,
        ),
    ] = None,
    from_scratch: Annotated[
        bool,
        typer.Option(
            "--from-scratch", help="Skip the imitation; learn by trial and error alone, in larger steps."
        ),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out, with its settings.")
    ] = False,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            metavar="NAME_OR_FILE",
            help="Fine-tune this policy, fairlead/generalist or a policy.onnx, instead of starting with "
            "imitation (unless there is a --teacher, for example counterfactual).",
            show_default=False,
        ),
    ] = None,
    favor: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Range of the dial to train for, from 0 (end-to-end latency) to 1 (first tokens, above all "
            "late ones), or one point. Default: 0,1.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda", help="Where the network learns. Default: cpu.", show_default=False),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Seed of everything random. Default: 0.", show_default=False),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="N", help="Stop after this many minutes.", show_default=False),
    ] = None,
    iterations: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Stop after this many PPO iterations.", show_default=False),
    ] = None,
    backend: LiveServers = None,
    gateway: GatewaySettingsFile = None,
    rate: LiveRate = None,
    requests: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With live servers: all requests that they are sent. Default: 4000.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train a routing policy: first imitate a teacher, then improve on it with PPO.

    Everything happens in simulation, on ordinary CPU cores. The folder receives policy.onnx (the best policy
    so far; hand it to `fairlead evaluate`), checkpoints, and logs for TensorBoard. Ctrl-C is safe: what was
    learned is saved, and --resume goes on from there.

    With --backend a policy that exists (--start-from) is fine-tuned on live servers, with the requests of a
    scenario at --rate, and then compared there with what it was. It ends after --requests or --minutes (60).
    """
    from fairlead.train import fine_tuning
    from fairlead.train.config import checked

    live = bool(backend) or gateway is not None
    if not live and (rate is not None or requests is not None):
        raise FairleadError("--rate and --requests are for live servers: name them with --backend")
    short = _assignments(load, favor, teacher, seed, minutes, iterations)
    if requests is not None:
        short.append(f"live.requests={requests}")
    if device is not None:
        short.append(f"device={device}")
    if start_from is not None:
        short.append(f"start_from={start_from}")
    settings = read_settings(config, [*(assignments or []), *short])
    if resume and (scenario or settings or from_scratch or rate is not None):
        raise FairleadError(f"--resume goes on with the scenarios and settings in {out}: leave out the rest")
    if not resume and not scenario:
        raise FairleadError("nothing to train on: name a scenario, for example --scenario chat-unequal")
    scenarios = scenario_list(scenario) if scenario else []
    settings = fine_tuning.with_network(settings)
    if live:
        _check_live(scenarios, load, teacher, from_scratch, rate, resume)
        if not resume:
            settings = fine_tuning.with_defaults(_live_defaults(settings))
        servers = gateway_settings(gateway, backend or [])
        tuned = checked({} if resume else settings)
        _train_live(tuned, scenarios, servers, rate or 0.0, out, resume, str(context.obj))
        return
    defaults = fine_tuning.from_scratch if from_scratch else fine_tuning.with_defaults
    _train(checked(defaults(settings)), scenarios, out, resume)
    say(f"trained policy: {out / 'policy.onnx'}")


def _check_live(
    scenarios: "list[Scenario]",
    load: str | None,
    teacher: str | None,
    from_scratch: bool,
    rate: float | None,
    resume: bool,
) -> None:
    """What training on live servers can and cannot do with the options."""
    for option, given in (("--load", load), ("--teacher", teacher), ("--from-scratch", from_scratch)):
        if given:
            raise FairleadError(f"{option} is for training in simulation: leave it out with --backend")
    if resume:
        return
    if len(scenarios) != 1:
        raise FairleadError("live servers are sent the requests of one scenario: name one")
    if rate is None or not 0 < rate < float("inf"):
        raise FairleadError("live servers need a rate: give requests per second, for example --rate 4")


def _live_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    from fairlead.train.live_config import with_defaults

    return with_defaults(settings)


def _assignments(
    load: str | None,
    favor: str | None,
    teacher: str | None,
    seed: int | None,
    minutes: float | None,
    iterations: int | None,
) -> list[str]:
    """The options that are short for settings, as `--set` would have them."""
    flags: dict[str, Any] = {
        "teacher": teacher,
        "seed": seed,
        "minutes": minutes,
        "ppo.iterations": iterations,
    }
    loads = load_list(load)
    if loads is not None:
        flags |= {"environment.load": [min(loads), max(loads)], "validation.loads": loads}
    if favor is not None:
        points = _favor_range(favor)
        flags["environment.favor"] = [min(points), max(points)]
    return [f"{key}={value}" for key, value in flags.items() if value is not None]


def _favor_range(text: str) -> list[float]:
    """One or two points on the dial."""
    from fairlead.view.preference import check_favor

    try:
        points = [check_favor(float(part)) for part in text.split(",")]
    except ValueError:
        raise FairleadError(f"--favor {text}: give one number or two in [0, 1], for example 0,1") from None
    if len(points) > 2:
        raise FairleadError(f"--favor {text}: give one number or two in [0, 1], for example 0,1")
    return points


def _train(config: "TrainConfig", scenarios: "list[Scenario]", out: Path, resume: bool) -> None:
    """Train in simulation."""
    with _training(scenarios, None if resume else out, f"fairlead train --out {out} --resume") as progress:
        from fairlead.train.run import train

        train(config, scenarios, out, resume, progress, progress.say)


def _train_live(
    config: "TrainConfig",
    scenarios: "list[Scenario]",
    servers: "GatewaySettings",
    rate: float,
    out: Path,
    resume: bool,
    typed: str,
) -> None:
    """Train on live servers."""
    again = f"fairlead train --out {out} --resume with the same --backend or --gateway"
    with _training(scenarios, None if resume else out, again) as progress:
        from fairlead.train.live import train_live

        scenario = scenarios[0] if scenarios else None
        train_live(config, scenario, servers, rate, out, resume, progress, progress.say, command=typed)
    say(f"trained policy: {out / 'policy.onnx'}")


@contextmanager
def _training(scenarios: "list[Scenario]", new: Path | None, again: str) -> Iterator[ProgressBar]:
    """Around training: Ctrl-C ends it with a line that tells how to go on.

    The directory of a `new` run is looked at before anything that takes time.
    """
    try:
        from fairlead.train.trainer import TrainingInterrupted, check_free
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "onnx", "tensorboard"):
            raise
        raise FairleadError(
            f"training needs {error.name}, which is not installed: pip install 'fairlead[train]'"
        ) from None
    if new is not None:
        check_free(new)
    with on_interrupt(lambda: f"what was learned is saved; go on with: {again}"), ProgressBar() as progress:
        announce_compilation()
        for scenario in scenarios:
            capacity(scenario)
        try:
            yield progress
        except TrainingInterrupted:
            raise KeyboardInterrupt from None
