"""Shard sets: the manifest, random access, the hold-out and the order of training."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import TINY, assert_same, encode_unchecked, make_video
from reeltag.core.errors import ArtifactError, DataError, UsageError
from reeltag.core.storage import file_hash
from reeltag.data.formats.example import Video
from reeltag.data.formats.tfrecord import ShardFile, write_shard
from reeltag.data.holdout import refuse_overlap, split_holdout
from reeltag.data.sampler import epoch_order, step_positions
from reeltag.data.shards import (
    Manifest,
    Shards,
    read_examples,
    scan,
)

SCHEMA = TINY.record_schema


def write(path: Path, videos: Iterable[Video]) -> Path:
    write_shard(path, (encode_unchecked(video, SCHEMA) for video in videos))
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three videos in one shard, two in another; one without labels, one too long."""
    first = [make_video(SCHEMA, 3, [0, 7], "a"), make_video(SCHEMA, 12, [7], "b"), make_video(SCHEMA, 1, None, "c")]
    second = [make_video(SCHEMA, 9, [], "d"), make_video(SCHEMA, 2, [1, 2, 7], "e")]
    return [write(tmp_path / "first.tfrecord", first), write(tmp_path / "second.tfrecord", second)]


# --- the manifest -------------------------------------------------------------------------------


def test_scan_counts_what_the_shards_hold(paths: list[Path]) -> None:
    told: list[int] = []
    manifest = scan(paths, SCHEMA, told.append)
    assert len(manifest) == 5
    assert [shard.records for shard in manifest.shards] == [3, 2]
    assert manifest.first_records.tolist() == [0, 3, 5]
    assert manifest.frames.tolist() == [3, 12, 1, 9, 2]
    assert manifest.class_counts.tolist() == [1, 1, 1, 0, 0, 0, 0, 3]
    assert manifest.labelled == 4
    assert manifest.offsets.tolist() == [offset for path in paths for offset in ShardFile(path).offsets().tolist()]
    assert [shard.sha256 for shard in manifest.shards] == [file_hash(path) for path in paths]
    assert told == [path.stat().st_size for path in paths]
    assert manifest.bytes == sum(told)


def test_a_saved_manifest_comes_back_equal(paths: list[Path], tmp_path: Path) -> None:
    manifest = scan(paths, SCHEMA)
    manifest.save(tmp_path / "manifest")
    again = Manifest.load(tmp_path / "manifest")
    assert (again.schema, again.shards, again.labelled) == (manifest.schema, manifest.shards, manifest.labelled)
    for key in ("offsets", "numbers", "crcs", "frames", "id_hashes", "class_counts"):
        one, other = getattr(manifest, key), getattr(again, key)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert again.fingerprint == manifest.fingerprint


def test_the_fingerprint_tells_content_and_nothing_else(paths: list[Path], tmp_path: Path) -> None:
    expected = scan(paths, SCHEMA).fingerprint
    (tmp_path / "elsewhere").mkdir()
    moved = [Path(shutil.copyfile(path, tmp_path / "elsewhere" / f"{path.name}.copy")) for path in paths]
    assert scan(moved, SCHEMA).fingerprint == expected
    assert scan(moved[::-1], SCHEMA).fingerprint != expected
    videos = list(read_examples(moved[1:], SCHEMA))
    changed = videos[0].features[0].copy()
    changed[0, 0] ^= 1
    videos[0] = replace(videos[0], features=(changed, videos[0].features[1]))
    write(moved[1], videos)
    assert moved[1].stat().st_size == paths[1].stat().st_size
    assert scan(moved, SCHEMA).fingerprint != expected


