"""Decode files in a process of its own, so that a file that crashes or stalls FFmpeg costs nothing but itself.

The process receives a request and answers with JSON and bytes, never with a pickle, so that an attacker who takes it
over does not control the program that reads the answers.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from json import JSONDecodeError
from multiprocessing import BufferTooShort
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from signal import Signals
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from reeltag.core.distributed.process_pool import exit_with_parent, without_interrupts
from reeltag.core.errors import UsageError, VideoError, WorkerError
from reeltag.data.video.decode.audio_stream import Samples, sound
from reeltag.data.video.decode.container import MAX_PIXELS, STALLED_SECONDS, Damage, Media, probe
from reeltag.data.video.decode.video_stream import MAX_SECONDS, Picture, pictures

SILENT_SECONDS = 6 * STALLED_SECONDS  # longest time without an answer; the process itself gives up earlier
_HEADER = 64_000  # most bytes of the JSON that precedes an array
_PIECE = 1 << 20  # samples of sound in one array
_MODULE = "reeltag.data.video.decode.process"  # whose `main` the process runs
_NO_ANSWER = (EOFError, OSError, LookupError, TypeError, UnicodeDecodeError, JSONDecodeError, BufferTooShort)
_ERRORS: dict[str, type[UsageError | VideoError]] = {"UsageError": UsageError, "VideoError": VideoError}


class Decoder(Protocol):
    """Decoder of media files: the package `decode` itself, in this process, or a `DecoderProcess`."""

    def probe(self, path: Path) -> Media:
        """See `container.probe`."""

    def pictures(
        self, path: Path, size: tuple[int, int] | int | None, damage: Damage, *, seconds: int = ..., threads: int = ...
    ) -> Iterator[Picture]:
        """See `video_stream.pictures`."""

    def sound(self, path: Path, rate: int, damage: Damage, *, seconds: int = ...) -> Samples:
        """See `audio_stream.sound`."""


class DecoderCrashError(VideoError):
    """A file whose decoder ended with a crash, or was killed."""


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    keep: Connection  # the process ends when this closes, with this object or with our process


class DecoderProcess:
    """Decoder in a process that starts with its first file, serves many, and is replaced after a crash.

    One thread at a time may use it; any thread may close it.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._closed = False

    def probe(self, path: Path) -> Media:
        """See `container.probe`."""
        return Media(path, **_last(self._ask("probe", path, Damage(), np.uint8)))

    def pictures(
        self,
        path: Path,
        size: tuple[int, int] | int | None,
        damage: Damage,
        *,
        seconds: int = MAX_SECONDS,
        threads: int = 1,
    ) -> Iterator[Picture]:
        """See `video_stream.pictures`."""
        return self._ask("pictures", path, damage, np.uint8, size=size, seconds=seconds, threads=threads)

    def sound(self, path: Path, rate: int, damage: Damage, *, seconds: int = MAX_SECONDS) -> Samples:
        """See `audio_stream.sound`."""
        pieces = self._ask("sound", path, damage, np.float32, rate=rate, seconds=seconds)
        return np.concatenate([np.zeros(0, np.float32), *pieces])

    def close(self) -> None:
        """End the process; a thread that waits for an answer gets a `DecoderCrashError`."""
        self._closed = True
        self._stop()

    def _ask(self, call: str, path: Path, damage: Damage, kind: type, **arguments: Any) -> Iterator[Any]:
        """Send a request; yield the arrays of the answer, and last what else the call returned, if anything."""
        finished, child = False, self._child or self._started(path)
        try:
            child.connection.send_bytes(_json([call, str(path.absolute()), asdict(damage), arguments]))
            while not finished:
                if not child.connection.poll(SILENT_SECONDS):
                    what = f"yielded nothing for {SILENT_SECONDS:g} seconds"
                    raise VideoError(f"{path}: {what}; convert it, or leave it out")
                head = json.loads(child.connection.recv_bytes(_HEADER))
                finished = "array" not in head
                if not finished:
                    yield _received(child.connection, head["array"], kind)
            if "error" in head:
                raise _ERRORS[head["type"]](f"{path}: {head['error']}" if head["of_file"] else head["error"])
            vars(damage).update(head["damage"])
            if head["result"] is not None:
                yield head["result"]
        except _NO_ANSWER as error:
            finished = False  # it is not to answer again
            raise DecoderCrashError(f"{path}: {_end(child.process)}; convert it, or leave it out") from error
        finally:
            if not finished:  # the rest of the answer would pass for the next one
                self._stop()

    def _started(self, path: Path) -> _Child:
        if self._closed:
            raise DecoderCrashError(f"{path}: its decoder was stopped")
        # Not multiprocessing's spawn, which would import the caller's script, and with it often torch; nor, without
        # -I, modules of the current folder.
        program = f"import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {_MODULE} import main; main()"
        try:
            ours, theirs = Pipe()
            alive, keep = Pipe(duplex=False)
            ends = (theirs.fileno(), alive.fileno())
            command = [sys.executable, "-I", "-c", program, json.dumps(sys.path), *map(str, ends)]
            with theirs, alive, without_interrupts():
                process = subprocess.Popen(command, pass_fds=ends, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise WorkerError(f"no process to decode files can start ({error}); use fewer --workers") from error
        child = self._child = _Child(process, ours, keep)
        if self._closed:  # in the meantime
            self._stop()
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.process.kill()
            child.process.wait()  # the connection stays open: another thread may wait on it, and now gets EOFError
            child.keep.close()


def _end(process: subprocess.Popen[bytes]) -> str:
    """Describe how a process ended that does not answer as it should."""
    try:
        code = process.wait(1)
    except subprocess.TimeoutExpired:
        return "its decoder gave an answer that cannot be read"
    if code == -Signals.SIGKILL:
        return "its decoder was killed, perhaps because memory ran out"
    return f"crashed its decoder ({Signals(-code).name if code < 0 else f'exit code {code}'})"


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _last(answers: Iterator[Any]) -> Any:
    *_, last = answers
    return last


def _received(connection: Connection, shape: list[int], kind: type) -> Any:
    """Receive an array of a shape that the other side named, within the size that a decoder may give."""
    if len(shape) not in (1, 3) or not 0 <= np.prod(shape, dtype=object) <= 3 * MAX_PIXELS:
        raise OSError(f"an array of shape {shape}")
    array: npt.NDArray[Any] = np.empty(shape, kind)
    if array.nbytes and connection.recv_bytes_into(_as_bytes(array)) != array.nbytes:
        raise OSError("a part of an array")
    return array


def _as_bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data  # of several dimensions a connection would send the first


# --- in the process -------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the other end of the pipe closes."""
    connection, alive = (Connection(int(text)) for text in sys.argv[2:])
    exit_with_parent(alive)
    _be_killed_first()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            call, path, damage, arguments = json.loads(connection.recv_bytes())
            _answer(connection, call, Path(path), Damage(**damage), arguments)


def _be_killed_first() -> None:
    """Let Linux kill this process, not the one that waits for it, if memory runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _answer(connection: Connection, call: str, path: Path, damage: Damage, arguments: dict[str, Any]) -> None:
    result = None
    try:
        for found in _CALLS[call](path, damage, **arguments):
            if isinstance(found, np.ndarray):
                _send(connection, {"array": found.shape})
                if found.nbytes:
                    connection.send_bytes(_as_bytes(np.ascontiguousarray(found)))
            else:
                result = found
    except (UsageError, VideoError) as error:
        text = str(error)
        inside = text.removeprefix(f"{path}: ")
        _send(connection, {"error": inside, "of_file": inside != text, "type": type(error).__name__})
    except (MemoryError, ArithmeticError, LookupError, TypeError, ValueError) as error:  # of PyAV, on a damaged file
        what = f"cannot be decoded ({type(error).__name__}: {error}); convert it, or leave it out"
        _send(connection, {"error": what, "of_file": True, "type": "VideoError"})
    else:
        _send(connection, {"damage": asdict(damage), "result": result})


def _send(connection: Connection, content: dict[str, Any]) -> None:
    connection.send_bytes(_json(content))


def _probe(path: Path, damage: Damage) -> Iterator[dict[str, Any]]:
    found = asdict(probe(path))
    del found["path"]
    yield found


def _pictures(path: Path, damage: Damage, size: Any, seconds: int, threads: int) -> Iterator[Picture]:
    where = tuple(size) if isinstance(size, list) else size
    return pictures(path, where, damage, seconds=seconds, threads=threads)


def _sound(path: Path, damage: Damage, rate: int, seconds: int) -> Iterator[Samples]:
    samples = sound(path, rate, damage, seconds=seconds)
    for begin in range(0, len(samples), _PIECE):
        yield samples[begin : begin + _PIECE]


_CALLS: dict[str, Callable[..., Iterator[Any]]] = {"probe": _probe, "pictures": _pictures, "sound": _sound}
