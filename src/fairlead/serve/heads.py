"""The heads of requests and answers on their way through: which headers are passed on, which are added."""

from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

from fairlead.serve.messages import CONTEXT_HEADERS, HOP_BY_HOP, VIA, Headers, named_in_connection

if TYPE_CHECKING:
    from fairlead.serve.backend import Backend
    from fairlead.serve.request import Request

_DROPPED_FROM_REQUEST = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"x-request-id",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"via",
}
_DROPPED_FROM_ANSWER = HOP_BY_HOP | {b"content-length", b"x-request-id", b"via"}

LOAD_FORMAT = b"endpoint-load-metrics-format"
"""The header by which a backend is asked for a load report (ORCA)."""


_REQUEST = (
    b"%b %b%b HTTP/1.1\r\nHost: %b\r\n%b%bX-Request-Id: %b\r\n"
    b"X-Forwarded-For: %b%b\r\nX-Forwarded-Proto: %b\r\nVia: %b%b\r\n"
)


def request_head(
    request: "Request",
    backend: "Backend",
    request_id: bytes,
    *,
    keyed: bool,
    orca: bool,
    plain: bool,
    context: Headers | None,
) -> bytes:
    """What `backend` is sent first: the line that says how long the body is, and an empty one, follow.

    Args:
        request: of the client.
        backend: where it goes.
        request_id: by which both sides may find it again.
        keyed: the client's `Authorization` was meant for the gateway.
        orca: ask for a load report.
        plain: the answer must not be compressed: its events are to be read on the way.
        context: headers that say which trace it belongs to; None: it is not traced.
    """
    # An `Authorization` was meant for the gateway, where it is asked for or a backend has its own.
    which = (context is not None, keyed or bool(backend.authorization), plain, orca)
    known = request.known
    kept = known.kept.get(which) if known is not None else None
    if kept is None:
        kept = _kept(request, *which)
        if known is not None:
            known.kept[which] = kept
    own = b""
    if backend.authorization:
        own = b"Authorization: %b\r\n" % backend.authorization
    for _, name, value in context or ():
        own += b"%b: %b\r\n" % (name, value)
    headers, first = request.headers, request.first
    forwarded = _all(headers, b"x-forwarded-for") if b"x-forwarded-for" in first else b""
    via = _all(headers, b"via") if b"via" in first else b""
    connection = request.connection
    scheme = b"https" if connection.secure else b"http"
    return _REQUEST % (
        request.method,
        backend.prefix,
        request.target,
        backend.authority,
        kept,
        own,
        request_id,
        forwarded,
        connection.peer,
        scheme,
        via,
        VIA,
    )


def _kept(request: "Request", traced: bool, authorized: bool, plain: bool, orca: bool) -> bytes:
    """What is passed on of a request's headers, with a question for a load report if `orca`."""
    headers = request.headers
    dropped = _dropped(traced, authorized, plain)
    if b"connection" in request.first:
        dropped |= named_in_connection(headers)
    lines = [name + b": " + value + b"\r\n" for lower, name, value in headers if lower not in dropped]
    if orca and not request.header(LOAD_FORMAT):
        lines.append(LOAD_FORMAT + b": TEXT\r\n")
    return b"".join(lines)


@cache
def _dropped(traced: bool, authorized: bool, plain: bool) -> frozenset[bytes]:
    """Headers of a request that are not passed on."""
    dropped = _DROPPED_FROM_REQUEST
    if traced:
        dropped |= CONTEXT_HEADERS
    if authorized:
        dropped |= {b"authorization"}
    if plain:
        dropped |= {b"accept-encoding"}
    return dropped


def _all(headers: Headers, name: bytes) -> bytes:
    """The values of all headers of this name, with a comma after each."""
    return b"".join(value + b", " for lower, _, value in headers if lower == name)


class Passed(NamedTuple):
    """What is passed on of an answer's headers, and what they say."""

    lines: bytes
    """Each with its line end."""
    via: bytes
    """Who has passed it on before, with a comma after each."""
    events: bool
    """The body is a stream of events."""
    encoded: bool
    """The body is compressed."""
    report: bytes
    """The backend's load report (ORCA); empty if there is none."""


def passed_on(headers: Headers, *, hide_report: bool) -> Passed:
    """Read an answer's `headers`; `hide_report`: its load report is for the gateway alone."""
    return _passed_on(tuple(headers), hide_report)


@lru_cache(256)  # a backend's answers are much alike
def _passed_on(headers: tuple[tuple[bytes, bytes, bytes], ...], hide_report: bool) -> Passed:
    lines = []
    events = encoded = False
    via = report = b""
    named: frozenset[bytes] = frozenset()
    for lower, name, value in headers:
        if lower in _DROPPED_FROM_ANSWER:
            if lower == b"via":
                via += value + b", "
            elif lower == b"connection":
                named = named_in_connection(headers)
            continue
        if lower == b"content-type":
            events = value.startswith(b"text/event-stream")
        elif lower == b"content-encoding":
            encoded = True
        elif lower == b"endpoint-load-metrics":
            report = value
            if hide_report:
                continue
        lines.append(name + b": " + value + b"\r\n")
    if named:
        lines = [each for each in lines if each.partition(b":")[0].lower() not in named]
    return Passed(b"".join(lines), via, events, encoded, report)
