"""The service outlives malformed, slow and huge requests, and its memory does not grow with them."""

import asyncio
import re
import socket
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import pytest

from conftest import make_video
from serve import ask_all, malformed, memory
from serving import SCHEMA, TFRECORD, post, record, service, write_model

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory and files are read from /proc")
HEAD = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {TFRECORD}\r\n".encode()
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
GOOD = record(make_video(SCHEMA))
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
IN_SHORT = (
    "from reeltag.serve import connection, server; "
    "connection.HEAD_SECONDS, connection.REST_SECONDS, server.UNREAD_SECONDS = 1.5, 0.5, 2"
)
SLACK = 4  # seconds, on a machine that has other work
MOST_MB = 60  # that memory may grow: of what the allocator keeps, and of what is loaded late


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "m.reeltag")


@pytest.fixture(scope="module")
def figures():
    """Results of the tests, reported by the last one."""
    return {"grown": 0.0}


@contextmanager
def watched(promise, figures, model, tmp_path, *arguments, before="pass"):
    """Run a service; afterwards it still answers, its memory has hardly grown, and its log has no traceback."""
    before = before if promise.in_full else f"{IN_SHORT}; {before}"
    with (tmp_path / "log").open("w") as log, service(model, *arguments, before=before, log=log) as (process, port):
        assert post(port, GOOD)[0] == 200
        at_first = memory(process.pid)
        yield process, port
        deadline = time.monotonic() + SLACK
        while (status := post(port, GOOD)[0]) == 503 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert status == 200
        figures["grown"] = max(figures["grown"], memory(process.pid) - at_first)
        assert figures["grown"] < MOST_MB
        process.terminate()
        assert process.wait(20) == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log, log


@dataclass
class Ended:
    """Record of a connection until the service closed it."""

    received: bytes = b""
    sent: int = 0
    seconds: float = 0.0
    answered: float = 0.0  # seconds until the first byte

    @property
    def statuses(self):
        return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+)", self.received)]


