"""Split videos into training, hold-out and folds, and keep test videos out of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import DataError, UsageError
from reeltag.core.text import counted
from reeltag.data.shards import Indices, Manifest, Shards


def refuse_overlap(train: Manifest, test: Manifest) -> None:
    """Keep test videos out of training.

    Raises:
        DataError: a video is in both sets.
    """
    shared = np.intersect1d(train.id_hashes, test.id_hashes)
    if len(shared):
        index = int(np.flatnonzero(test.id_hashes == shared[0])[0])
        shards = Shards(test)
        path, record, offset = shards.location(index)
        name = shards.video(index).id
        raise DataError(
            f"{len(shared)} test videos are training videos too, the first is {name!r}; "
            "give data.train and data.test different shards",
            file=path,
            record=record,
            offset=offset,
        )


def matching_shards(paths: Iterable[str], patterns: Sequence[str], shards: int | None = None) -> npt.NDArray[np.bool_]:
    """Return a mask [shards] of the training shards that the hold-out may be drawn from.

    Args:
        paths: paths or URLs of the training shards.
        patterns: of their names, relative ones with as many folders as they have; empty for all shards.
        shards: number of shards to hold out, if the hold-out is counted in shards.

    Raises:
        UsageError: a pattern matches no training shard, or fewer shards match than are to be held out.
    """
    names = [PurePath(path) for path in paths]
    matches = np.array([[name.match(pattern) for name in names] for pattern in patterns], bool)
    for pattern, found in zip(patterns, matches, strict=True):
        if not found.any():
            raise UsageError(
                f"data.holdout.from: {pattern} matches none of the {counted(len(names), 'training shard')}, of which "
                f"the first is {names[0].name}; give patterns of shards in data.train"
            )
    mask: npt.NDArray[np.bool_] = np.logical_or.reduce(matches) if patterns else np.ones(len(names), bool)
    if patterns and shards is not None and shards > mask.sum():
        raise UsageError(
            f"data.holdout: shards = {shards}, and `from` matches {counted(int(mask.sum()), 'training shard')}; "
            "hold out fewer, or match more"
        )
    return mask


def split_holdout(
    manifest: Manifest,
    seed: int,
    *,
    fraction: float | None = None,
    shards: int | None = None,
    patterns: Sequence[str] = (),
) -> tuple[Indices, Indices]:
    """Sample the hold-out by `seed`; return training and hold-out indices. A video's segments stay together.

    Args:
        manifest: the shard set.
        seed: any whole number.
        fraction: of the videos to hold out, or
        shards: number of whole shards to hold out (the paper holds out 800 of its validation shards).
        patterns: of the shards that the hold-out is drawn from; all by default.

    Raises:
        UsageError: nothing would be left to train on, no video for each half of the hold-out, or as `matching_shards`.
    """
    rng, videos = np.random.default_rng([seed, 0x401D]), manifest.videos
    held = np.zeros(len(manifest), bool)
    first = manifest.first_records
    allowed = matching_shards((shard.path for shard in manifest.shards), patterns, shards)
    if shards is not None:
        for shard in rng.permutation(np.flatnonzero(allowed))[:shards]:
            held[first[shard] : first[shard + 1]] = True
    elif fraction is not None:
        among = np.unique(videos[np.repeat(allowed, np.diff(first))] if patterns else videos)
        held = np.isin(videos, rng.permutation(among)[: round(fraction * len(among))])
    if held.all() or len(np.unique(videos[held])) < 2:
        raise UsageError(
            f"data.holdout: holds out {held.sum()} of {counted(len(manifest), manifest.schema.example)}; "
            "hold out two or more, and leave some"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_folds(indices: Indices, seed: int, folds: int) -> list[Indices]:
    """Distribute videos randomly over folds of equal size, give or take one; each fold in ascending order."""
    shuffled = np.random.default_rng([seed, 0xF01D]).permutation(indices)
    return [np.sort(shuffled[fold::folds]) for fold in range(folds)]


def split_halves(videos: Indices, seed: int) -> tuple[Indices, Indices]:
    """Return the positions of the examples in two random halves of the videos.

    Args:
        videos: [N] index of each example's video.
        seed: any whole number.
    """
    _, of = np.unique(videos, return_inverse=True)
    sampled = np.random.default_rng([seed, 0xA1F]).permutation(int(of.max()) + 1)
    rank = np.empty_like(sampled)
    rank[sampled] = np.arange(len(sampled))
    order = np.argsort(rank[of], kind="stable")
    first = int((rank[of] < (len(sampled) + 1) // 2).sum())
    return order[:first], order[first:]
