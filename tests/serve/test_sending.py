"""Sending at once: in order, whole, and with errors where the transport has them."""

import asyncio
import socket
from typing import Any

import pytest
import uvloop

from fairlead.serve.sending import descriptor, send

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


class Sender(asyncio.Protocol):
    """Knows its transport, and when it was told that the connection is over."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.paused = False

    def connection_made(self, transport: Any) -> None:
        self.transport, self.fd = transport, descriptor(transport)

    def pause_writing(self) -> None:
        self.paused = True

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set_result(error)


async def connected(here: socket.socket) -> Sender:
    _, sender = await asyncio.get_running_loop().create_connection(Sender, sock=here)
    return sender


def pair() -> tuple[socket.socket, socket.socket]:
    here, there = socket.socketpair()
    here.setblocking(False)
    return here, there


@pytest.mark.parametrize("new_loop", LOOPS)
def test_it_has_left_before_the_loop_goes_on(new_loop):
    async def main() -> None:
        here, there = pair()
        sender = await connected(here)
        send(sender.transport, sender.fd, b"hello")
        there.setblocking(False)
        assert there.recv(100) == b"hello"  # nothing was awaited
        sender.transport.close()
        await sender.lost
        there.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_what_the_socket_does_not_take_follows_in_order(new_loop):
    """A slow reader: the rest waits in the transport, which says so, and what comes later waits behind it."""
    pieces = [bytes([65 + i]) * size for i, size in enumerate((3_000_000, 1, 70_000, 5))]

    async def main() -> None:
        here, there = pair()
        sender = await connected(here)
        for piece in pieces:
            send(sender.transport, sender.fd, piece)
        assert sender.transport.get_write_buffer_size() > 0
        await asyncio.sleep(0)
        assert sender.paused
        read = asyncio.to_thread(read_all, there)
        sender.transport.close()
        assert await read == b"".join(pieces)
        assert await sender.lost is None

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_peer_that_has_gone_is_the_transports_to_tell(new_loop):
    async def main() -> None:
        here, there = pair()
        sender = await connected(here)
        there.close()
        for _ in range(3):
            send(sender.transport, sender.fd, b"x" * 1000)
            await asyncio.sleep(0.01)
        await asyncio.wait_for(sender.lost, 5)
        assert sender.transport.is_closing()
        # The descriptor may be somebody else's by now: nothing is written to it any more.
        mine, other = socket.socketpair()
        send(sender.transport, mine.fileno(), b"not for you")
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(100)
        mine.close()
        other.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def read_all(there: socket.socket) -> bytes:
    there.settimeout(10)
    found = []
    while data := there.recv(1 << 20):
        found.append(data)
    there.close()
    return b"".join(found)
