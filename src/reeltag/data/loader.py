"""Batches of videos with `uint8` or `float32` frames, and the loader that produces them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_start_method
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from reeltag.core.distributed.collectives import local_rows, sample_global
from reeltag.core.distributed.process_pool import without_interrupts
from reeltag.core.errors import ReeltagError
from reeltag.core.remote_files import RemoteFile
from reeltag.data.formats.example import Video
from reeltag.data.prefetch import Prefetcher
from reeltag.data.sampler import Order, ShardWindowOrder, Shuffle, epoch_order, step_positions
from reeltag.data.schema import Schema
from reeltag.data.shards import Indices, Shards


@dataclass(frozen=True)
class Batch:
    """B examples: videos, or segments of them.

    Attributes:
        ids: names of the videos.
        frames: [B, T, D], `uint8` codes or `float32`; rows past a video's length are 0.
        lengths: [B] int64, frames of each video.
        labels: [B, C] bool, or None where a video has no labels.
        targets: [B, C] float32 soft targets of a teacher, or None.
        counts: [B, T] int64 multiplicity of each frame, 0 past a video's length; None if each frame counts once.
        rated: [B, C] bool, classes for which the labels are known; None for all.
    """

    ids: tuple[str, ...]
    frames: Tensor
    lengths: Tensor
    labels: Tensor | None
    targets: Tensor | None = None
    counts: Tensor | None = None
    rated: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """Copy the batch to a device; asynchronous from pinned memory."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; the loader calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        optional = (self.labels, self.targets, self.counts, self.rated)
        changed = (None if tensor is None else change(tensor) for tensor in optional)
        return Batch(self.ids, change(self.frames), change(self.lengths), *changed)


def collate(videos: Iterable[Video], lengths: Sequence[int], schema: Schema, least: int = 0) -> Batch:
    """Collate videos into a batch, padded with zeros to the longest of them.

    Args:
        videos: consumed one by one, so that each is copied while it is still in the CPU's cache.
        lengths: frames of each video.
        schema: of the videos.
        least: number of frames to pad to if all videos are shorter.
    """
    frames = np.empty((len(lengths), max(least, *lengths), schema.width), schema.dtype)
    labels = np.zeros((len(lengths), schema.classes), bool)
    rated = None if schema.segments is None else np.zeros_like(labels)
    ids, labelled = [], True
    for number, (video, length) in enumerate(zip(videos, lengths, strict=True)):
        column = 0
        for feature in video.features:
            frames[number, :length, column : column + feature.shape[1]] = feature
            column += feature.shape[1]
        frames[number, length:] = 0
        ids.append(video.id)
        if video.labels is None:
            labelled = False
        else:
            labels[number, video.labels] = True
            if rated is not None:
                rated[number, video.rated] = True
    known, told = (torch.from_numpy(each) if labelled and each is not None else None for each in (labels, rated))
    return Batch(tuple(ids), torch.from_numpy(frames), torch.tensor(lengths), known, rated=told)


