"""`fairlead calibrate`: iteration times from measurements, and for other simulators."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fairlead.cli.options import Json
from fairlead.cli.output import print_json, print_table, say
from fairlead.errors import FairleadError

HELP = "Iteration times: fitted to measurements of yours, or written out for the simulator Vidur."


def fit(
    measurements: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="CSV or Parquet, a row per iteration of the engine: tokens (new ones), seqs, kv_tokens "
            "(contexts of the decoding requests, summed), pairs (query-key pairs of prompt chunks), seconds.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE.json", help="Where the coefficients go.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Fit the coefficients of the iteration time to measured iterations.

    Give the file to a scenario with `timing: {kind: fitted, path: FILE.json}` in a group of replicas.
    """
    from fairlead.calibrate import fit as fitting
    from fairlead.simulator.fitted import write_coefficients

    found = fitting.fit(fitting.read_measurements(measurements))
    report = {name: value for name, value in asdict(found).items() if name != "coefficients"}
    write_coefficients(out, found.coefficients, report)
    if json:
        print_json({"coefficients": found.coefficients._asdict(), **report})
        return
    print_table(
        ("coefficient", "value"),
        [(name, f"{value:.4g}") for name, value in found.coefficients._asdict().items()],
        right=("value",),
    )
    typer.echo(
        f"{found.rows} iterations of {found.tokens[0]} to {found.tokens[1]} new tokens: R^2 {found.r2:.4f}, "
        f"relative error mean {found.mean_relative_error:.2%}, p99 {found.p99_relative_error:.2%}, "
        f"largest {found.max_relative_error:.2%}"
    )
    for note in found.notes:
        say(f"note: {note}")
    say(f"coefficients: {out}")


def export_vidur(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model, for example llama-3-8b.", show_default=False),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="The device, for example a100-80g.", show_default=False)
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Devices per replica. Default: 1.", show_default=False),
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            "--scenario",
            "-s",
            metavar="NAME_OR_FILE",
            help="Instead of model and device: the replicas of a scenario, with its timing and engine.",
            show_default=False,
        ),
    ] = None,
    max_context: Annotated[
        int, typer.Option(min=64, metavar="N", help="Prompt and output of the longest request, tokens.")
    ] = 8192,
    granularity: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens to which Vidur rounds contexts up.")
    ] = 64,
    json: Json = False,
) -> None:
    """Write an iteration-time model as profiling data of the simulator Vidur, and say how Vidur is run on it.

    Vidur 0.0.26 then simulates the same hardware, without a network.
    """
    from fairlead.calibrate.export import check_known, export_vidur
    from fairlead.calibrate.operators import vidur_tables
    from fairlead.simulator import hardware
    from fairlead.simulator.fleet import build_fleet
    from fairlead.simulator.timing import analytic
    from fairlead.workload.scenario import EngineOptions
    from fairlead.workload.suites import load_variant

    described = {"--model": model, "--device": device, "--tensor-parallel": tensor_parallel}
    given = [option for option, value in described.items() if value is not None]
    if scenario is not None and given:
        raise FairleadError(f"--scenario says what a replica is: leave out {' and '.join(given)}")
    if scenario is None and (model is None or device is None):
        raise FairleadError("give either --scenario, or both --model and --device")
    if scenario is not None:
        chosen = load_variant(scenario)
        group, engine, facts = chosen.replicas[0], chosen.engine, hardware.model(chosen.model)
        if len(chosen.replicas) > 1:
            raise FairleadError(
                f"{chosen.name} has {len(chosen.replicas)} kinds of replicas, Vidur simulates equal ones: "
                "export a scenario with one kind, or run `fairlead evaluate --simulator vidur`"
            )
        check_known(facts.name, group.device)
        timing = build_fleet(chosen).model(0)
        name, parallel = group.device, group.tensor_parallel
    else:
        assert model is not None and device is not None
        facts, name, engine, parallel = hardware.model(model), device, EngineOptions(), tensor_parallel or 1
        check_known(facts.name, name)
        timing = analytic(facts, hardware.device(device), parallel)
    tables = vidur_tables(
        timing,
        max_tokens=engine.max_num_batched_tokens,
        max_seqs=engine.max_num_seqs,
        max_context=max_context,
        granularity=granularity,
    )
    written = export_vidur(tables, facts, name, parallel, engine.block_size, out)
    if json:
        print_json({"files": [str(path) for path in written.files], "vidur_options": written.options})
        return
    typer.echo("HF_HUB_OFFLINE=1 python -m vidur.main \\")
    typer.echo(" \\\n".join(f"    --{key} {value}" for key, value in written.options.items()))
    for path in written.files:
        say(f"written: {path}")


COMMANDS: dict[str, tuple[Callable[..., None], tuple[str, ...]]] = {
    "fit": (fit, ("fairlead calibrate fit --measurements iterations.csv --out coefficients.json",)),
    "export-vidur": (
        export_vidur,
        ("fairlead calibrate export-vidur --model llama-3-8b --device a100-80g --out vidur-profile",),
    ),
}
