"""What the gateway writes down: one JSON line per request, and the decision log.

Lines are gathered and written in batches: a system call per request would cost more than the line itself.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

FLUSH_BYTES = 65_536


class JsonLines:
    """A file of JSON lines, written in batches and rotated by size."""

    def __init__(self, path: Path | None, max_bytes: int = 0) -> None:
        """Append to `path` (None: stdout); at `max_bytes` it is renamed to `NAME.1` and begun again."""
        self._path = path
        self._max_bytes = max_bytes
        self._encoder = msgspec.json.Encoder(decimal_format="number")
        self._buffer = bytearray()
        self._written = 0
        self._file: int | None = None
        if path is not None:
            self._open()

    def _open(self) -> None:
        assert self._path is not None
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._written = os.fstat(self._file).st_size

    def write(self, record: dict[str, Any]) -> None:
        """Add one line."""
        self._encoder.encode_into(record, self._buffer, len(self._buffer))
        self._buffer += b"\n"
        if len(self._buffer) >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write out what has been gathered."""
        if not self._buffer:
            return
        data, self._buffer = self._buffer, bytearray()
        if self._file is None:
            try:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            except (BrokenPipeError, ValueError):  # nobody reads the log: serving goes on
                pass
            return
        os.write(self._file, data)
        self._written += len(data)
        if self._max_bytes and self._written >= self._max_bytes:
            assert self._path is not None
            os.close(self._file)
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
            self._open()

    def close(self) -> None:
        """Write out the rest and close."""
        self.flush()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def timestamp() -> str:
    """Now in UTC, ISO 8601 with milliseconds."""
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"


class EventLog:
    """Events of the gateway itself (start, ejection, reload, ...), as JSON lines on stderr at once."""

    def __call__(self, event: str, **details: Any) -> None:
        """Write one event."""
        line = msgspec.json.encode({"time": timestamp(), "event": event, **details})
        sys.stderr.write(line.decode() + "\n")
        sys.stderr.flush()
