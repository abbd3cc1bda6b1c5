"""Rated segments: records of TensorFlow's kind, what is refused, examples that stay with their video, and the mask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conftest import assert_same, make_video
from distributed_cases import CASES, Recorded, one_case
from oracle import agree
from reeltag.core.distributed.process_group import launch
from reeltag.core.errors import DataError
from reeltag.data.formats.example import Video, decode, encode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.holdout import refuse_overlap, split_halves, split_holdout
from reeltag.data.loader import collate, sequential_batches, training_batches
from reeltag.data.ratings import Ratings
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import Feature, Schema
from reeltag.data.segments import iter_examples
from reeltag.data.shards import Manifest, Shards, read_examples, scan
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.training.losses import cross_entropy
from reeltag.training.replica import Replica
from reeltag.training.schedule import TrainingSettings

SCHEMA = Schema(
    features=(Feature(name="rgb", width=6), Feature(name="audio", width=2)), classes=9, max_frames=40, segments=5
)
NAMES = ("segment_start_times", "segment_end_times", "segment_labels", "segment_scores")


def tensorflows(
    ratings: Sequence[tuple[float, ...]], length: int = 12, name: str = "ab", leave_out: str = "", **others: Any
) -> bytes:
    """A record as TensorFlow writes it, with ratings (start, end, class, score); `others` are instead of a column."""
    message = SequenceExample()
    context = message.context.feature
    context["id"].bytes_list.value.append(name.encode())
    context["labels"].int64_list.value.extend([1, 7])
    for place, key in enumerate(NAMES):
        if key != leave_out:
            column = others.get(key, [rating[place] for rating in ratings])
            values = getattr(context[key], "float_list" if key == NAMES[3] else "int64_list")
            values.SetInParent()
            values.value.extend(column)
    rng = np.random.default_rng(length)
    for feature in SCHEMA.features:
        items = message.feature_lists.feature_list[feature.name].feature
        for row in rng.integers(0, 256, (length, feature.width), np.uint8):
            items.add().bytes_list.value.append(row.tobytes())
    return message.SerializeToString()


RATINGS = [(10, 15, 3, 1.0), (0, 5, 8, 1.0), (0, 5, 3, 0.0), (10, 15, 0, 0.0), (10, 15, 3, 1.0)]  # one of them twice


def test_both_readers_read_what_tensorflow_writes() -> None:
    record = tensorflows(RATINGS)
    assert agree(record, SCHEMA)  # and the strided one takes it
    ratings = decode(record, SCHEMA).ratings
    assert ratings.starts.tolist() == [0, 0, 10, 10]
    assert ratings.classes.tolist() == [3, 8, 0, 3]
    assert ratings.positive.tolist() == [False, True, False, True]


def test_a_schema_of_videos_does_not_look_at_ratings() -> None:
    whole = replace_schema(segments=None)
    record = tensorflows([(1, 2, 3, 4.0)])
    assert decode(record, whole).ratings is None
    assert_same(decode(record, whole), decode(tensorflows([]), whole))


def replace_schema(**changes: Any) -> Schema:
    return Schema(**SCHEMA.model_dump() | changes)


def test_a_record_without_the_features_has_no_ratings_and_one_with_empty_lists_has_none_yet() -> None:
    assert decode(encode(make_video(SCHEMA, 12), SCHEMA), SCHEMA).ratings is None
    assert len(decode(tensorflows([]), SCHEMA).ratings.starts) == 0


@st.composite
def rated_videos(draw: st.DrawFn) -> Video:
    length = draw(st.integers(1, SCHEMA.max_frames))
    segments = st.integers(0, (length - 1) // 5).map(lambda number: 5 * number)
    pairs = sorted(draw(st.sets(st.tuples(segments, st.integers(0, SCHEMA.classes - 1)))))
    starts, classes = np.array(pairs, np.int64).reshape(-1, 2).T
    positive = np.array(draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs))), bool)
    return replace(make_video(SCHEMA, length), ratings=Ratings(starts, classes, positive))


@given(original=rated_videos())
def test_what_we_write_both_readers_read_back(original: Video) -> None:
    record = encode(original, SCHEMA)
    assert agree(record, SCHEMA)
    found = decode(record, SCHEMA)
    assert_same(found, original)
    for column in ("starts", "classes", "positive"):
        np.testing.assert_array_equal(getattr(found.ratings, column), getattr(original.ratings, column))


def test_on_damaged_payloads_the_strided_reader_declines_or_agrees() -> None:
    rng, taken, other = random.Random(3), 0, 0
    sound = tensorflows(RATINGS)
    for _ in range(3000):
        record = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            record[rng.randrange(200)] ^= 1 << rng.randrange(8)  # the ratings are there
        try:
            taken += agree(bytes(record), SCHEMA)
        except (DataError, DecodeError) as error:
            pytest.fail(f"the strided reader took {record!r}, protobuf says: {error}")
        with suppress(DataError):
            other += decode(bytes(record), SCHEMA).ratings is not None
    assert taken > 300
    assert other > 50


BAD = {
    "lengths": (tensorflows(RATINGS, segment_labels=[1, 2]), "the rating features differ in length: {'seg"),
    "no scores": (tensorflows(RATINGS, leave_out=NAMES[3]), "without segment_scores; write all four, or none"),
    "beyond": (tensorflows([(15, 20, 3, 1)]), "segment 15 to 20 begins beyond the 12 frames of the video"),
    "between": (
        tensorflows([(3, 8, 3, 1)]),
        "segment 3 to 8 is not one of the segments of 5 frames",
    ),
    "before": (
        tensorflows([(-5, 0, 3, 1)]),
        "segment -5 to 0 is not one of the segments of 5 frames",
    ),
    "longer": (
        tensorflows([(5, 15, 3, 1)]),
        "segment 5 to 15 is not one of the segments of 5 frames",
    ),
    "backwards": (
        tensorflows([(5, 0, 3, 1)]),
        "segment 5 to 0 is not one of the segments of 5 frames",
    ),
    "unknown class": (tensorflows([(5, 10, 9, 1)]), "segment label 9 is outside the 9 classes 0…8"),
    "negative class": (tensorflows([(5, 10, -1, 1)]), "segment label -1 is outside"),
    "half a score": (tensorflows([(5, 10, 3, 0.5)]), "the segment at 5 has score 0.5 for class 3"),
    "no number": (tensorflows([(5, 10, 3, float("nan"))]), "has score nan for class 3"),
    "both": (tensorflows([*RATINGS, (0, 5, 3, 1.0)]), "class 3 is rated 0 and 1 in the segment at 0"),
}


@pytest.mark.parametrize(("record", "reason"), BAD.values(), ids=BAD)
def test_bad_ratings_are_told_with_record_and_byte(tmp_path: Path, record: bytes, reason: str) -> None:
    first = tensorflows(RATINGS, name="first")
    write_shard(tmp_path / "shard", [first, record, tensorflows(RATINGS, name="last")])
    agree(record, SCHEMA)
    with pytest.raises(DataError) as caught:
        scan([tmp_path / "shard"], SCHEMA, labelled=True)
    assert reason in caught.value.reason
    assert (caught.value.record, caught.value.offset) == (1, len(first) + 16)
    left = scan([tmp_path / "shard"], SCHEMA, max_bad_records=1, labelled=True)
    assert [bad.record for bad in left.left_out] == [1]
    assert len(left) == 2 * 3  # of two videos with three segments each


def test_ratings_of_other_classes_and_records_without_ratings_are_refused(tmp_path: Path) -> None:
    few = replace_schema(segment_classes=[8, 3])
    assert few.segment_classes == (3, 8)
    with pytest.raises(DataError, match="class 0 is rated but not in the schema's 'segment_classes'"):
        decode(tensorflows(RATINGS), few)
    write_shard(tmp_path / "shard", [encode(make_video(SCHEMA, 12), SCHEMA)])
    assert scan([tmp_path / "shard"], SCHEMA).labelled == 0
    with pytest.raises(DataError, match="has no ratings of segments"):
        scan([tmp_path / "shard"], SCHEMA, labelled=True)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"level": "video", "dtype": "float32"}, "segments are made of frames"),
        ({"segments": 41}, "41 is more than max_frames"),
        ({"segments": None, "segment_classes": [1]}, "needs segments"),
        ({"segment_classes": [1, 1]}, "each class may occur only once"),
        ({"segment_classes": [9]}, "9 is not one of the schema's classes"),
    ],
)
def test_contradictions_in_a_schema_are_named(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        replace_schema(**changes)


# --- examples -------------------------------------------------------------------------------------


def test_a_video_is_cut_into_segments_that_make_it_up_again() -> None:
    video = decode(tensorflows(RATINGS), SCHEMA)
    found = dict(iter_examples(video, SCHEMA))
    assert {start: (each.id, each.length) for start, each in found.items()} == {
        0: ("ab:0", 5),
        5: ("ab:5", 5),
        10: ("ab:10", 2),
    }
    np.testing.assert_array_equal(np.concatenate([each.frames() for each in found.values()]), video.frames())
    assert {start: (each.labels.tolist(), each.rated.tolist()) for start, each in found.items()} == {
        0: ([8], [3, 8]),
        5: ([], []),
        10: ([3], [0, 3]),
    }
    assert [start for start, _ in iter_examples(video, SCHEMA, rated_only=True)] == [0, 10]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Three shards of 30 videos, of 3 to 40 frames, some with many ratings and some with none."""
    rng = np.random.default_rng(1)
    for shard in range(3):
        records = []
        for number in range(10):
            length = int(rng.integers(3, 41))
            starts = 5 * rng.integers(0, -(-length // 5), number)
            ratings = {(int(start), int(rng.integers(9))): float(rng.integers(2)) for start in starts}
            rows = [(start, start + 5, label, score) for (start, label), score in ratings.items()]
            records.append(tensorflows(rows, length, f"v{shard}-{number}"))
        write_shard(tmp_path / f"shard-{shard}", records)
    return sorted(tmp_path.glob("shard-*"))


def test_random_access_gives_the_segments_that_one_walk_gives(paths: list[Path], tmp_path: Path) -> None:
    manifest = scan(paths, SCHEMA)
    manifest.save(tmp_path / "manifest")
    shards, walked = Shards(Manifest.load(tmp_path / "manifest")), list(read_examples(paths, SCHEMA))
    assert len(walked) == len(shards) > 100
    for index in np.random.default_rng(0).permutation(len(walked)).tolist():
        found = shards.read(index)
        assert_same(found, walked[index])
        assert found.rated.tolist() == walked[index].rated.tolist()
        assert found.length == shards.lengths[index]
    counts = np.bincount(np.concatenate([each.labels for each in walked]), minlength=9)
    np.testing.assert_array_equal(manifest.class_counts, counts)
    rated = scan(paths, SCHEMA, rated_only=True)
    assert rated.labelled == manifest.labelled == len(rated) < len(manifest)
    assert [Shards(rated).read(i).id for i in range(len(rated))] == [each.id for each in walked if len(each.rated)]
    np.testing.assert_array_equal(rated.class_counts, counts)


@pytest.mark.parametrize("how", [{"fraction": 0.3}, {"shards": 1}], ids=str)
def test_no_video_is_on_both_sides_of_a_split(paths: list[Path], how: dict[str, Any]) -> None:
    manifest = scan(paths, SCHEMA, rated_only=True)
    ids = np.array([Shards(manifest).read(index).id.partition(":")[0] for index in range(len(manifest))])
    assert len(manifest) > len(set(ids)) > 20
    assert len(set(ids)) == len(set(manifest.videos.tolist()))
    for seed in range(5):
        train, holdout = split_holdout(manifest, seed, **how)
        assert sorted([*train, *holdout]) == list(range(len(manifest)))
        assert not set(ids[train]) & set(ids[holdout])
        one, other = split_halves(manifest.videos[holdout], seed)
        assert sorted([*one, *other]) == list(range(len(holdout)))
        assert not set(ids[holdout][one]) & set(ids[holdout][other])
        assert abs(len(set(ids[holdout][one])) - len(set(ids[holdout][other]))) <= 1


def test_halves_of_whole_videos_are_those_that_were_drawn_before_there_were_segments() -> None:
    for count in (2, 7, 100):
        order = torch.from_numpy(np.random.default_rng([5, 0xA1F]).permutation(count))
        one, other = order.tensor_split(2)
        found = split_halves(np.arange(count) + 3, 5)
        assert (found[0].tolist(), found[1].tolist()) == (one.tolist(), other.tolist())


def test_a_video_that_stands_twice_or_in_the_test_set_is_found_whichever_segments_were_rated(tmp_path: Path) -> None:
    one, other = tensorflows([(0, 5, 3, 1.0)]), tensorflows([(5, 10, 3, 1.0), (10, 15, 2, 1.0)])
    sound = tensorflows(RATINGS, name="cd")
    write_shard(tmp_path / "twice", [one, sound, other])
    with pytest.raises(DataError, match="id 'ab' occurs already in record 0"):
        scan([tmp_path / "twice"], SCHEMA, rated_only=True)
    kept = scan([tmp_path / "twice"], SCHEMA, rated_only=True, max_bad_records=1)
    assert kept.class_counts.tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 1]
    assert (len(kept), kept.labelled, len(kept.left_out), kept.shards[0].left_out) == (3, 3, 1, 1)
    for name, records in {"train": [one, sound], "test": [other]}.items():
        write_shard(tmp_path / name, records)
    train, test = (scan([tmp_path / name], SCHEMA, rated_only=True) for name in ("train", "test"))
    with pytest.raises(DataError, match="1 test videos are training videos too, the first is 'ab'"):
        refuse_overlap(train, test)


# --- the mask -------------------------------------------------------------------------------------


def test_batches_say_which_classes_were_rated(paths: list[Path]) -> None:
    shards = Shards(scan(paths, SCHEMA, rated_only=True))
    first, *_ = sequential_batches(shards, batch_size=16)
    for row, index in enumerate(range(16)):
        example = shards.read(index)
        assert torch.nonzero(first.rated[row])[:, 0].tolist() == example.rated.tolist()
        assert torch.nonzero(first.labels[row])[:, 0].tolist() == example.labels.tolist()
    assert not (first.labels & ~first.rated).any()
    indices = np.arange(len(shards))
    drawn = next(training_batches(shards, indices, shuffle=Shuffle(1), batch_size=8, steps=range(3, 4)))
    assert drawn.rated.any(1).all()
    unrated = decode(encode(make_video(SCHEMA, 4), SCHEMA), SCHEMA)
    batch = collate([each for _, each in iter_examples(unrated, SCHEMA)], [4], SCHEMA)
    assert batch.labels is None
    assert batch.rated is None


def masked_loss(p: npt.NDArray[Any], y: npt.NDArray[Any], rated: npt.NDArray[Any]) -> float:
    """The loss, a term at a time."""
    total = 0.0
    for video, label in np.argwhere(rated):
        at = p[video, label] if y[video, label] else 1 - p[video, label]
        total -= np.log(at + 1e-5)
    return total / len(p)


def test_the_loss_is_the_sum_over_rated_classes_alone() -> None:
    rng = np.random.default_rng(2)
    p, y, rated = rng.random((6, 9)), rng.random((6, 9)) < 0.5, rng.random((6, 9)) < 0.4
    probabilities = torch.from_numpy(p).requires_grad_()
    loss = cross_entropy(probabilities, torch.from_numpy(y), torch.from_numpy(rated))
    assert loss.item() == pytest.approx(masked_loss(p, y, rated), abs=1e-6)
    loss.backward()
    assert (probabilities.grad[~torch.from_numpy(rated)] == 0).all()


def test_what_labels_say_of_unrated_classes_changes_no_bit_of_a_step(paths: list[Path]) -> None:
    shards = Shards(scan(paths, SCHEMA, rated_only=True))
    batch, *_ = sequential_batches(shards, batch_size=32)
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "bn_decay": 0.9})
    settings = TrainingSettings(batch_size=32, device="cpu", precision="32-true")

    def stepped(labels: torch.Tensor) -> dict[str, torch.Tensor]:
        replica = Replica(build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0), settings)
        replica.set_learning_rate(1e-2, 0)
        replica.train_step(replace(batch, labels=labels), seed=7)
        return replica.tagger.state_dict()

    plain, wild = stepped(batch.labels), stepped(batch.labels | ~batch.rated)
    assert all(torch.equal(tensor, wild[name]) for name, tensor in plain.items())
    turned = stepped(batch.labels ^ batch.rated)
    assert not all(torch.equal(tensor, turned[name]) for name, tensor in plain.items())


def test_a_training_that_goes_on_ends_with_the_same_bytes(paths: list[Path], tmp_path: Path) -> None:
    manifest = scan(paths, SCHEMA, rated_only=True)
    weights, losses = one_case(manifest, tmp_path / "whole")
    assert len(losses) > 10
    Recorded(manifest, tmp_path / "state", *CASES["netvlad"]).run(until=3)
    later = Recorded(manifest, tmp_path / "state", *CASES["netvlad"])
    resumed = later.run()
    assert later.losses == losses[3:]
    assert all(torch.equal(tensor, resumed.model[name]) for name, tensor in weights.items())


@pytest.mark.slow
def test_two_processes_train_on_segments_as_one_does(paths: list[Path], tmp_path: Path) -> None:
    manifest = scan(paths, SCHEMA, rated_only=True)
    weights, losses = one_case(manifest, tmp_path / "one")
    shared, found = launch(partial(one_case, manifest, tmp_path / "pair"), 2)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(shared[name], tensor, atol=1e-5, rtol=1e-5)
