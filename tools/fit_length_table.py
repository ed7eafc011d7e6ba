"""Boils a request trace down to a length table that a scenario can name.

    python tools/fit_length_table.py trace.csv --name mine --source "our gateway, May" --out mine.json

The trace is a CSV file in the Azure or Vidur format (times are not needed). The table is a few kilobytes
of JSON: quantiles of prompt and output lengths and their rank correlation. Name its path in a scenario
(`lengths: {kind: empirical, table: mine.json}`), relative to the scenario file.
"""

import argparse
import json
import sys
from pathlib import Path

from fairlead.errors import FairleadError
from fairlead.workload.tables import fit_table
from fairlead.workload.traces import read_lengths


def main() -> int:
    """Fits and writes one table; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path, help="CSV file in the Azure or Vidur format")
    parser.add_argument("--name", required=True, help="the table's name")
    parser.add_argument("--source", required=True, help="where the trace comes from, in a sentence")
    parser.add_argument("--licence", default="not stated", help="the trace's licence")
    parser.add_argument("--out", required=True, type=Path, help="the JSON file to write; must not exist yet")
    arguments = parser.parse_args()
    try:
        lengths = read_lengths(arguments.trace)
        table = fit_table(*lengths, name=arguments.name, source=arguments.source, licence=arguments.licence)
        if arguments.out.exists():
            raise FairleadError(f"{arguments.out} exists already; choose another --out or delete it")
        fields = table.model_dump()
        # One key per line: compact, and a change shows in a diff.
        body = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in fields.items())
        arguments.out.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")
    except (FairleadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
