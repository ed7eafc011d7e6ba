"""`fairlead replay-log`: a gateway's decision log becomes a scenario to train and evaluate on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairlead.cli.options import Json
from fairlead.cli.output import print_json, say
from fairlead.errors import FairleadError

if TYPE_CHECKING:
    from collections.abc import Iterable

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
    """Turn the decision log of `fairlead serve` into a scenario: the same arrivals, the same lengths.

    Requests whose answer was complete are taken, with the prompt and output lengths that backends reported.
    """
    import msgspec
    import yaml

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
    load_scenario(str(path))
    seconds = rows[-1][0] - first
    if json:
        print_json({"scenario": str(path), "requests": len(rows), "left_out": left_out, "seconds": seconds})
    else:
        say(f"{len(rows)} requests over {seconds:.0f} s ({left_out} lines left out): {path}")


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
