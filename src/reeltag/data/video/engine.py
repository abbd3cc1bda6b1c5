"""Decode and encode files at once, on all cores: a process decodes each file while threads run the encoders."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import BoundedSemaphore
from typing import Any, Protocol, TypeVar

import torch

from reeltag.core.environment import available_cpus, keep_freed_memory, one_torch_thread
from reeltag.core.errors import VideoError
from reeltag.data.pca import Values
from reeltag.data.video import decode
from reeltag.data.video.decode import Decoder, DecoderCrashError, DecoderProcess

Item = TypeVar("Item")
Result = TypeVar("Result")


class Encoders(Protocol):
    """Place where extractors compute values: the calling thread, or threads of their own."""

    def submit(self, values: Callable[[Any], Values], inputs: Any) -> Future[Values]:
        """Compute `values(inputs)`, in one thread of torch, so that no sum depends on their number."""


class InlineEncoders:
    """Computes values at once, in the calling thread."""

    def submit(self, values: Callable[[Any], Values], inputs: Any) -> Future[Values]:
        """See `Encoders`."""
        future: Future[Values] = Future()
        with one_torch_thread():
            future.set_result(values(inputs))
        return future


class EncoderThreads:
    """Computes values in threads; `submit` waits while two batches a thread are under way, which bounds the memory.

    Args:
        threads: their number.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "encoder", torch.set_num_threads, (1,))
        self._room = BoundedSemaphore(2 * threads)

    def submit(self, values: Callable[[Any], Values], inputs: Any) -> Future[Values]:
        """See `Encoders`."""
        self._room.acquire()
        future = self._pool.submit(values, inputs)
        future.add_done_callback(lambda _: self._room.release())
        return future

    def close(self) -> None:
        """Drop what has not begun, and wait for the rest."""
        self._pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Engine:
    """Decoder and encoders of one file at a time.

    Attributes:
        decoder: decoder of the file.
        encoders: where its pictures and its sound become values.
        threads: threads of the decoder.
    """

    decoder: Decoder
    encoders: Encoders
    threads: int = 1


IN_PROCESS = Engine(decode, InlineEncoders())


def suggested_workers(files: int) -> int:
    """Return the number of files to work on at once: a CPU each, and all CPUs on a single one."""
    return max(1, min(available_cpus(), files))


@contextmanager
def open_encoders() -> Iterator[EncoderThreads]:
    """Open a thread for each CPU, for a block in which torch computes in one thread."""
    with one_torch_thread(), closing(EncoderThreads(available_cpus())) as encoders:
        yield encoders


def process_files(
    items: Sequence[Item], workers: int, work: Callable[[Item, Engine], Result]
) -> Generator[tuple[Item, Result | VideoError], None, None]:
    """Work on files in parallel, each in a thread and decoded in a process of its own.

    A file whose decoder crashes is tried once more, in a new process.

    Args:
        items: the files.
        workers: number of files at once.
        work: called with a file and an engine; the errors of one file end that file only.

    Yields:
        Each file with the result of `work` or its error, as they become ready.

    Raises:
        Exception: what else `work` raises; the remaining files are dropped.
    """
    keep_freed_memory()  # a fifth of the encoder's time
    workers = max(1, min(workers, len(items)))
    threads = max(1, available_cpus() // workers)
    with ExitStack() as stack:
        encoders = stack.enter_context(open_encoders())
        pool = stack.enter_context(ThreadPoolExecutor(workers, "file"))
        free: SimpleQueue[Engine] = SimpleQueue()
        for _ in range(workers):
            free.put(Engine(stack.enter_context(closing(DecoderProcess())), encoders, threads))
        rest = iter(items)
        running: dict[Future[Result | VideoError], Item] = {}
        stack.callback(lambda: [future.cancel() for future in running])
        while True:
            for item in islice(rest, 2 * workers - len(running)):  # results that nobody takes do not pile up
                running[pool.submit(_attempted, partial(work, item), free)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _attempted(work: Callable[[Engine], Result], free: SimpleQueue[Engine]) -> Result | VideoError:
    engine = free.get()
    try:
        try:
            return work(engine)
        except DecoderCrashError:
            return work(engine)
    except VideoError as error:
        return error
    finally:
        free.put(engine)
