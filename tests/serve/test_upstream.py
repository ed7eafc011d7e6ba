"""Connections to backends; what goes wrong on them: `test_faults.py`, `test_edge.py`."""

import asyncio

import pytest

from fairlead.serve.backend import Backend, pool_for
from fairlead.serve.fetch import get
from fairlead.serve.ledger import Ledger
from fairlead.serve.settings import BackendSettings, Timeouts


def test_connections_that_have_been_closed_are_not_made_again() -> None:
    async def scene() -> None:
        made = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal made
            made += 1
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            await reader.read()
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            settings = BackendSettings(url=f"http://127.0.0.1:{port}")
            backend = Backend(settings, Ledger(0.0), pool_for(settings, Timeouts()))
            assert await get(backend, "/", 5.0) == (200, b"ok")
            backend.close()
            with pytest.raises(OSError, match="not used any more"):
                await get(backend, "/", 5.0)
            assert made == 1 and not backend.pool.connections

    asyncio.run(scene())
