"""Sampling order of an epoch: a pure function of (seed, epoch), so training can resume at any step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reeltag.data.shards import Indices


@dataclass(frozen=True)
class Shuffle:
    """Random order of the training videos.

    Attributes:
        seed: seed of the order.
        window: number of shards that are shuffled together; None to shuffle all videos.
    """

    seed: int
    window: int | None = None


Order = Callable[[int, int, int], Indices]  # of `count` videos, `seed` and `epoch`


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """Return an epoch's permutation of `count` videos, a pure function of the arguments."""
    return np.random.default_rng([seed, epoch]).permutation(count)


class ShardWindowOrder:
    """Order that needs few shards at a time: shards in random order, shuffled in windows of `window` shards.

    Args:
        shards: shard index of each video.
        window: number of shards shuffled together.
    """

    def __init__(self, shards: Indices, window: int) -> None:
        _, counts = np.unique(shards, return_counts=True)
        self._videos = np.split(np.argsort(shards, kind="stable"), np.cumsum(counts)[:-1])
        self._window = window

    def __call__(self, count: int, seed: int, epoch: int) -> Indices:
        """Return an epoch's permutation of all videos, a pure function of the arguments."""
        rng = np.random.default_rng([seed, epoch, 0x5A4D])
        shards = rng.permutation(len(self._videos)).tolist()
        windows = [shards[begin : begin + self._window] for begin in range(0, len(shards), self._window)]
        return np.concatenate([rng.permutation(np.concatenate([self._videos[s] for s in each])) for each in windows])


def step_positions(count: int, seed: int, step: int, batch_size: int, order: Order = epoch_order) -> Indices:
    """Return the positions of a training step's videos.

    The orders of the epochs form one stream that is cut into full batches, so every video occurs once an epoch and no
    batch is short.
    """
    begin = step * batch_size
    epochs = range(begin // count, (begin + batch_size - 1) // count + 1)
    begin -= epochs[0] * count
    # Sliced first, since an epoch may have millions of videos.
    orders = [_cached(order, count, seed, epoch)[: begin + batch_size] for epoch in epochs]
    return np.concatenate([orders[0][begin:], *orders[1:]])[:batch_size]


@lru_cache(maxsize=4)
def _cached(order: Order, count: int, seed: int, epoch: int) -> Indices:
    return order(count, seed, epoch)