def test_a_damaged_manifest_is_an_error_that_says_what_to_do(paths: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "data.train-123456789abc"
    folder.mkdir(parents=True)
    whole, damaged = tmp_path / "manifest", folder / "damaged"
    scan(paths, SCHEMA).save(whole)
    content = whole.read_bytes()
    for bad in [b"", b"notes", *(content[:size] for size in range(0, len(content), 7))]:
        damaged.write_bytes(bad)
        with pytest.raises(ArtifactError, match=rf"damaged: .* remove {folder} and run again"):
            Manifest.load(damaged)
    with pytest.raises(ArtifactError, match=rf"missing: no such file; remove {folder} and run again"):
        Manifest.load(folder / "missing")


def test_every_flipped_bit_in_a_manifest_is_refused(paths: list[Path], tmp_path: Path) -> None:
    scan(paths, SCHEMA).save(tmp_path / "manifest")
    content = (tmp_path / "manifest").read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        (tmp_path / "manifest").write_bytes(flipped)
        with pytest.raises(ArtifactError, match="manifest: "):
            Manifest.load(tmp_path / "manifest")


# --- what may not stand in a set ----------------------------------------------------------------


def test_an_id_that_stands_twice_is_refused_with_both_places(paths: list[Path], tmp_path: Path) -> None:
    third = write(tmp_path / "third.tfrecord", [make_video(SCHEMA, name="f"), make_video(SCHEMA, name="b")])
    offset = int(ShardFile(third).offsets()[1])
    with pytest.raises(DataError, match=rf"id 'b' occurs already in record 1 of {paths[0]}") as caught:
        scan([*paths, third], SCHEMA)
    assert (caught.value.file, caught.value.record, caught.value.offset) == (str(third), 1, offset)


def test_a_record_that_breaks_the_schema_is_refused_with_its_place(paths: list[Path], tmp_path: Path) -> None:
    third = write(tmp_path / "third.tfrecord", [make_video(SCHEMA, name="f"), make_video(SCHEMA, 2, [8], "g")])
    with pytest.raises(DataError, match="label 8 is outside") as caught:
        scan([*paths, third], SCHEMA)
    assert (caught.value.file, caught.value.record) == (str(third), 1)
    assert caught.value.offset == ShardFile(third).offsets()[1]


def test_test_videos_in_training_are_refused(paths: list[Path], tmp_path: Path) -> None:
    train = scan(paths, SCHEMA)
    refuse_overlap(train, scan([write(tmp_path / "other", [make_video(SCHEMA, name="z")])], SCHEMA))
    path = write(tmp_path / "test.tfrecord", [make_video(SCHEMA, name=name) for name in "xdyb"])
    with pytest.raises(DataError, match=r"2 test videos are training videos too, the first is '[bd]'") as caught:
        refuse_overlap(train, scan([path], SCHEMA))
    assert (caught.value.file, caught.value.record in (1, 3)) == (str(path), True)


# --- random access ------------------------------------------------------------------------------


def test_random_access_reads_what_sequential_reading_reads(tiny_shards: Path) -> None:
    paths = sorted(tiny_shards.glob("train-*"))
    shards, videos = Shards(scan(paths, SCHEMA)), list(read_examples(paths, SCHEMA))
    assert len(shards) == len(videos) == TINY.train_videos
    again = pickle.loads(pickle.dumps(shards))
    for index in np.random.default_rng(0).permutation(len(videos)).tolist():
        assert_same(shards.read(index), videos[index])
        assert_same(again.read(index), videos[index])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:30])


def remake(path: Path) -> None:
    write(path, [make_video(SCHEMA, length, name=f"new {length}") for length in (5, 6)])


def lengthen(path: Path) -> None:
    write(path, [make_video(SCHEMA, 9, [], "d"), make_video(SCHEMA, 3, [1, 2, 7], "e")])


@pytest.mark.parametrize("change", [flip, cut, remake, lengthen, Path.unlink])
def test_a_shard_that_changed_after_its_manifest_is_a_data_error_with_a_place(
    paths: list[Path], change: Callable[[Path], object]
) -> None:
    shards = Shards(scan(paths, SCHEMA))
    change(paths[1])
    with pytest.raises(DataError) as caught:
        shards.read(4)
    assert caught.value.file == str(paths[1])
    assert "-" not in caught.value.reason, "no negative number of bytes"
    assert shards.read(0).id == "a"


# --- the hold-out -------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "held"), [({"fraction": 0.25}, 6), ({"fraction": 0.1}, 2), ({"shards": 1}, 12)])
def test_the_hold_out_is_disjoint_complete_and_seeded(
    tiny_manifests: dict[str, Manifest], how: dict[str, float], held: int
) -> None:
    manifest = tiny_manifests["train"]
    train, holdout = split_holdout(manifest, 3, **how)
    assert sorted([*train, *holdout]) == list(range(24))
    assert len(holdout) == held
    np.testing.assert_array_equal(split_holdout(manifest, 3, **how)[1], holdout)
    assert len({tuple(split_holdout(manifest, seed, **how)[1]) for seed in range(8)}) > 1


