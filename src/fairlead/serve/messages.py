"""The parts of HTTP/1.1 that both sides share: which headers are passed on, and the gateway's own answers."""

import http
from collections.abc import Iterable

import msgspec

CONTEXT_HEADERS = frozenset((b"traceparent", b"tracestate"))
"""Which trace a request belongs to (W3C Trace Context)."""
HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"expect",
        b"http2-settings",
    )
)
"""Headers that concern one connection only (RFC 9110, section 7.6.1): never passed on."""

Headers = list[tuple[bytes, bytes, bytes]]
"""(lower-case name, name as sent, value)."""

NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are no JSON, or nested without end."""

VIA = b"1.1 fairlead"

_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_LINES = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"Unknown")) for status in range(100, 600)
}


_NONE: frozenset[bytes] = frozenset()
_NEVER_NAMED = {b"close", b"keep-alive", b"host", b"content-length", b"content-type", b"authorization"}


def status_line(status: int) -> bytes:
    """The first line of an answer, with its line end."""
    return _LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def named_in_connection(headers: Iterable[tuple[bytes, bytes, bytes]]) -> frozenset[bytes]:
    """The further headers that a `Connection` header declares hop-by-hop."""
    names = _NONE
    for lower, _, value in headers:
        if lower == b"connection" and value != b"keep-alive":
            names |= {part.strip().lower() for part in value.split(b",")}
    return names - _NEVER_NAMED if names else names


def error_body(status: int, message: str, kind: str) -> bytes:
    """An error as OpenAI's API and vLLM report it."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": status}})


def answer(
    status: int,
    body: bytes,
    *,
    content_type: bytes = b"application/json",
    headers: Iterable[tuple[bytes, bytes]] = (),
    close: bool = False,
    head_only: bool = False,
) -> bytes:
    """A complete answer of the gateway's own."""
    lines = [status_line(status), b"Content-Type: ", content_type, b"\r\nContent-Length: %d\r\n" % len(body)]
    lines += [b"%b: %b\r\n" % each for each in headers]
    if close:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    if not head_only:
        lines.append(body)
    return b"".join(lines)
