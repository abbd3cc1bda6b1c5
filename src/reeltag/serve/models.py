"""The model that a service computes with: in a thread of it, or several times, each in a process of its own.

One thread takes less memory and starts sooner. Several processes compute at the same time, each with an interpreter of
its own; several threads would wait for each other's, and for the one that parses requests.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from reeltag.artifact.file import Artifact, stream_artifact
from reeltag.core.distributed.process_pool import spawn_context, without_interrupts
from reeltag.core.environment import keep_freed_memory
from reeltag.core.errors import ReeltagError, RequestError, UsageError, WorkerError
from reeltag.core.tensorfile import TensorFile
from reeltag.data.formats.example import Video
from reeltag.data.loader import Batch, collate
from reeltag.data.schema import Schema
from reeltag.inference.engines.choice import ASKED_FOR, Choice, choose, everywhere
from reeltag.inference.engines.ways import Mode
from reeltag.inference.ensemble import predict_batches
from reeltag.inference.predictor import AnyMode, Predictor, load, resolve_device
from reeltag.inference.timeline import ScoreArray

TYPICAL_BATCH = 4  # videos, between one client's batches and those under load; mode auto chooses for it
_log = logging.getLogger("reeltag.serve")


class ModelThread:
    """Computes one batch at a time in a thread.

    Args:
        predictor: the model.

    Attributes:
        deaths: 0, since a thread ends with the service.
    """

    deaths = 0

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._thread = ThreadPoolExecutor(1, "reeltag-compute")

    async def tag(self, videos: Sequence[Video]) -> ScoreArray:
        """Return the probabilities [B, C] of B videos."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._tag, videos)

    def close(self) -> None:
        """Stop the thread after its current batch."""
        self._thread.shutdown()

    def _tag(self, videos: Sequence[Video]) -> ScoreArray:
        return _scores(self._predictor, _batch(videos, self._predictor.schema))


@dataclass(frozen=True)
class _Worker:
    """A process, and our end of the pipe to it."""

    process: BaseProcess
    connection: Connection

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            WorkerError: the process ended.
        """
        try:
            self.connection.send(message)
        except OSError as error:
            raise WorkerError(f"a process of the model {self.end()}") from error

    def receive(self) -> Any:
        """Wait for the next message.

        Raises:
            WorkerError: the process ended.
            Exception: the message, if it is one.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerError(f"a process of the model {self.end()}") from error
        if isinstance(message, Exception):
            raise message
        return message

    def end(self) -> str:
        """Make sure that the process has ended and return how."""
        self.process.join(1)
        self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


