"""The per-request file: one row for each request of each run, in Parquet.

Written run by run, one row group each, so memory stays bounded by one run, however large the tournament. The
file appears under its name only when it is complete.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fairlead.errors import FairleadError
from fairlead.evaluate.files import REQUESTS_FILE
from fairlead.evaluate.results import Configuration
from fairlead.files import atomic
from fairlead.simulator.outcomes import FloatArray, Outcomes

HASH_KEY = b"fairlead_configuration_hash"

_TIMES = ("arrival_s", "first_token_s", "finish_s")
_LABELS = ("scenario", "router")
SCHEMA = pa.schema(
    [
        ("scenario", pa.string()),
        ("load", pa.float64()),
        ("router", pa.string()),
        ("seed", pa.int64()),
        ("request", pa.int64()),
        ("arrival_s", pa.float64()),
        ("prompt_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("replica", pa.int32()),
        ("first_token_s", pa.float64()),
        ("finish_s", pa.float64()),
        ("preemptions", pa.int32()),
        ("retries", pa.int32()),
    ]
)


class RequestWriter:
    """Writes `requests.parquet` run by run.

    Use it as a context manager; if the block raises, no file is left behind:

        with RequestWriter(directory, configuration) as writer:
            writer.write("chat-equal", 0.7, "lor", 0, outcomes)
    """

    def __init__(self, directory: str | Path, configuration: Configuration) -> None:
        """Prepare to write into `directory`; the file's metadata will carry the configuration's hash."""
        self.path = Path(directory) / REQUESTS_FILE
        self._schema = SCHEMA.with_metadata({HASH_KEY: configuration.hash().encode()})
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        """Open the file under a temporary name."""
        partial = self._stack.enter_context(atomic(self.path))
        self._writer = self._stack.enter_context(
            pq.ParquetWriter(
                partial,
                self._schema,
                compression="zstd",
                # Times have few repeated values: splitting their bytes compresses better than a dictionary.
                use_dictionary=[name for name in SCHEMA.names if name not in _TIMES],
                use_byte_stream_split=list(_TIMES),
            )
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file and give it its name, or remove it if there was an error."""
        self._writer = None
        self._stack.__exit__(kind, error, trace)

    def write(self, scenario: str, load: float, router: str, seed: int, outcomes: Outcomes) -> None:
        """Append one run."""
        if self._writer is None:
            raise RuntimeError("RequestWriter must be used in a with statement")
        size = len(outcomes)
        constants = {"scenario": scenario, "load": load, "router": router, "seed": seed}
        columns = []
        for field in SCHEMA:
            if field.name in constants:
                columns.append(pa.repeat(pa.scalar(constants[field.name], field.type), size))
            elif field.name == "request":
                columns.append(pa.array(np.arange(size), field.type))
            else:
                columns.append(pa.array(getattr(outcomes, field.name), field.type))
        self._writer.write_table(
            pa.Table.from_arrays(columns, schema=self._schema), row_group_size=max(size, 1)
        )


def configuration_hash(directory: str | Path) -> str:
    """The hash of the configuration that made the file in `directory`."""
    path = Path(directory) / REQUESTS_FILE
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise FairleadError(f"cannot read {path}: {error}") from error
    if HASH_KEY not in metadata:
        raise FairleadError(f"{path} was not written by Fairlead: it carries no configuration hash")
    value: bytes = metadata[HASH_KEY]
    return value.decode()


def read_requests(
    directory: str | Path,
    scenario: str,
    load: float,
    router: str,
    columns: Sequence[str] = SCHEMA.names,
) -> dict[str, FloatArray]:
    """Some columns of one router's requests in one setting, all seeds one after the other, as float64 arrays.

    Strings are left out. Only the row groups of that setting are read.
    """
    path = Path(directory) / REQUESTS_FILE
    wanted = [name for name in columns if name not in _LABELS]
    try:
        table = pq.read_table(
            path,
            columns=wanted,
            filters=[("scenario", "=", scenario), ("load", "=", load), ("router", "=", router)],
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise FairleadError(f"cannot read {path}: {error}") from error
    if not table.num_rows:
        raise FairleadError(f"{path} holds no requests of {router} for {scenario} at load {load:g}")
    return {name: table[name].to_numpy().astype(np.float64) for name in wanted}
