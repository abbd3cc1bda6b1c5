"""Soft targets on disk: what the teacher said, for the very records it said it of, and for no others."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import TINY, make_video
from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.example import encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.holdout import split_folds
from reeltag.data.loader import training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import preset_schema
from reeltag.data.shards import Shards, scan
from reeltag.data.soft_targets import SoftTargets, TargetsWriter
from reeltag.data.synthetic import write_synthetic


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_synthetic(folder, TINY)
    return scan(sorted(folder.glob("train-*")), TINY.record_schema)


@pytest.fixture(scope="module")
def probabilities(manifest):
    return torch.rand(len(manifest), 8, generator=torch.Generator().manual_seed(3))


def write(folder, manifest, probabilities, top_k, left_out=()):
    writer = TargetsWriter(folder, manifest, top_k)
    taught = np.setdiff1d(np.arange(len(manifest)), left_out)
    for indices in split_folds(taught, 7, 5):  # in no order of the shards
        writer.put(indices, probabilities[indices])
    return writer.finish({"name": "test"})


@pytest.mark.parametrize("top_k", [1, 3, 8, 100, "dense"])
def test_rows_are_the_highest_probabilities_in_float16(manifest, probabilities, tmp_path, top_k):
    write(tmp_path, manifest, probabilities, top_k)
    order = np.random.default_rng(0).permutation(len(manifest))
    rows = SoftTargets(tmp_path, manifest).rows(order)
    for row, index in zip(rows, order, strict=True):
        kept = 8 if top_k == "dense" else min(top_k, 8)
        expected = torch.zeros(8)
        for value, place in sorted(((v, c) for c, v in enumerate(probabilities[index].tolist())), reverse=True)[:kept]:
            expected[place] = float(np.float16(value))
        assert torch.equal(row, expected)


def test_batches_carry_the_targets_of_their_own_videos(manifest, probabilities, tmp_path):
    write(tmp_path, manifest, probabilities, "dense")
    targets = SoftTargets(tmp_path, manifest)
    indices = np.arange(len(manifest))
    by_name = {Shards(manifest).read(index).id: probabilities[index] for index in indices}
    for workers in (0, 1):
        batches = training_batches(
            Shards(manifest),
            indices,
            shuffle=Shuffle(1),
            batch_size=5,
            steps=range(4),
            targets=targets.rows,
            workers=workers,
        )
        for batch in batches:
            assert torch.equal(batch.targets, torch.stack([by_name[name] for name in batch.ids]).half().float())


@pytest.mark.parametrize("top_k", [2, "dense"])
def test_a_video_that_was_kept_from_the_teacher_has_no_targets(manifest, probabilities, tmp_path, top_k):
    write(tmp_path, manifest, probabilities, top_k, left_out=[4, 20])
    targets = SoftTargets(tmp_path, manifest)
    assert targets.rows(np.array([3, 5])).shape == (2, 8)
    for index in (4, 20):
        with pytest.raises(DataError, match="has no soft targets") as caught:
            targets.rows(np.array([3, index]))
        assert (caught.value.file, caught.value.record, caught.value.offset) == Shards(manifest).location(index)


def test_shards_are_known_by_what_they_say_and_not_by_their_place(manifest, probabilities, tmp_path):
    write(tmp_path, manifest, probabilities, "dense")
    paths = [shard.path for shard in manifest.shards]
    turned = scan([type(tmp_path)(path) for path in reversed(paths)], TINY.record_schema)
    first = manifest.shards[0].records
    rows = SoftTargets(tmp_path, turned).rows(np.arange(len(turned)))
    assert torch.equal(rows, torch.cat([probabilities[first:], probabilities[:first]]).half().float())


def test_targets_of_other_shards_are_refused(manifest, probabilities, tmp_path):
    write(tmp_path, manifest, probabilities, 3)
    changed = replace(manifest, shards=(replace(manifest.shards[0], sha256="0" * 64), *manifest.shards[1:]))
    with pytest.raises(UsageError, match=r"computed for other data than .*train-000.*; recompute the soft targets"):
        SoftTargets(tmp_path, changed)


def test_a_file_that_was_changed_or_cut_short_is_refused(manifest, probabilities, tmp_path):
    write(tmp_path, manifest, probabilities, 3)
    file = tmp_path / "00001.npy"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"00001.npy: was changed"):
        SoftTargets(tmp_path, manifest)
    file.write_bytes(content[:-1])
    with pytest.raises(UsageError, match=r"00001.npy: was changed"):
        SoftTargets(tmp_path, manifest)


def test_an_index_of_which_a_byte_changed_is_refused(manifest, probabilities, tmp_path):
    write(tmp_path, manifest, probabilities, 3)
    content = (tmp_path / "targets.json").read_bytes()
    for place in range(0, len(content), 5):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        (tmp_path / "targets.json").write_bytes(changed)
        with pytest.raises(UsageError, match=r"targets.json: (was changed|cannot be read)"):
            SoftTargets(tmp_path, manifest)


def test_no_index_is_no_targets(manifest, tmp_path):
    TargetsWriter(tmp_path, manifest, 3)  # killed before it finished
    with pytest.raises(UsageError, match=r"targets.json: cannot be read"):
        SoftTargets(tmp_path, manifest)


def test_equal_targets_have_equal_hashes(manifest, probabilities, tmp_path):
    first, second = (write(tmp_path / name, manifest, probabilities, 3) for name in "ab")
    other = write(tmp_path / "c", manifest, 1 - probabilities, 3)
    assert first == second != other
    index = json.loads((tmp_path / "a" / "targets.json").read_text())
    assert [entry["shard"] for entry in index["shards"]] == [shard.sha256 for shard in manifest.shards]
    assert sum(entry["taught"] for entry in index["shards"]) == len(manifest)


def test_a_hundred_probabilities_take_less_than_a_hundredth_of_youtube_8m_records(tmp_path):
    schema = preset_schema("yt8m-frame")
    videos = [make_video(schema, 230, name=f"v{number}") for number in range(8)]  # 230 frames are YouTube-8M's mean
    write_shard(tmp_path / "train.tfrecord", [encode(video, schema) for video in videos])
    manifest = scan([tmp_path / "train.tfrecord"], schema)
    write(tmp_path / "targets", manifest, torch.rand(8, schema.classes), 100)
    size = sum(path.stat().st_size for path in (tmp_path / "targets").iterdir())
    assert 100 * size < manifest.bytes


def test_folds_deal_every_video_out_once():
    indices = np.arange(3, 100, 2)
    folds = split_folds(indices, 5, 4)
    assert sorted(np.concatenate(folds)) == indices.tolist()
    assert {len(fold) for fold in folds} == {12, 13}
    assert not np.array_equal(folds[0], split_folds(indices, 6, 4)[0])