def sample_frames(lengths: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Sample `count` frames of each video, uniformly with replacement (paper section 4.1, golden file `samplers`).

    Returns:
        Frame indices [B, count].
    """
    draws = sample_global(lambda videos: torch.rand(videos, count, generator=generator), len(lengths))
    return (draws.to(lengths.device) * lengths[:, None]).long()


def select_frames(batch: Batch, rows: Tensor) -> Batch:
    """Select the frames with indices [B, count] of each video, in that order; an index may repeat."""
    count = rows.shape[1]
    return replace(batch, frames=_rows(batch.frames, rows), lengths=torch.full_like(batch.lengths, count))


def count_sampled_frames(batch: Batch, rows: Tensor) -> Batch:
    """Select the frames with these indices once each, with their multiplicity, in the video's order.

    Pooling is a sum or maximum over frames, so the result is the same for less work: 300 samples of 300 frames hold 190
    distinct ones.
    """
    counts = torch.zeros(batch.frames.shape[:2], dtype=torch.int64, device=rows.device)
    counts.scatter_add_(1, rows, torch.ones_like(rows))
    lengths = counts.count_nonzero(1)
    # The sampled frames of each video come first.
    order = (counts == 0).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(lengths.max())]
    return replace(batch, frames=_rows(batch.frames, order), lengths=lengths, counts=counts.gather(1, order))


def _rows(frames: Tensor, rows: Tensor) -> Tensor:
    """Gather frames [B, T, D] at the indices [B, U] of each video: [B, U, D]."""
    first = torch.arange(len(frames), device=rows.device)[:, None] * frames.shape[1]
    return torch.unflatten(frames.flatten(0, 1).index_select(0, (rows + first).flatten()), 0, rows.shape)


class _Batches(Dataset["Batch | ReeltagError"]):
    """Dataset of batches by index; a plan maps an index to video indices. A class, so that it can be sent to workers.

    Each rank reads its own rows of a global batch, padded as the global batch is.
    """

    def __init__(
        self,
        shards: Shards,
        plan: Callable[[int], Indices],
        targets: Callable[[Indices], Tensor] | None = None,
        own: slice = slice(None),
    ) -> None:
        self.shards, self.plan, self.targets, self.own = shards, plan, targets, own

    def needs(self, numbers: range) -> Iterator[list[RemoteFile]] | None:
        """Yield the remote shards that each batch needs; return None if all shards are local."""
        if not self.shards.are_remote:
            return None
        return (self.shards.remote(self.plan(number)) for number in numbers)

    def __getitem__(self, number: int) -> Batch | ReeltagError:
        whole = self.plan(number)
        indices, least = whole[self.own], int(self.shards.lengths[whole].max())
        try:
            videos = (self.shards.read(index) for index in indices.tolist())
            batch = collate(videos, self.shards.lengths[indices].tolist(), self.shards.manifest.schema, least)
            return replace(batch, targets=self.targets(indices)) if self.targets else batch
        except ReeltagError as error:
            return error  # an exception raised in a worker would arrive wrapped in a stack trace


def _load(batches: _Batches, numbers: range, workers: int, pin: bool) -> Iterator[Batch]:
    loader: DataLoader[Batch | ReeltagError] = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        worker_init_fn=partial(_end_without, os.getpid()),
        # Without its own generator the loader uses the global one, which breaks exact resume.
        generator=torch.Generator(),
    )
    with without_interrupts():  # in the worker processes, which this process stops itself
        loaded = iter(loader)
    try:
        with Prefetcher(batches.needs(numbers)) as later:
            for number, batch in enumerate(loaded, 1):
                if isinstance(batch, ReeltagError):
                    raise batch
                yield batch
                later.reached(number)
    finally:
        del (
            loaded
        )  # stops the workers; an exception that keeps this frame alive would leave them waiting for each other


def _end_without(parent: int, worker: int) -> None:
    """Exit a worker whose parent was killed while the worker started; torch notices only later deaths."""
    if get_start_method() != "forkserver" and os.getppid() != parent:
        os._exit(1)


def _as_it_is(batch: Any) -> Any:
    return batch


def training_batches(
    shards: Shards,
    indices: Indices,
    *,
    shuffle: Shuffle,
    batch_size: int,
    steps: range,
    targets: Callable[[Indices], Tensor] | None = None,
    workers: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of training steps, or this rank's rows of them; each step depends on nothing before it.

    Args:
        shards: of the videos.
        indices: of the training videos.
        shuffle: seed and window of the random order.
        batch_size: B of the global batch.
        steps: the steps to run; resuming starts at a later one.
        targets: soft targets [B, C] of videos, by their indices.
        workers: loader processes; 0 reads in this one.
        pin: copy to page-locked memory, for a GPU.
    """
    window = shuffle.window
    order = epoch_order if window is None else ShardWindowOrder(shards.numbers(indices), window)
    plan = partial(_training_plan, indices, shuffle.seed, batch_size, order)
    return _load(_Batches(shards, plan, targets, local_rows(batch_size)), steps, workers, pin)


def _training_plan(indices: Indices, seed: int, batch_size: int, order: Order, step: int) -> Indices:
    return indices[step_positions(len(indices), seed, step, batch_size, order)]


def sequential_batches(
    shards: Shards, indices: Indices | None = None, *, batch_size: int, workers: int = 0, pin: bool = False
) -> Iterator[Batch]:
    """Yield every video once, in the order of `indices`, or of the shards."""
    indices = np.arange(len(shards)) if indices is None else indices
    numbers = range(-(-len(indices) // batch_size))
    return _load(_Batches(shards, partial(_sequential_plan, indices, batch_size)), numbers, workers, pin)


def _sequential_plan(indices: Indices, batch_size: int, number: int) -> Indices:
    return indices[number * batch_size : (number + 1) * batch_size]


def stream_batches(videos: Iterable[Video], schema: Schema, batch_size: int) -> Iterator[Batch]:
    """Batches of videos as they come, for reading shards that have no manifest."""
    videos = iter(videos)
    while chunk := list(islice(videos, batch_size)):
        yield collate(chunk, [video.length for video in chunk], schema)
