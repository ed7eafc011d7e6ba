"""Sending at once: what has been written leaves before its books are kept, not after.

An event loop may gather what is written and send it when all that has come is dealt with (uvloop does).
Here that would let each request and each answer wait for the books of those before it, and for its own.
"""

import asyncio
import os


def descriptor(transport: asyncio.Transport) -> int:
    """The socket that `send` may write to; -1 if all has to go through the transport (TLS)."""
    if transport.get_extra_info("sslcontext") is not None:
        return -1
    found: int = transport.get_extra_info("socket").fileno()
    return found


def send(transport: asyncio.Transport, fd: int, data: bytes) -> None:
    """Write `data` to the socket `fd` of `transport`, and what it does not take to the transport.

    Errors are left to the transport, which meets them again and tells its protocol. Once that is closing,
    what is written is lost, and its descriptor may soon be another connection's.
    """
    if transport.is_closing():
        return
    if fd < 0 or transport.get_write_buffer_size():
        transport.write(data)
        return
    try:
        sent = os.write(fd, data)
    except OSError:
        sent = 0
    if sent < len(data):
        transport.write(memoryview(data)[sent:])
