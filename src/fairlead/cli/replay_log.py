"""`fairlead replay-log`: a gateway's decision log becomes a scenario to train and evaluate on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.options import Json
from fairlead.cli.output import print_json, say
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

EXAMPLES = ("fairlead replay-log decisions.jsonl --scenario chat-unequal --out mine",)


def command(
    log: Annotated[
        Path,
        typer.Argument(metavar="DECISIONS.jsonl", help="What `logs.decisions` wrote.", show_default=False),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="A new folder for scenario.yaml and requests.csv.", show_default=False
        ),
    ],
    scenario: Annotated[
        str,
        typer.Option(
            "--scenario",
            "-s",
            metavar="NAME_OR_FILE",
            help="The scenario whose replicas are taken over; its workload gives way to the log's.",
            show_default=False,
        ),
    ],
    json: Json = False,
) -> None:
    """Turn the decision log of `fairlead serve` into a scenario: the same requests in the same rhythm.

    Requests whose answer was complete are taken, with the prompt and output lengths that backends reported.
    The load sets the rate; the scenario's own load is the log's rate, as a fraction of measured capacity.
    """
    import msgspec
    import yaml

    from fairlead.cli.first_run import capacity
    from fairlead.workload.scenario import load_scenario
    from fairlead.workload.suites import load_variant

    base = load_variant(scenario)
    if not log.is_file():
        raise FairleadError(f"there is no file {log}")
    if out.exists():
        raise FairleadError(f"{out} exists already: name a new folder")
    rows, left_out = _rows(log.read_bytes().splitlines(), msgspec.json.decode)
    if not rows:
        raise FairleadError(f"{log} holds no complete answer with known lengths ({left_out} lines left out)")
    rows.sort()
    out.mkdir(parents=True)
    first = rows[0][0]
    lines = [f"{at - first:.6f},{prompt},{output}" for at, prompt, output in rows]
    header = "arrived_at,num_prefill_tokens,num_decode_tokens"
    (out / "requests.csv").write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    content: dict[str, Any] = base.model_dump(mode="json", exclude_unset=True)
    content.pop("name", None)
    content["description"] = f"Requests of {log.name}, on the replicas of {base.name}."
    content["workload"] = {
        "arrivals": {"kind": "replay", "path": "requests.csv"},
        "lengths": {"kind": "trace", "path": "requests.csv"},
    }
    path = out / "scenario.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    seconds = rows[-1][0] - first
    found = load_scenario(str(path))
    load, unused = _load(len(rows), seconds, lambda: capacity(found))
    if load is not None:
        content["loads"] = [load]
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    loads = list(found.loads) if load is None else [load]
    if json:
        print_json(
            {
                "scenario": str(path),
                "requests": len(rows),
                "left_out": left_out,
                "seconds": seconds,
                "loads": loads,
            }
        )
        return
    kept = f"{unused}, so the loads are those of {base.name}: {', '.join(f'{each:g}' for each in loads)}"
    at = f"load {load:g} of the measured capacity" if load is not None else kept
    say(f"{len(rows)} requests over {seconds:.0f} s ({left_out} lines left out), {at}: {path}")


def _load(count: int, seconds: float, capacity: "Callable[[], float]") -> tuple[float | None, str]:
    """The load at which `count` requests over so many seconds arrive as fast as they did.

    None, and why, where there is no such load: a single moment has no rate, and a load has its range.
    The capacity, in requests/s, is measured only where it is needed.
    """
    from fairlead.workload.scenario import check_load

    if seconds <= 0:
        return None, "a single moment has no rate"
    rate = (count - 1) / seconds
    load = float(f"{rate / capacity():.3g}")
    try:
        return check_load(load), ""
    except FairleadError:
        return None, f"{rate:.3g} requests/s would be load {load:g}, which is out of range"


def _rows(lines: "Iterable[bytes]", decode: Any) -> tuple[list[tuple[float, int, int]], int]:
    """(arrival s, prompt tokens, output tokens) of the complete answers, and how many lines were left out."""
    rows, left_out = [], 0
    for line in lines:
        try:
            record = decode(line)
            prompt = record["prompt_tokens"] or record["request"][0]
            row = (float(record["at_s"]), int(prompt), int(record["output_tokens"]))
            good = record["outcome"] == "ok" and record["status"] == 200 and row[1] > 0 and row[2] > 0
        except (ValueError, KeyError, TypeError, IndexError):
            good = False
        if good:
            rows.append(row)
        else:
            left_out += 1
    return rows, left_out