async def client(port, parts, pause=0.0):
    """Send parts, with pauses, for as long as the service takes them, and read until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin, ended = time.monotonic(), Ended()

    async def send():
        with suppress(ConnectionError):
            for part in parts:
                writer.write(part)
                await writer.drain()
                ended.sent += len(part)
                await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            ended.answered = ended.answered or time.monotonic() - begin
            ended.received += chunk
    ended.seconds = time.monotonic() - begin
    sending.cancel()
    writer.close()
    return ended


def all_clients(port, *given):
    """Several clients at once."""

    async def together():
        return await asyncio.gather(*(client(port, *arguments) for arguments in given))

    return asyncio.run(together())


def drip(text):
    return (bytes([byte]) for byte in text)


@pytest.mark.slow
def test_slow_clients_are_ended_in_time(promise, figures, model, tmp_path):
    wait, rest = (10, 2) if promise.in_full else (1.5, 0.5)
    timeout = 3 if promise.in_full else 1
    begun = HEAD + b"Content-Length: 500\r\n\r\n"
    clients = {
        "nothing at all": ([], [], wait),
        "a head that drips": (drip(HEAD + b"X: " + bytes(1000)), [], wait),
        "a head that never ends": (chain([HEAD], (b"X-%d: y\r\n" % n for n in range(10**6))), [], wait),
        "half a head after an answer": ([WHOLE, HEAD], [200], wait),
        "nothing after an answer": ([WHOLE], [200], 5),  # as uvicorn has it
        "a body that drips": (chain([begun], drip(bytes(10**6))), [408], timeout + rest),
        "a body that stops": ([begun, b"few"], [408], timeout + rest),
        "a refused body that drips": (chain([HEAD, b"Content-Length: 999999999\r\n\r\n"], repeat(b"x")), [413], rest),
        "a body for a page without one": (chain([HEALTH, b"Content-Length: 999\r\n\r\n"], repeat(b"x")), [200], rest),
    }
    with watched(promise, figures, model, tmp_path, "--timeout", timeout) as (_, port):
        ended = all_clients(port, *((parts, 0.05) for parts, _, _ in clients.values()))
    for (name, (_, statuses, limit)), each in zip(clients.items(), ended, strict=True):
        assert each.statuses == statuses, name
        assert each.seconds < limit + SLACK, name
    figures["slow"] = f"{len(clients)} kinds of slow client were ended within {max(e.seconds for e in ended):.0f} s"


def sending(head, length, kind=TFRECORD):
    """A body of so many bytes, announced, or in chunks without end."""
    piece, head = bytes(10**5), head.replace(TFRECORD.encode(), kind.encode())
    if length is None:
        return chain([head, b"Transfer-Encoding: chunked\r\n\r\n"], repeat(b"%x\r\n%b\r\n" % (len(piece), piece)))
    return chain([head, b"Content-Length: %d\r\n\r\n" % length], repeat(piece, length // len(piece)))


def test_huge_bodies_are_refused_early_and_their_connections_closed(promise, figures, model, tmp_path):
    gigabytes = 10**9 if promise.in_full else 10**10  # so that it does not end before the service does
    elsewhere = HEAD.replace(b"/predict", b"/healthz")
    given = {
        "announced": (sending(HEAD, gigabytes), 413),
        "endless": (sending(HEAD, None), 413),
        "announced as JSON": (sending(HEAD, gigabytes, "application/json"), 413),
        "endless as JSON": (sending(HEAD, None, "application/json"), 413),
        "of another type": (sending(HEAD, None, "text/plain"), 415),
        "for a page that takes none": (sending(HEALTH, None), 200),
        "for a method that is not there": (sending(elsewhere, None), 405),
    }
    with watched(promise, figures, model, tmp_path, "--max-body-mb", 8) as (_, port):
        ended = all_clients(port, *((parts,) for parts, _ in given.values()))
        for (name, (_, status)), each in zip(given.items(), ended, strict=True):
            assert each.statuses == [status], name
            assert each.answered < SLACK and each.seconds < 2 + SLACK, name
    figures["huge"] = f"{len(given)} bodies of 1 GB or without end, at once, were refused and cut off"


def test_what_a_connection_can_hold_is_answered_in_order_or_ends_it(promise, figures, model, tmp_path):
    last = WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close")
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    both = HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
    over = HEAD + b"Content-Length: 9999999999\r\n\r\n"
    given = {
        "pipelined": (WHOLE * 50 + last, [200] * 51),
        "pipelined behind what is refused": (
            WHOLE + HEAD + b"Content-Length: 2\r\n\r\n{}" + last,
            [200, 400, 200],
        ),
        "two lengths, then another request": (both + chunks + last, [200]),
        "lengths that differ": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + last, [400]),
        "no HTTP": (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", [400]),
        "no HTTP behind a request": (WHOLE + b"\x00\x01\x02\r\n\r\n", [200, 400]),
        "a chunk without a size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", [400]),
        "a bad chunk behind an answer": (sum_of_endless() + b"xyz\r\n", [413]),
        "a head of a megabyte": (HEAD + b"X: " + bytes([65]) * 10**6, [400]),
        "a length that is none": (HEAD + b"Content-Length: 0x10\r\n\r\n", [400]),
        "an upgrade": (HEALTH + b"Connection: upgrade, close\r\nUpgrade: websocket\r\n\r\n", [200]),
        "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [404, 400]),
        "an empty line first": (b"\r\n" + last, [400]),
        "more behind a refused body": (over + last * 3, [413]),
    }
    with watched(promise, figures, model, tmp_path, "--max-body-mb", 1) as (_, port):
        for name, (content, statuses) in given.items():
            (each,) = all_clients(port, ([content],))
            assert each.statuses == statuses, name
        cuts = promise.amount(30, 1000)
        for cut in range(cuts):  # connections that end in the middle, with FIN and with RST
            with socket.create_connection(("127.0.0.1", port)) as connection:
                if cut % 2:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall((WHOLE * 2)[: cut * 7919 % (2 * len(WHOLE))])
    figures["odd"] = (
        f"{len(given)} odd uses of a connection got the status they had to; {cuts:,} requests were cut short"
    )


def sum_of_endless():
    return b"".join(part for part, _ in zip(sending(HEAD, None), range(20), strict=False))


@pytest.mark.slow
def test_idle_connections_give_way_to_others(promise, figures, model, tmp_path):
    """More of them than the service may have files open."""
    before = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))"
    with watched(promise, figures, model, tmp_path, before=before) as (_, port), ExitStack() as idle:
        held = [idle.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2000)]
        assert post(port, GOOD)[0] == 200
        begin = time.monotonic()
        while any(map(is_open, held)):
            assert time.monotonic() - begin < 10 + SLACK
            time.sleep(0.1)
    figures["idle"] = "2,000 idle connections to a service that may open 1,000 files held nobody up"


def is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def open_files(process):
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")
def test_answers_that_nobody_reads_are_let_go(promise, figures, tmp_path):
    schema = SCHEMA.model_copy(update={"classes": 100})
    large = record(make_video(schema, 1), schema) * 1000
    head = HEAD.replace(b"/predict", b"/predict?top=100") + b"Content-Length: %d\r\n\r\n" % len(large)
    with (
        watched(promise, figures, write_model(tmp_path / "m.reeltag", schema), tmp_path) as (process, port),
        ExitStack() as stack,
    ):
        files = open_files(process)
        for _ in range(promise.amount(2, 5)):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", port))
            connection.sendall(head + large)
        deadline = time.monotonic() + 60
        while open_files(process) == files and time.monotonic() < deadline:
            time.sleep(0.01)
        while (held := open_files(process)) > files and time.monotonic() < deadline:
            time.sleep(0.1)
        assert held == files


def test_malformed_requests_get_statuses_below_500_and_the_service_goes_on(promise, figures, model, tmp_path):
    count = promise.amount(500, 10_000)
    with watched(promise, figures, model, tmp_path) as (_, port):
        answers, _ = ask_all(port, list(malformed(GOOD, SCHEMA.width, count)), 16)
    statuses = Counter(status for status, _ in answers)
    assert sum(statuses.values()) == count
    assert set(statuses) <= {400, 404, 405, 413, 415}
    assert len(statuses) >= 3
    told = ", ".join(f"{number:,} × {status}" for status, number in sorted(statuses.items()))
    figures = {"slow": "", "huge": "", "odd": "", "idle": "", **figures}
    promise.found(
        13,
        f"{count:,} malformed requests: {told}; {figures['slow']}; {figures['huge']}; {figures['odd']}; "
        f"{figures['idle']}; memory grew by {figures['grown']:.0f} MB at most",
    )
