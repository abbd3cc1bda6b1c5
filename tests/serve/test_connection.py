"""Deadlines of connections: clients that send nothing, or not the rest of what they began, are closed."""

import asyncio
import resource
import time
from contextlib import asynccontextmanager

import pytest
import uvicorn

from reeltag.serve import connection
from reeltag.serve.connection import Connection, Tracked

GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
SHORT, LONG = 0.3, 30.0


async def application(scope, receive, send):
    """Answer at `/` after the whole body, and at any other path without reading it."""
    more = scope["path"] == "/"
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def served():
    """Serve the application on loopback; gives its port."""
    config = uvicorn.Config(Tracked(application), http=Connection, ws="none", lifespan="off", log_config=None, port=0)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await running


async def answer(reader):
    """Read one answer; returns its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(2) == b"ok"
    return head.lower()


async def seconds_until_closed(reader):
    """Seconds until the server ends a connection on which it sends nothing more."""
    begin = time.monotonic()
    assert await asyncio.wait_for(reader.read(), LONG / 2) == b""
    return time.monotonic() - begin


@pytest.fixture(autouse=True)
def deadlines(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", SHORT)
    monkeypatch.setattr(connection, "REST_SECONDS", SHORT)


@pytest.mark.parametrize("sent", [b"", GET[:-2]], ids=["nothing", "half a head"])
def test_a_client_that_sends_no_request_is_closed(sent):
    async def case():
        async with served() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            assert SHORT / 2 < await seconds_until_closed(reader) < LONG / 2
            writer.close()

    asyncio.run(case())


def test_a_connection_is_kept_between_requests_and_closed_when_none_comes():
    async def case():
        async with served() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                await asyncio.sleep(SHORT / 2)
                writer.write(GET)
                assert (await answer(reader)).startswith(b"http/1.1 200")
            assert SHORT / 2 < await seconds_until_closed(reader) < LONG / 2
            writer.close()

    asyncio.run(case())


def test_the_rest_of_a_body_that_was_answered_early_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", LONG)

    async def case():
        async with served() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\nhalf")
            await answer(reader)
            assert SHORT / 2 < await seconds_until_closed(reader) < LONG / 2
            writer.close()

    asyncio.run(case())


def test_a_request_whose_end_is_ambiguous_is_the_last_of_its_connection(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", LONG)
    head = b"POST / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n"

    async def case():
        async with served() as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + b"2\r\nhi\r\n0\r\n\r\n")
            assert b"connection: close" in await answer(reader)
            assert await seconds_until_closed(reader) < LONG / 2
            writer.close()

    asyncio.run(case())


def test_beyond_the_limit_of_connections_the_one_that_is_idle_for_longest_is_closed(monkeypatch):
    monkeypatch.setattr(connection, "HEAD_SECONDS", LONG)
    monkeypatch.setattr(connection, "ACCEPTED_AT_ONCE", 3)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (18, 18))  # three connections

    async def case():
        async with served() as port:
            opened = []
            for _ in range(4):
                opened.append(await asyncio.open_connection("127.0.0.1", port))
                await asyncio.sleep(0.05)
            first, *others = opened
            assert await seconds_until_closed(first[0]) < LONG / 2
            for reader, writer in others:
                writer.write(GET)
                await answer(reader)
            for _, writer in opened:
                writer.close()

    asyncio.run(case())
