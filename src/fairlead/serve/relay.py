"""The answer of a backend on its way to the client: its head, its pieces, and what they tell in passing."""

from time import monotonic

from fairlead.serve.backend import Backend
from fairlead.serve.heads import LOAD_FORMAT, passed_on
from fairlead.serve.ledger import Entry, Ledger
from fairlead.serve.messages import VIA, Headers, status_line
from fairlead.serve.request import Request
from fairlead.serve.scraping import orca_reading
from fairlead.serve.tokens import TAIL_BYTES, EventMeter, Usage, find_usage
from fairlead.serve.totals import TotalsFilter


class Relay:
    """Passes one answer on. Once it is there, no other backend can answer the request."""

    __slots__ = (
        "_backend",
        "_chunked",
        "_entry",
        "_filter",
        "_first_at",
        "_head",
        "_last_at",
        "_ledger",
        "_meter",
        "_request",
        "_tail",
    )

    def __init__(self, request: Request, backend: Backend, entry: Entry, ledger: Ledger) -> None:
        """For the answer of `backend` to `request`, whose `entry` is in the `ledger`."""
        self._request = request
        self._backend = backend
        self._entry = entry
        self._ledger = ledger
        self._meter: EventMeter | None = None
        self._filter: TotalsFilter | None = None
        self._head = b""  # sent with the first piece of the body
        self._tail = b""
        self._chunked = False
        self._first_at = 0.0
        self._last_at = 0.0

    def begin(
        self,
        status: int,
        headers: Headers,
        length: int,
        *,
        request_id: bytes,
        head_only: bool,
        orca: bool,
        hide_totals: bool,
    ) -> None:
        """The head has come.

        Args:
            status: of the answer.
            headers: all that came.
            length: of the body, in bytes; -1 if it is not declared.
            request_id: told to the client.
            head_only: there will be no body, whatever the length.
            orca: backends are asked for load reports.
            hide_totals: the client does not know that `usage` was asked for.
        """
        request = self._request
        if not request.complete:
            request.close = True
        passed = passed_on(headers, hide_report=orca and not request.header(LOAD_FORMAT))
        if passed.report and orca:
            reading = orca_reading(passed.report)
            if reading is not None:
                self._ledger.reported(self._backend.row, *reading, monotonic())
        if passed.events and status == 200:
            self._meter = EventMeter()
            if hide_totals and not passed.encoded:
                self._filter = TotalsFilter()
                length = -1  # it would be too long
        framing = b""
        if length >= 0:
            framing = b"Content-Length: %d\r\n" % length
        elif head_only:
            pass
        elif request.old:
            request.close = True  # its end is told by closing
        else:
            self._chunked = True
            framing = b"Transfer-Encoding: chunked\r\n"
        if request.close:
            framing += b"Connection: close\r\n"
        elif request.old:
            framing += b"Connection: keep-alive\r\n"
        self._head = b"%b%b%bX-Request-Id: %b\r\nVia: %b%b\r\n\r\n" % (
            status_line(status),
            passed.lines,
            framing,
            request_id,
            passed.via,
            VIA,
        )

    def body(self, data: bytes, last: bool) -> float:
        """Pass a piece of the body on, empty if only the head has come, then count what it brings.

        Returns:
            The time, s (monotonic).
        """
        shown = data
        if self._filter is not None:
            shown = self._filter.feed(data) + (self._filter.rest() if last else b"")
        if self._chunked:
            shown = b"%x\r\n%b\r\n" % (len(shown), shown) if shown else b""
            if last:
                shown += b"0\r\n\r\n"
        # In one piece: each write is a system call, and wakes the client.
        out, self._head = self._head + shown, b""
        if out:
            self._request.connection.write(out)
        now = monotonic()
        meter = self._meter
        if meter is not None:
            new = meter.feed(data)
            if new:
                self._ledger.streamed(self._entry, new, now)
                if self._first_at == 0.0:
                    self._first_at = now
                    self._backend.ttft.observe(now - self._request.arrived)
                else:
                    self._backend.itl.observe((now - self._last_at) / new)
                self._last_at = now
        elif len(data) >= TAIL_BYTES:
            self._tail = data[-TAIL_BYTES:]
        else:
            self._tail = (self._tail + data)[-TAIL_BYTES:]
        return now

    def totals(self) -> tuple[Usage | None, int]:
        """What a complete answer said of its tokens, and how many of output there were."""
        meter = self._meter
        if meter is not None:
            return meter.usage, meter.tokens
        usage = find_usage(self._tail)
        return usage, max(usage.output_tokens, 0) if usage is not None else 0

    def cut(self) -> None:
        """End in the middle, visibly for the client."""
        self._request.connection.cut(visible=self._chunked or not self._request.old)

    @property
    def ttft(self) -> float:
        """Seconds from the request to the first token; 0 if none was seen."""
        return self._first_at - self._request.arrived if self._first_at else 0.0