class ModelProcess:
    """Computes one batch at a time in a process of its own; if that ends, another one computes the batch.

    The first process starts at once; call `wait` before the first batch.

    Args:
        path: the model's file.
        schema: its schema.
        mode: how each process computes, as in `predictor.load`.
        threads: number of threads that each computes with.
        calibrated: apply the calibration in the file.

    Attributes:
        deaths: number of processes that ended while they were needed.
    """

    def __init__(self, path: Path, schema: Schema, mode: Mode | Choice, threads: int, calibrated: bool = False) -> None:
        self._path, self._digest = path, TensorFile(path).digest
        self._options = {"mode": mode, "threads": threads, "calibrated": calibrated}
        self._schema = schema
        self._thread = ThreadPoolExecutor(1, "reeltag-model")  # waits for the process
        self._worker: _Worker | None = self._start()
        self.deaths = 0

    def wait(self) -> None:
        """Wait until the process has loaded the model.

        Raises:
            UsageError: the model cannot be loaded.
            WorkerError: the process ended.
        """
        if self._worker is not None:
            self._worker.receive()

    async def tag(self, videos: Sequence[Video]) -> ScoreArray:
        """Return the probabilities [B, C] of B videos.

        Raises:
            RequestError: the process ended, and then the one that took its place; or that one cannot load the model.
            RuntimeError: a bug; the message is the traceback.
        """
        reason = ""
        for _ in range(2):  # the process may have ended before, or because of other work
            try:
                return await asyncio.get_running_loop().run_in_executor(self._thread, self._tag, videos)
            except WorkerError as error:
                self.deaths += 1
                reason = str(error)
                _log.warning("%s; the next batch starts another", reason)
            except ReeltagError as error:
                raise RequestError(503, f"the model cannot be loaded again: {error}") from error
        raise RequestError(503, f"{reason}, for the second time; try again with fewer videos")

    def close(self) -> None:
        """Kill the process."""
        self._thread.shutdown(wait=False)
        if self._worker is not None:
            self._worker.process.kill()
            self._worker.process.join()

    def _start(self) -> _Worker:
        context = spawn_context()  # a fork would lack the threads of torch, and keep the clients' connections open
        ours, theirs = context.Pipe()
        arguments = (theirs, self._path, self._digest)
        process = context.Process(target=_work, args=arguments, kwargs=self._options, daemon=True)
        with without_interrupts():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _tag(self, videos: Sequence[Video]) -> ScoreArray:
        try:
            if self._worker is None:
                self._worker = self._start()
                self._worker.receive()
            batch = _batch(videos, self._schema)
            self._worker.send((batch.frames.numpy(), batch.lengths.numpy()))  # torch would send files of tensors
            scores: ScoreArray = self._worker.receive()
        except ReeltagError:
            self._worker = None
            raise
        return scores


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to compute.

    Attributes:
        artifact: the model; its members' weights are not needed.
        choice: engine and mode of each member.
        calibrated: true if the calibration in the file is applied.
        workers: what computes, a batch at a time each.
    """

    artifact: Artifact
    choice: Choice
    calibrated: bool
    workers: Sequence[ModelThread | ModelProcess]


def in_thread(predictor: Predictor) -> OpenModel:
    """Return a model that computes in a thread of this process."""
    return OpenModel(predictor.artifact, predictor.choice, predictor.calibrated, [ModelThread(predictor)])


@contextmanager
def open_model(path: Path, mode: AnyMode, workers: int, *, calibrated: bool = False) -> Iterator[OpenModel]:
    """Open a model for a number of batches at a time, and end its thread or processes with the block.

    One core is left to HTTP, and the model uses the others, unless `OMP_NUM_THREADS` sets another number.

    Args:
        path: the model's file.
        mode: how it computes.
        workers: number of batches that are computed at the same time; more than one are in processes.
        calibrated: apply the calibration in the file.

    Raises:
        UsageError: there would be no worker, or the model cannot be loaded.
        WorkerError: a process ended while it loaded the model.
    """
    if workers < 1:
        raise UsageError(f"workers: must be 1 or more, not {workers}")
    if "OMP_NUM_THREADS" not in os.environ:  # torch threads without a core would spin
        torch.set_num_threads(max(1, (torch.get_num_threads() - 1) // workers))
    if workers == 1:
        opened = in_thread(load(path, mode, batch_size=TYPICAL_BATCH, calibrated=calibrated))
        try:
            yield opened
        finally:
            for thread in opened.workers:
                thread.close()
        return
    artifact, _ = stream_artifact(path)
    device = torch.device(resolve_device(mode, "auto")).type
    ways = choose(path, device, TYPICAL_BATCH) if mode == "auto" else mode
    choice = ways if isinstance(ways, Choice) else everywhere(ways, artifact.members, ASKED_FOR)
    processes: list[ModelProcess] = []
    try:
        for _ in range(workers):
            processes.append(ModelProcess(path, artifact.schema, ways, torch.get_num_threads(), calibrated))
        for process in processes:
            process.wait()
        yield OpenModel(artifact, choice, calibrated, processes)
    finally:
        for process in processes:
            process.close()


def _batch(videos: Sequence[Video], schema: Schema) -> Batch:
    return collate(videos, [video.length for video in videos], schema)


def _scores(predictor: Predictor, batch: Batch) -> ScoreArray:
    (result,) = predict_batches(predictor.model, [batch])
    scores: ScoreArray = result.probabilities.numpy()
    return scores


# --- in the process -------------------------------------------------------------------------------


def _work(
    connection: Connection, path: Path, digest: str, *, mode: Mode | Choice, threads: int, calibrated: bool
) -> None:
    """Load the model and compute batches until the other end of the pipe is closed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the service ends first, and answers what is in flight
    keep_freed_memory()
    torch.set_num_threads(threads)
    with suppress(EOFError, OSError):
        try:
            predictor = load(path, mode, calibrated=calibrated)
            if TensorFile(path).digest != digest:
                raise UsageError(f"{path}: was replaced after the service started; start it again")
        except ReeltagError as error:
            connection.send(UsageError(str(error)))
            return
        gc.collect()
        gc.freeze()  # objects that live as long as the process need no garbage collection
        connection.send(None)
        while True:
            frames, lengths = map(torch.from_numpy, connection.recv())
            try:
                answer = _scores(predictor, Batch(("",) * len(frames), frames, lengths, None))
            except Exception:
                connection.send(RuntimeError(traceback.format_exc()))
            else:
                connection.send(answer)
