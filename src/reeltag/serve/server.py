"""Listen until told to end."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from reeltag.core.errors import UsageError

_GRACE = 5  # seconds that requests in flight have when the service is to end
_HEAD = 10  # seconds in which a request's head comes, from the connection or from the answer before
_REST = 2  # seconds that a client may go on sending the body of a request that was answered already
_UNREAD = 30  # seconds that a client may leave an answer unread
_TAKEN, _QUEUE = 100, 2048  # connections that are taken at once, and that wait for it


class _Connection(H11Protocol):
    """Ends with a client that does not send what it has begun.

    uvicorn itself ends what is idle after an answer, and nothing else: it waits for the first byte of a connection, for
    the rest of a head and for that of a refused body without end. Where there are too many connections, the one that
    is idle for longest gives way.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(_HEAD, self._end_if_idle)
        if len(self.connections) > _most_connections():
            idle = [each for each in self.connections if isinstance(each, _Connection) and each._is_idle]
            min(idle, key=lambda each: each._late.when()).transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._late.cancel()
        sending = self.conn.their_state is h11.SEND_BODY
        self._late = self.loop.call_later(_REST if sending else _HEAD, self._end_if_idle)
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in self.headers}:
            self.transport.close()  # where its body ends is a matter of opinion, and so is what a next request is
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        # The rest of a body that was refused may be malformed too.
        answered = self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE)
        self.transport.close() if answered else super().send_400_response(msg)

    @property
    def _is_idle(self) -> bool:
        return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

    def _end_if_idle(self) -> None:
        if self._is_idle:
            self.transport.close()


def _most_connections() -> int:
    """Fewer than the files that may be open: where none is left for a connection, asyncio fills the log."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(_TAKEN, files - 5 * _TAKEN)  # four times that many may be taken until one that gave way is closed


class _Server(uvicorn.Server):
    """Says when it is ready, and ends with 0 when it is told to end."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_QUEUE)  # asyncio takes at once as many as it was told to let wait
        print(self._ready, flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The base class raises the signal again once all is answered, which would be the exit code.
        def end(number: int, frame: FrameType | None) -> None:
            self.handle_exit(number, frame)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UsageError: the address is not to be had.
    """
    if not 0 <= port < 65536:
        raise UsageError(f"port {port}: must be from 0, for any that is free, to 65535; choose another --port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # asyncio turns Nagle's delay off only where the protocol is said to be TCP.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(protocol, socket.TCP_USER_TIMEOUT, 1000 * _UNREAD)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # a host may be no name at all
        raise UsageError(f"cannot listen at {host}, port {port} ({error}); choose another --host or --port") from error
    return listener


def run(app: ASGIApp, listener: socket.socket, name: str) -> None:
    """Answer requests until SIGINT or SIGTERM; what is in flight then is answered first.

    Args:
        app: the application.
        listener: the socket, which takes connections from now on.
        name: of the model, for the line that tells the address.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        http=_Connection,
        ws="none",
        backlog=_TAKEN,
        access_log=False,
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )
    _Server(config, f"{name}: http://{host}:{port} (Ctrl-C ends it)").run(sockets=[listener])
