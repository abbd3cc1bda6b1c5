"""Batches: padding, the draw of frames, and a loader whose every step is a pure function of its number."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import TINY, golden, make_video
from reeltag.core.errors import DataError
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.loader import (
    Batch,
    collate,
    sample_frames,
    select_frames,
    sequential_batches,
    stream_batches,
    training_batches,
)
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import Schema
from reeltag.data.shards import Manifest, Shards, read_examples, scan

BYTES = TINY.record_schema
FLOATS = Schema(**BYTES.model_dump() | {"dtype": "float32"})
each_worker_count = pytest.mark.parametrize("workers", [0, 2])


@pytest.fixture
def shards(tiny_manifests: dict[str, Manifest]) -> Shards:
    return Shards(tiny_manifests["train"])


def assert_equal(batches: Iterable[Batch], others: Iterable[Batch]) -> None:
    for one, other in zip(batches, others, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(one.frames, other.frames, rtol=0, atol=0)
        torch.testing.assert_close(one.lengths, other.lengths, rtol=0, atol=0)
        assert (one.labels is None) == (other.labels is None)
        if one.labels is not None:
            torch.testing.assert_close(one.labels, other.labels, rtol=0, atol=0)


def side_by_side(videos: list[Video], schema: Schema) -> Batch:
    return collate(iter(videos), [video.length for video in videos], schema)


# --- collate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [BYTES, FLOATS], ids=["bytes", "floats"])
def test_videos_stand_side_by_side_padded_with_zeros(schema: Schema) -> None:
    videos = [make_video(schema, length, [length], str(length)) for length in (2, 5, 1)]
    batch = side_by_side(videos, schema)
    assert (len(batch), batch.ids) == (3, ("2", "5", "1"))
    assert batch.frames.shape == (3, 5, schema.width)
    assert batch.frames.dtype == getattr(torch, schema.dtype)
    assert (batch.lengths.tolist(), batch.lengths.dtype) == ([2, 5, 1], torch.int64)
    for row, video in zip(batch.frames.numpy(), videos, strict=True):
        np.testing.assert_array_equal(row[: video.length], video.frames())
        assert not row[video.length :].any()
    assert batch.labels is not None
    assert batch.labels.nonzero().tolist() == [[0, 2], [1, 5], [2, 1]]
    assert batch.labels.shape == (3, schema.classes)


def test_padding_is_zero_whatever_the_memory_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 255, dtype))
    frames = side_by_side([make_video(BYTES, 5), make_video(BYTES, 2)], BYTES).frames
    assert not frames[1, 2:].any()


def test_a_batch_has_labels_only_if_every_video_has() -> None:
    labels = [[1], [], None]
    videos = [make_video(BYTES, labels=value) for value in labels]
    assert side_by_side(videos, BYTES).labels is None
    known = side_by_side(videos[:2], BYTES).labels
    assert known is not None
    assert known.sum(1).tolist() == [1, 0]


# --- the draw of frames -------------------------------------------------------------------------


def numbered(lengths: list[int]) -> Batch:
    """A batch whose frames hold their own number, and -1 past the end of a video."""
    number = torch.arange(max(lengths)).expand(len(lengths), -1)
    frames = torch.where(number < torch.tensor(lengths)[:, None], number, -1)[..., None].float()
    return Batch(("",) * len(lengths), frames, torch.tensor(lengths), None)


def draw(batch: Batch, count: int, seed: int = 0) -> Batch:
    return select_frames(batch, sample_frames(batch.lengths, count, torch.Generator().manual_seed(seed)))


def test_draws_stay_within_a_video_and_come_equally_often() -> None:
    lengths, count = [1, 7, 50, 300], 30_000
    drawn = draw(numbered(lengths), count)
    assert drawn.frames.shape == (4, count, 1)
    assert drawn.lengths.tolist() == [count] * 4
    for row, length in zip(drawn.frames[..., 0].long(), lengths, strict=True):
        assert row.min() >= 0
        seen = torch.bincount(row, minlength=length)
        assert len(seen) == length
        expected = count / length
        chi_square, freedom = float(((seen - expected) ** 2 / expected).sum()), length - 1
        assert abs(chi_square - freedom) <= 4 * (2 * freedom) ** 0.5


def test_draws_follow_the_winners_formula() -> None:
    arrays = golden("samplers")
    x, lengths = arrays["x"], arrays["num_frames"]
    drawn = draw(Batch(("",) * 3, torch.from_numpy(x), torch.from_numpy(lengths), None), 40, seed=5)
    uniform = torch.rand(3, 40, generator=torch.Generator().manual_seed(5)).numpy().astype(np.float64)
    rows = (uniform * lengths[:, None]).astype(np.int64)  # index = int(uniform * num_frames)
    np.testing.assert_array_equal(drawn.frames.numpy(), np.take_along_axis(x, rows[..., None], 1))


def test_the_largest_draw_is_the_last_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, generator: torch.full(shape, 1 - 2**-24))
    lengths = list(range(1, 301))
    assert draw(numbered(lengths), 1).frames.flatten().tolist() == [length - 1 for length in lengths]


def test_draws_are_repeatable_and_differ_by_seed_and_by_video() -> None:
    batch = numbered([100, 100])
    assert_equal([draw(batch, 50, seed=1)], [draw(batch, 50, seed=1)])
    assert not torch.equal(draw(batch, 50, seed=1).frames, draw(batch, 50, seed=2).frames)
    one, other = draw(batch, 50).frames
    assert not torch.equal(one, other)


# --- the loader ---------------------------------------------------------------------------------

INDICES = np.array([20, 3, 5, 8, 13, 1, 2, 23, 11, 0, 7])


def train(shards: Shards, steps: range, **more: Any) -> Iterator[Batch]:
    return training_batches(shards, INDICES, **{"shuffle": Shuffle(4), "batch_size": 4, "steps": steps} | more)


def test_worker_processes_change_nothing(shards: Shards) -> None:
    assert_equal(train(shards, range(8), workers=2), train(shards, range(8)))
    assert_equal(sequential_batches(shards, batch_size=5, workers=2), sequential_batches(shards, batch_size=5))


def test_every_step_is_the_same_wherever_training_begins(shards: Shards) -> None:
    whole = list(train(shards, range(9)))
    for begin in range(9):
        assert_equal(train(shards, range(begin, 9)), whole[begin:])


def test_training_visits_its_own_videos_once_an_epoch_in_full_batches(shards: Shards) -> None:
    batches = list(train(shards, range(11)))
    assert {len(batch) for batch in batches} == {4}
    seen = [name for batch in batches for name in batch.ids]
    own = sorted(shards.read(index).id for index in INDICES.tolist())
    epochs = [seen[begin : begin + 11] for begin in range(0, 44, 11)]
    assert all(sorted(epoch) == own for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_another_seed_gives_another_order(shards: Shards) -> None:
    assert [batch.ids for batch in train(shards, range(4))] != [
        batch.ids for batch in train(shards, range(4), shuffle=Shuffle(5))
    ]


@pytest.mark.parametrize("batch_size", [1, 5, 24, 100])
def test_sequential_batches_visit_every_video_once_in_order(shards: Shards, batch_size: int) -> None:
    batches = list(sequential_batches(shards, batch_size=batch_size))
    expected = [shards.read(index).id for index in range(24)]
    assert [name for batch in batches for name in batch.ids] == expected
    assert all(len(batch) == batch_size for batch in batches[:-1])
    chosen = [name for batch in sequential_batches(shards, INDICES, batch_size=batch_size) for name in batch.ids]
    assert chosen == [expected[index] for index in INDICES.tolist()]


def test_streamed_batches_equal_those_of_a_manifest(shards: Shards) -> None:
    paths = [Path(shard.path) for shard in shards.manifest.shards]
    assert_equal(stream_batches(read_examples(paths, BYTES), BYTES, 7), sequential_batches(shards, batch_size=7))


def test_video_level_records_make_batches_of_one_frame(tmp_path: Path) -> None:
    schema = Schema(**FLOATS.model_dump() | {"level": "video"})
    videos = [make_video(schema, 1, [number], str(number)) for number in range(3)]
    write_shard(tmp_path / "shard", (encode(video, schema) for video in videos))
    (batch,) = sequential_batches(Shards(scan([tmp_path / "shard"], schema)), batch_size=4)
    assert (batch.frames.shape, batch.frames.dtype) == ((3, 1, 8), torch.float32)
    assert_equal([batch], [side_by_side(videos, schema)])


@each_worker_count
def test_the_loader_leaves_the_global_random_state_alone(shards: Shards, workers: int) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert len(list(train(shards, range(3), workers=workers))) == 3
    assert torch.equal(torch.get_rng_state(), before)


@each_worker_count
def test_a_damaged_record_arrives_as_the_plain_error(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "shard.tfrecord"
    write_shard(path, (encode(make_video(BYTES, name=str(number)), BYTES) for number in range(6)))
    manifest = scan([path], BYTES)
    content, offset = bytearray(path.read_bytes()), int(manifest.offsets[4])
    content[offset + 30] ^= 1
    path.write_bytes(content)
    batches = sequential_batches(Shards(manifest), batch_size=2, workers=workers)
    assert [next(batches).ids, next(batches).ids] == [("0", "1"), ("2", "3")]
    with pytest.raises(DataError) as caught:
        next(batches)
    error = caught.value
    assert (error.file, error.record, error.offset) == (str(path), 4, offset)
    assert str(error).startswith(f"{path}, record 4, byte {offset}: CRC of the payload does not match")
    assert "Traceback" not in str(error)
