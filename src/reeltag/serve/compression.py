"""`Content-Encoding: gzip` of bodies, and of answers whose clients accept it."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from reeltag.core.errors import RequestError

_GZIP = 16 + zlib.MAX_WBITS
_PIECE = 1_000_000  # bytes that are decompressed before other requests have their turn
_SMALLEST = 2_000  # bytes; compressing smaller answers, such as the tags of one video, takes longer than sending them


async def decoded(encoding: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Undo the content encoding of a body, piece by piece, so that its reader can stop at a limit.

    Args:
        encoding: value of the header `Content-Encoding`; empty if there is none.
        chunks: the body as it was sent.

    Raises:
        RequestError: the encoding is not gzip, or the body is damaged, incomplete or several files.
    """
    kind = encoding.strip().lower()
    if kind not in ("", "identity", "gzip", "x-gzip"):
        raise RequestError(415, f"content encoding {encoding!r}: send the body as it is, or in gzip")
    if not kind.endswith("gzip"):
        async for chunk in chunks:
            yield chunk
        return
    stream = zlib.decompressobj(_GZIP)
    try:
        async for chunk in chunks:
            rest = chunk
            while rest and not stream.eof:
                yield stream.decompress(rest, _PIECE)
                rest = stream.unconsumed_tail
                await asyncio.sleep(0)
            if stream.unused_data or (rest and stream.eof):
                raise RequestError(400, "the body goes on after its gzip has ended; compress it as one")
    except zlib.error as error:
        raise RequestError(400, f"the body is damaged gzip ({error}); compress it again") from error
    if not stream.eof:
        raise RequestError(400, "the body is incomplete gzip; send all of it")


class Compressed:
    """ASGI middleware that compresses answers for clients that accept gzip.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._gzip = app, GZipMiddleware(app, _SMALLEST, compresslevel=1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as the application does."""
        if scope["type"] == "http" and accepts_gzip(Headers(scope=scope).get("accept-encoding", "")):
            await self._gzip(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def accepts_gzip(accepted: str) -> bool:
    """Return True if the value of a header `Accept-Encoding` allows gzip; Starlette ignores that a weight is 0."""
    for each in accepted.lower().split(","):
        name, _, weight = each.partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "").rstrip("0.") != "q="
    return False
