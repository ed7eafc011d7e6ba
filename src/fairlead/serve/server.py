"""The process around a gateway: sockets, signals, shutdown."""

import asyncio
import gc
import signal
import ssl
from collections.abc import Callable
from time import monotonic

from fairlead.errors import FairleadError
from fairlead.serve.admin import Administration
from fairlead.serve.discovery import Discovery
from fairlead.serve.frontend import Application, ClientConnection
from fairlead.serve.gateway import Gateway
from fairlead.serve.monitor import Monitor
from fairlead.serve.settings import GatewaySettings, Tls

AT_START = ("host", "port", "admin", "logs", "prefixes", "traces")
"""Settings that are taken up when the process starts, and not again."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The server side of TLS with the given certificate.

    Raises:
        FairleadError: if the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
    except (OSError, ssl.SSLError) as error:
        raise FairleadError(f"TLS: {tls.certificate} and {tls.key} cannot be used: {error}") from None
    return context


class Server:
    """A gateway that listens."""

    def __init__(
        self, settings: GatewaySettings, reload: Callable[[], GatewaySettings] | None = None
    ) -> None:
        """Make the gateway; `start` begins to listen.

        Args:
            settings: all of them.
            reload: reads the settings anew, for SIGHUP.

        Raises:
            FairleadError: for settings that cannot be used.
        """
        self.gateway = Gateway(settings)
        self.monitor = Monitor(self.gateway)
        self.discovery = Discovery(self.gateway)
        self._reload = reload
        self._began_with = settings
        self._tls = tls_context(settings.tls) if settings.tls is not None else None
        self._listeners: list[asyncio.Server] = []
        self._stopping = asyncio.Event()
        self.port = 0
        """The port in use, once started."""
        self.admin_port = 0
        """Likewise for the admin API; 0 if there is none."""
        self._administration: Administration | None = None

    async def start(self) -> None:
        """Listen for clients.

        Raises:
            FairleadError: if the port cannot be had.
        """
        settings = self.gateway.settings
        secure = self._tls is not None
        self.port = await self.listen(
            self.gateway, settings.host, settings.port, secure=secure, context=self._tls
        )
        if settings.admin is not None:
            administration = Administration(self.gateway, self.monitor, settings.admin.token)
            self.admin_port = await self.listen(administration, settings.admin.host, settings.admin.port)
            self._administration = administration
            self.monitor.applications.append(administration)
        self.monitor.start()
        self.discovery.start()
        gc.collect()
        gc.freeze()  # what is there now stays: no later collection needs to look at it

    async def listen(
        self,
        application: Application,
        host: str,
        port: int,
        *,
        secure: bool = False,
        context: ssl.SSLContext | None = None,
    ) -> int:
        """Serve `application` on a port (0: any free one); returns it.

        Raises:
            FairleadError: if it cannot be had.
        """
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                lambda: ClientConnection(application, secure=secure),
                host,
                port,
                ssl=context,
                backlog=4096,
            )
        except OSError as error:
            raise FairleadError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT drain and stop (the second one at once); SIGHUP reads the settings again."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        if self._reload is not None:
            loop.add_signal_handler(signal.SIGHUP, self.reload)

    def stop(self) -> None:
        """Begin to drain; called again, give up on what is in flight."""
        if self.gateway.draining:
            self._hurry = True
        self.gateway.draining = True
        self._stopping.set()

    def reload(self) -> None:
        """Read the settings again, and the certificate; on an error the old ones stay in force.

        The event names what waits for a restart.
        """
        assert self._reload is not None
        events = self.gateway.events
        try:
            settings = self._reload()
            if settings.tls is not None and self._tls is not None:
                tls_context(settings.tls)  # can it be used?
            self.gateway.reload(settings)
        except FairleadError as error:
            events("reload_failed", error=str(error))
            return
        if settings.tls is not None and self._tls is not None:
            self._tls.load_cert_chain(settings.tls.certificate, settings.tls.key)
        later = [name for name in AT_START if getattr(settings, name) != getattr(self._began_with, name)]
        if (settings.tls is None) is not (self._tls is None):
            later.append("tls")
        self.monitor.follow()
        names = [backend.name for backend in self.gateway.backends]
        events("reloaded", backends=names, **({"needs_restart": later} if later else {}))

    _hurry = False

    async def serve(self) -> None:
        """Serve until `stop`, then drain: no new connections, answers in flight to their end."""
        await self._stopping.wait()
        gateway = self.gateway
        gateway.events("draining", in_flight=len(gateway.exchanges))
        for listener in self._listeners:
            listener.close()
        end = monotonic() + gateway.timeouts.drain
        while gateway.exchanges and monotonic() < end and not self._hurry:
            for connection in [each for each in gateway.connections if each.idle]:
                connection.finish()
            await asyncio.sleep(0.02)
        await self.close()

    async def close(self) -> None:
        """Close everything at once; requests still in flight are cut off."""
        gateway = self.gateway
        gateway.draining = True
        for listener in self._listeners:
            listener.close()
        await self.discovery.stop()
        await self.monitor.stop()
        cut = len(gateway.exchanges)
        for connection in list(gateway.connections):
            if connection.idle:
                connection.finish()
            else:
                connection.abort()
        await asyncio.sleep(0.05)  # closing takes a turn or two of the loop
        for connection in list(gateway.connections):
            connection.abort()
        if self._administration is not None:
            for connection in list(self._administration.connections):
                connection.abort()
        for backend in gateway.backends:
            backend.close()
        await asyncio.sleep(0)
        if gateway.traces is not None:
            await asyncio.to_thread(gateway.traces.close)
        if gateway.counter is not None:
            gateway.counter.close()
        for log in (gateway.requests_log, gateway.decisions_log):
            if log is not None:
                log.close()
        gateway.events("stopped", cut=cut)
