"""Listen at an address and serve an application until SIGINT or SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket

import uvicorn
from starlette.types import ASGIApp

from reeltag.core.errors import UsageError
from reeltag.serve.connection import ACCEPTED_AT_ONCE, Connection, Tracked

GRACE_SECONDS = 5  # for requests in flight when the service is to end
UNREAD_SECONDS = 30  # that a client may leave an answer unread
_QUEUE = 2048  # connections that wait in the kernel until they are accepted
_ONCE = 10**9  # seconds between two calls of `ready`, so that there is one


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Args:
        host: name or address; IPv4 or IPv6.
        port: 0 for any that is free.

    Raises:
        UsageError: the address is not available.
    """
    if not 0 <= port < 65536:
        raise UsageError(f"port {port}: must be from 0 (any free port) to 65535; choose another --port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        # asyncio turns Nagle's delay off only where the protocol of the socket says TCP.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            listener.setsockopt(protocol, socket.TCP_USER_TIMEOUT, 1000 * UNREAD_SECONDS)
        listener.bind(address)
    except (OSError, UnicodeError) as error:  # UnicodeError: the host cannot be encoded as a domain name
        raise UsageError(f"cannot listen at {host}, port {port} ({error}); choose another --host or --port") from error
    return listener


def run(app: ASGIApp, listener: socket.socket, name: str) -> None:
    """Answer requests until SIGINT or SIGTERM, and then those that are in flight.

    Args:
        app: the application.
        listener: the socket that `listen` returned.
        name: of the model, for the line that shows the address.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host

    async def ready() -> None:
        listener.listen(_QUEUE)  # asyncio would use the length of the queue also as the number to accept at once
        print(f"{name}: http://{host}:{port} (press Ctrl-C to stop)", flush=True)

    config = uvicorn.Config(
        Tracked(app),
        http=Connection,
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        access_log=False,
        log_config=None,
        lifespan="on",
        callback_notify=ready,
        timeout_notify=_ONCE,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    uvicorn.Server(config).run(sockets=[listener])


def _ignore(*_: object) -> None:
    """Do nothing: uvicorn raises the signal that stopped it once more at the end, where it would set the exit code."""
