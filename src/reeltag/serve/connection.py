"""Deadlines of HTTP connections, around the connections of uvicorn.

uvicorn closes a connection that stays idle after an answer, and no other: it waits without end for the first byte, for
the rest of a request's head and for the rest of a body that was refused. `Connection` passes the events of asyncio on
to uvicorn's connection and closes the transport when a deadline has passed; `Tracked` is the ASGI middleware that tells
it when a request begins and ends. The two find each other through the ASGI state of the request.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPTED_AT_ONCE = 100  # connections that asyncio accepts in one step of the event loop
HEAD_SECONDS = 10.0  # for the head of a request, from the connection or from the previous answer on
REST_SECONDS = 2.0  # for the rest of a body whose request has been answered already
_KEY = "reeltag.connection"  # in the ASGI state of a request


class Connection(asyncio.Protocol):
    """HTTP connection that is closed when its client does not send a request in time.

    Beyond the number of files that the service may open, the connection that has been idle for longest is aborted.

    Args:
        app_state: ASGI state that each request of the connection gets.
        arguments: everything else that uvicorn's connection needs.
    """

    _connected: ClassVar[set[Connection]] = set()

    def __init__(self, *, app_state: dict[str, Any], **arguments: Any) -> None:
        self._http = H11Protocol(app_state={**app_state, _KEY: self}, **arguments)
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle
        self._busy = False

    # --- called by asyncio ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the first request."""
        self._transport = transport
        self._http.connection_made(transport)
        self._expect_request(HEAD_SECONDS)
        self._connected.add(self)
        if len(self._connected) > _most_connections():
            idle = [connection for connection in self._connected if connection.idle]
            min(idle, key=lambda connection: connection._deadline.when())._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._deadline.cancel()
        self._connected.discard(self)
        self._http.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on; close the connection where they continue a body that was refused, and are malformed."""
        try:
            self._http.data_received(data)
        except h11.LocalProtocolError:  # uvicorn tries to answer 400, but the request has been answered already
            self._transport.close()

    def eof_received(self) -> None:
        """Pass on that the client sends no more."""
        self._http.eof_received()

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly."""
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has caught up."""
        self._http.resume_writing()

    # --- called by the middleware -----------------------------------------------------------------

    def request_begun(self) -> None:
        """Note that the application works on a request."""
        self._busy = True

    def request_answered(self, unread: bool) -> None:
        """Start the deadline of the next request.

        Args:
            unread: the request was answered before its whole body had been read.
        """
        self._busy = False
        self._deadline.cancel()
        self._expect_request(REST_SECONDS if unread else HEAD_SECONDS)

    @property
    def idle(self) -> bool:
        """True while the connection is open and no request of it is being worked on."""
        return not self._busy and not self._transport.is_closing()

    def _expect_request(self, seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.idle:
            self._transport.close()


def _most_connections() -> int:
    """Fewer than the files that may be open: asyncio fills the log when no file is left for a connection."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Up to four times ACCEPTED_AT_ONCE may be accepted before an aborted connection is closed.
    return max(ACCEPTED_AT_ONCE, files - 5 * ACCEPTED_AT_ONCE)


class Tracked:
    """Application whose connections know when a request begins and when it has been answered.

    Args:
        app: the ASGI application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as the application does."""
        if scope["type"] != "http":  # the start and the end of the service
            await self.app(scope, receive, send)
            return
        connection: Connection = scope["state"][_KEY]
        headers = dict(scope["headers"])
        chunked, length = b"transfer-encoding" in headers, headers.get(b"content-length")
        unread = chunked or length not in (None, b"0")
        ambiguous = chunked and length is not None  # the body's end, and so where the next request begins

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False):
                unread = False
            return message

        async def sending(message: Message) -> None:
            if ambiguous and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                connection.request_answered(unread)

        connection.request_begun()
        await self.app(scope, receiving, sending)
