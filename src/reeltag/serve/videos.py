"""Read uploaded videos in a separate process that can be killed, since FFmpeg parses files of strangers there.

The process receives a path and answers with JSON and bytes, never with a pickle, so that an attacker who takes over the
process does not control the service.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from reeltag.artifact.file import Artifact
from reeltag.core.distributed.process_pool import spawn_context, without_interrupts
from reeltag.core.environment import available_cpus
from reeltag.core.errors import ReeltagError, RequestError, UsageError
from reeltag.data.formats.example import Video
from reeltag.data.schema import Schema
from reeltag.data.video import decode
from reeltag.data.video.engine import Engine, open_encoders
from reeltag.inference.video.reader import open_reader, refuse_unreadable

_ANSWER = 64_000  # maximum bytes of the JSON that precedes the values


@dataclass(frozen=True)
class _Worker:
    """Process that reads videos, our end of the pipe to it, and the folder of its videos."""

    process: BaseProcess
    connection: Connection
    folder: TemporaryDirectory[str]

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.folder.cleanup()  # the connection stays open: a thread may be waiting on it, and now gets EOFError

    def read(self, content: bytes, schema: Schema) -> tuple[Video, list[str]]:
        """Return the video that the process reads from a file, and remarks on it.

        Raises:
            EOFError, OSError: the process ended.
            RequestError: the process cannot read the video.
        """
        path = Path(self.folder.name) / "video"
        path.write_bytes(content)
        self.connection.send_bytes(str(path).encode())
        answer = json.loads(self.connection.recv_bytes(_ANSWER))
        path.unlink()
        if "error" in answer:
            raise RequestError(answer["status"], answer["error"])
        dtype = np.dtype(schema.dtype)
        values = self.connection.recv_bytes(schema.max_frames * schema.width * dtype.itemsize)
        frames = np.frombuffer(values, dtype).reshape(-1, schema.width)
        features = np.split(frames, np.cumsum(schema.widths)[:-1], axis=1)
        return Video("", None, tuple(features), int(answer["cut"])), [str(remark) for remark in answer["remarks"]]


class VideoProcess:
    """Reads one video at a time in a process that starts with the first video, and is restarted if it ended.

    Args:
        artifact: the model; its members are not needed.
        name: name of its file, for errors.
        image: extractor of the feature `rgb`, as in `open_reader`.
        audio: extractor of the feature `audio`, likewise.
    """

    def __init__(self, artifact: Artifact, name: str, image: str | None = None, audio: str | None = None) -> None:
        self._artifact, self._name = replace(artifact, members=()), name
        self._named = {"image": image, "audio": audio}
        self._turn = asyncio.Lock()
        self._worker: _Worker | None = None
        self.refusal = self._refusal()

    def _refusal(self) -> tuple[int, str] | None:
        """Return the status and reason if no video can be read, as far as known beforehand."""
        try:
            features = {"image": "rgb", "audio": "audio"}
            named = [feature for option, feature in features.items() if self._named[option]]
            refuse_unreadable(self._artifact, self._name, named)
        except UsageError as error:
            return 415, f"videos are not accepted: {error}"
        if find_spec("av") is None:
            return 501, "videos are not accepted: PyAV is not installed; `pip install 'reeltag[video]'`"
        return None

    async def read(self, content: bytes, deadline: float) -> tuple[Video, list[str]]:
        """Return the features that the model reads from a video, and remarks on what is unusual about it.

        Args:
            content: content of the file.
            deadline: time of the event loop's clock at which the process is killed if it is still reading.

        Raises:
            RequestError: the video cannot be read, or not in time.
        """
        try:
            return await asyncio.wait_for(self._read(content), deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise RequestError(504, "not read in time; send a shorter or smaller video, or try again later") from error

    async def _read(self, content: bytes) -> tuple[Video, list[str]]:
        async with self._turn:
            worker = self._worker = self._worker or self._started()
            try:
                return await asyncio.to_thread(worker.read, content, self._artifact.schema)
            except RequestError:
                raise
            except (EOFError, OSError) as error:
                self.close()
                raise RequestError(
                    422, "the video crashed the process that read it; convert it to another format"
                ) from error
            except asyncio.CancelledError:  # the deadline has passed
                self.close()
                raise

    def _started(self) -> _Worker:
        context = spawn_context()
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._artifact, self._name, self._named), daemon=True)
        with without_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, ours, TemporaryDirectory(prefix="reeltag-"))

    def close(self) -> None:
        """Kill the process."""
        if self._worker is not None:
            self._worker.end()
        self._worker = None


def _work(connection: Connection, artifact: Artifact, name: str, named: Mapping[str, str | None]) -> None:
    """Read videos until the service closes its end of the pipe."""
    reader, refused = None, ""
    try:
        reader = open_reader(artifact, name, **named)
    except ReeltagError as error:
        refused = f"videos are not accepted: {error}"
    with open_encoders() as encoders, suppress(EOFError):
        engine = Engine(decode, encoders, available_cpus())
        while True:
            path = Path(connection.recv_bytes().decode())
            if reader is None:
                _answer(connection, {"status": 501, "error": refused})
                continue
            try:
                video, remarks = reader.read(path, "", engine)
            except ReeltagError as error:
                _answer(connection, {"status": 400, "error": f"the video {str(error).removeprefix(f'{path}: ')}"})
            else:
                _answer(connection, {"cut": video.cut, "remarks": remarks})
                connection.send_bytes(video.frames().tobytes())


def _answer(connection: Connection, content: object) -> None:
    connection.send_bytes(json.dumps(content).encode())
