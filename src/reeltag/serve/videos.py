"""Uploaded videos → what the model reads, in a process that can be ended: FFmpeg parses what strangers send.

The process gets a path and answers with JSON and bytes, never with a pickle: who takes it over has not the service.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from reeltag.artifact.file import Artifact
from reeltag.core.distributed.process_pool import spawn_context, without_interrupts
from reeltag.core.errors import ReeltagError, RequestError, UsageError
from reeltag.data.formats.example import Video
from reeltag.data.schema import Schema
from reeltag.inference.video.reader import open_reader, refuse_unreadable

_ANSWER = 64_000  # most bytes of what is said beside the values


@dataclass(frozen=True)
class _Worker:
    """A process, the end of the pipe to it, and the folder where it finds videos."""

    process: BaseProcess
    connection: Connection
    folder: TemporaryDirectory[str]

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.folder.cleanup()  # the connection may be waited at in a thread, which now hears that it ended

    def read(self, content: bytes, schema: Schema) -> tuple[Video, list[str]]:
        """Wait for what it makes of a video.

        Raises:
            EOFError, OSError: it ended.
            RequestError: it cannot read the video.
        """
        path = Path(self.folder.name) / "video"
        path.write_bytes(content)
        self.connection.send_bytes(str(path).encode())
        told = json.loads(self.connection.recv_bytes(_ANSWER))
        path.unlink()
        if "error" in told:
            raise RequestError(told["status"], told["error"])
        values = self.connection.recv_bytes(schema.max_frames * schema.width)
        frames = np.frombuffer(values, np.uint8).reshape(-1, schema.width)
        features = np.split(frames, np.cumsum(schema.widths)[:-1], axis=1)
        return Video("", None, tuple(features), int(told["cut"])), [str(remark) for remark in told["remarks"]]


class VideoProcess:
    """Reads one video after the other in a process that starts with the first, and again where it ended.

    Args:
        shipped: the model; its members are not needed.
        name: of its file, for errors.
    """

    def __init__(self, shipped: Artifact, name: str) -> None:
        self._shipped, self._name = replace(shipped, members=()), name
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self.refusal = self._refusal()

    def _refusal(self) -> tuple[int, str] | None:
        """Status and reason for which no video can be read, as far as that is known before one is."""
        try:
            refuse_unreadable(self._shipped, self._name)
        except UsageError as error:
            return 415, f"no videos are taken: {error}"
        if find_spec("av") is None:
            return 501, "no videos are taken: PyAV is not installed; `pip install 'reeltag[video]'`"
        return None

    async def read(self, content: bytes, late: float) -> tuple[Video, list[str]]:
        """What the model reads of a video, and what is unusual about it.

        Args:
            content: the file.
            late: time of the event loop's clock at which the process is ended, where it still reads.

        Raises:
            RequestError: it cannot be read, or not in time.
        """
        try:
            return await asyncio.wait_for(self._read(content), late - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise RequestError(504, "not read in time; send a shorter or a smaller video, or come again") from error

    async def _read(self, content: bytes) -> tuple[Video, list[str]]:
        async with self._turn:
            worker = self._worker = self._worker or self._started()
            try:
                return await asyncio.to_thread(worker.read, content, self._shipped.schema)
            except RequestError:
                raise
            except (EOFError, OSError) as error:
                self.close()
                raise RequestError(422, "the video ended the process that read it; convert it") from error
            except asyncio.CancelledError:  # it is late
                self.close()
                raise

    def _started(self) -> _Worker:
        context = spawn_context()
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._shipped, self._name), daemon=True)
        with without_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, ours, TemporaryDirectory(prefix="reeltag-"))

    def close(self) -> None:
        """End the process."""
        if self._worker is not None:
            self._worker.end()
        self._worker = None


def _work(connection: Connection, shipped: Artifact, name: str) -> None:
    """Answer until the service closes its end of the pipe."""
    reader, refused = None, ""
    try:
        reader = open_reader(shipped, name)
    except ReeltagError as error:
        refused = f"no videos are taken: {error}"
    while True:
        try:
            path = Path(connection.recv_bytes().decode())
        except EOFError:
            return
        if reader is None:
            _answer(connection, {"status": 501, "error": refused})
            continue
        try:
            video, remarks = reader.read(path, "")
        except ReeltagError as error:
            _answer(connection, {"status": 400, "error": f"the video {str(error).removeprefix(f'{path}: ')}"})
        else:
            _answer(connection, {"cut": video.cut, "remarks": remarks})
            connection.send_bytes(video.frames().tobytes())


def _answer(connection: Connection, content: object) -> None:
    connection.send_bytes(json.dumps(content).encode())
