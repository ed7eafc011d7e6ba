"""What the gateway writes down: one JSON line per request, and the decision log.

Lines are gathered and written in batches: a system call per request would cost more than the line itself.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from fairlead.errors import FairleadError

FLUSH_BYTES = 65_536


class EventLog:
    """Events of the gateway itself (start, ejection, reload, ...), as JSON lines on stderr at once."""

    def __call__(self, event: str, **details: Any) -> None:
        """Write one event."""
        line = msgspec.json.encode({"time": timestamp(), "event": event, **details})
        with suppress(OSError, ValueError):  # nobody reads it, or it cannot be kept: serving goes on
            sys.stderr.write(line.decode() + "\n")
            sys.stderr.flush()


class JsonLines:
    """A file of JSON lines, written in batches and rotated by size.

    What cannot be written is lost, counted, and told once: a full disk must not end the serving.
    """

    def __init__(self, path: Path | None, max_bytes: int = 0, events: EventLog | None = None) -> None:
        """Append to `path` (None: stdout); at `max_bytes` it is renamed to `NAME.1` and begun again.

        Raises:
            FairleadError: if it cannot be opened.
        """
        self.lost = 0
        """Lines that could not be written."""
        self._failing = False
        self._events = events or EventLog()
        self._path = path
        self._max_bytes = max_bytes
        self._encoder = msgspec.json.Encoder(decimal_format="number")
        self._buffer = bytearray()
        self._written = 0
        self._file: int | None = None
        if path is not None:
            try:
                self._open(path)
            except OSError as error:
                raise FairleadError(f"cannot write the log {path}: {error.strerror}") from None

    def _open(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
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
        try:
            self._write_out(data)
            self._failing = False
        except (OSError, ValueError) as error:
            self.lost += data.count(b"\n")
            self._failed("its lines are lost", error)
            return
        if self._path is not None and self._max_bytes and self._written >= self._max_bytes:
            self._rotate(self._path)

    def _write_out(self, data: bytearray) -> None:
        if self._file is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        rest, size = memoryview(data), os.fstat(self._file).st_size
        try:
            while rest:  # a single call may write a part
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):  # no half a line stays: what is no file has no length
                os.ftruncate(self._file, size)
            raise
        self._written += len(data)

    def _rotate(self, path: Path) -> None:
        """Begin a new file; where that cannot be done the old one goes on, until it has doubled."""
        old = self._file
        assert old is not None
        try:
            with suppress(FileNotFoundError):  # renamed already, when it could not be begun again
                os.replace(path, path.with_name(path.name + ".1"))
            self._open(path)
        except OSError as error:
            self._written = 0
            self._failed("it is not rotated", error)
            return
        os.close(old)

    def _failed(self, what: str, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            self._events("log_failed", log=str(self._path or "stdout"), what=what, error=str(error))

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
