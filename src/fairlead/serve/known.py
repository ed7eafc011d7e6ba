"""Heads of messages that were seen before: most of a client's are alike, and most of a backend's.

llhttp reads every head that is new, and every message that comes in pieces or in chunks. What it has accepted
once says the same when it comes again, byte for byte, another number in its `Content-Length` aside: then it
need not be read again, nor be examined. What one message has said is kept by the head without that number.
"""

from typing import TypeVar

MOST = 512
"""Heads that are kept of each kind; then they are gathered anew, so that clients cannot fill the memory."""
_MOST_BYTES = 8192
"""Of a head that is kept."""
_MOST_DIGITS = 15

T = TypeVar("T")


def cut_length(data: bytes) -> tuple[bytes, int, int] | None:
    """The head at the beginning of `data` without the number of its `Content-Length`, that number, its size.

    None if it is incomplete or long, or if there is no such header in its plain form. A second one is left
    for llhttp to refuse: so is whatever else is wrong, for no head is known that it has not accepted.
    """
    end = data.find(b"\r\n\r\n", 0, _MOST_BYTES) + 4
    if end == 3:
        return None
    at = data.find(b"ontent-Length: ", 0, end)
    if at < 0:
        at = data.find(b"ontent-length: ", 0, end)
    if at < 3 or data[at - 3 : at] not in (b"\r\nC", b"\r\nc"):
        return None
    at += 15
    stop = data.find(b"\r", at)
    digits = data[at:stop]
    if stop - at > _MOST_DIGITS or not digits.isdigit():
        return None
    return data[:at] + data[stop:end], int(digits), end


def keep(known: dict[bytes, T], alike: bytes, head: T) -> None:
    """Put down what the `head` that is `alike` but for its length has said."""
    if len(known) >= MOST:
        known.clear()
    known[alike] = head