def test_the_hold_out_by_shards_takes_whole_shards(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / str(shard), [make_video(SCHEMA, name=f"{shard} {number}") for number in range(shard + 1)])
        for shard in range(5)
    ]
    shard_of = np.repeat(np.arange(5), np.arange(1, 6))
    train, holdout = split_holdout(scan(paths, SCHEMA), 0, shards=2)
    assert len(set(shard_of[holdout])) == 2
    assert not set(shard_of[holdout]) & set(shard_of[train])


@pytest.mark.parametrize(
    "how", [{"fraction": 0.001}, {"fraction": 0.04}, {"fraction": 0.999}, {"shards": 2}, {"shards": 0}, {}]
)
def test_a_hold_out_needs_videos_on_both_sides(tiny_manifests: dict[str, Manifest], how: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"data\.holdout: holds out (0|1|24) of 24 videos; hold out two"):
        split_holdout(tiny_manifests["train"], 0, **how)


def test_a_hold_out_of_some_shards_is_drawn_from_them_alone(tmp_path: Path) -> None:
    names = [f"train{shard}" for shard in range(3)] + [f"validate{shard}" for shard in range(4)]
    paths = [
        write(tmp_path / name, [make_video(SCHEMA, name=f"{name} {number}") for number in range(5)]) for name in names
    ]
    manifest, shard_of = scan(paths, SCHEMA), np.repeat(np.arange(7), 5)
    for how, held in (({"shards": 2}, 10), ({"shards": 4}, 20), ({"fraction": 0.3}, 6)):
        found = set()
        for seed in range(6):
            train, holdout = split_holdout(manifest, seed, patterns=["validate[0-2]", "validate3"], **how)
            assert sorted([*train, *holdout]) == list(range(35))
            assert len(holdout) == held
            assert set(shard_of[holdout]) <= {3, 4, 5, 6}
            found.add(tuple(holdout))
        assert len(found) > 1 or held == 20
    for how in ({"shards": 2}, {"fraction": 0.3}):
        for mine, theirs in zip(
            split_holdout(manifest, 1, patterns=["*"], **how), split_holdout(manifest, 1, **how), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)
    with pytest.raises(UsageError, match=r"data\.holdout\.from: valid\? matches none of the 7 training shards"):
        split_holdout(manifest, 1, shards=1, patterns=["validate*", "valid?"])
    with pytest.raises(UsageError, match=r"shards = 5, and `from` matches 4 training shards; hold out fewer"):
        split_holdout(manifest, 1, shards=5, patterns=["validate*"])


# --- the order ----------------------------------------------------------------------------------


def test_an_epochs_order_is_a_permutation_that_epoch_and_seed_decide() -> None:
    orders = {(seed, epoch): epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9
    assert all((epoch_order(50, *key) == order).all() for key, order in orders.items())


@given(count=st.integers(1, 40), batch_size=st.integers(1, 60), seed=st.integers(0, 5))
def test_steps_cut_the_epochs_into_full_batches(count: int, batch_size: int, seed: int) -> None:
    epochs = 4
    steps = -(-epochs * count // batch_size)
    batches = [step_positions(count, seed, step, batch_size) for step in range(steps)]
    assert {len(batch) for batch in batches} == {batch_size}
    stream = np.concatenate(batches)
    for epoch in range(epochs):
        seen = stream[epoch * count : (epoch + 1) * count]
        assert sorted(seen) == list(range(count))
        np.testing.assert_array_equal(seen, epoch_order(count, seed, epoch))
    for step in reversed(range(steps)):  # whatever came before
        np.testing.assert_array_equal(step_positions(count, seed, step, batch_size), batches[step])


def test_a_caller_that_changes_a_batch_does_not_change_the_order() -> None:
    step_positions(7, 0, 0, 7)[:] = 0
    assert sorted(step_positions(7, 0, 0, 7)) == list(range(7))


def test_a_shard_that_was_replaced_by_another_is_not_read_as_the_old_one(tiny_shards: Path, tmp_path: Path) -> None:
    first, second = sorted(tiny_shards.glob("train-*"))[:2]
    path = tmp_path / "train.tfrecord"
    path.write_bytes(first.read_bytes())
    manifest = scan([path], TINY.record_schema)
    path.unlink()  # a new file, as a fresh download would be
    path.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=r"when it was indexed; put back .* or `touch` this one"):
        Shards(manifest).read(0)
