"""Asking for the totals of a stream that did not ask for them, and keeping them from its client.

vLLM merges tokens into one event under pressure; only `usage` tells how many there were. It comes in an event
of its own, without choices, to those who ask. A client that did not ask may not expect such an event: many
read `choices[0]` of each.
"""

import re

from fairlead.serve.tokens import MAX_EVENT_BYTES, is_total

TOTALLED = frozenset((b"/v1/completions", b"/v1/chat/completions"))
"""Paths whose requests have `stream_options`."""

_EVENT = re.compile(rb".*?\r?\n\r?\n", re.DOTALL)
_ASKING = b'"stream_options":{"include_usage":true},'


def asking(body: bytes) -> bytes:
    """The same request, with `stream_options`; `body` is an object with other keys."""
    begin = body.index(b"{") + 1
    return body[:begin] + _ASKING + body[begin:]


class TotalsFilter:
    """Takes the event with the totals out of a stream, and passes on every other byte."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        """Nothing has come."""
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Take the next piece; returns what the client may see now: whole events."""
        if self._held:
            data = self._held + data
        plain, framed = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
        if plain < 0 and framed < 0:
            if len(data) > MAX_EVENT_BYTES:
                self._held = b""
                return data
            self._held = data
            return b""
        end = max(plain + 2, framed + 4) if framed >= 0 else plain + 2
        self._held = data[end:]
        shown = data[:end]
        if b'"usage"' not in shown:
            return shown
        return b"".join(event for event in _EVENT.findall(shown) if not is_total(event))

    def rest(self) -> bytes:
        """What is left when the stream has ended."""
        held, self._held = self._held, b""
        return b"" if is_total(held) else held
