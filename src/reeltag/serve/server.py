"""Listen until told to end."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from reeltag.errors import UsageError

_GRACE = 5  # seconds that requests in flight have when the service is to end


class _Server(uvicorn.Server):
    """Says when it is ready, and ends with 0 when it is told to end."""

    def __init__(self, config: uvicorn.Config, ready: str) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
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
        app, access_log=False, log_config=None, lifespan="on", timeout_graceful_shutdown=_GRACE, server_header=False
    )
    _Server(config, f"{name}: http://{host}:{port} (Ctrl-C ends it)").run(sockets=[listener])
