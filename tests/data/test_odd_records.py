"""Records of other layouts, and incomplete ones, by keys of the schema; strict by default, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import make_video
from reeltag.core.errors import DataError, UsageError
from reeltag.data.bad_records import BadRecords
from reeltag.data.formats.example import CUT, UNNAMED, Video, decode, encode
from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.formats.tfrecord import ShardFile, write_shard
from reeltag.data.holdout import refuse_overlap
from reeltag.data.schema import Feature, Labels, Schema, preset_schema
from reeltag.data.schema_draft import draft
from reeltag.data.shards import EMPTY, Manifest, Shards, read_examples, scan, write_videos

BYTES = Schema(features=(Feature(name="rgb", width=12), Feature(name="audio", width=4)), classes=9, max_frames=50)
FLOATS = BYTES.model_copy(update={"dtype": "float32"})
N_HOT = Labels(encoding="n-hot")
Write = Callable[[Any, npt.NDArray[Any]], object]


def schema(base: Schema = BYTES, **keys: Any) -> Schema:
    return Schema.model_validate(base.model_dump() | keys)


def as_bytes(code: str) -> Write:
    return lambda item, frame: item.bytes_list.value.append(frame.astype(code).tobytes())


def as_whole(item: Any, frame: npt.NDArray[Any]) -> None:
    item.int64_list.value.extend(frame.astype(np.int64).tolist())


def as_floats(item: Any, frame: npt.NDArray[Any]) -> None:
    item.float_list.value.extend(frame.astype(np.float32).tolist())


AS_CODES = as_bytes("u1")


def record(
    rgb: npt.NDArray[Any] | None,
    audio: npt.NDArray[Any] | None,
    write: Write = AS_CODES,
    name: bytes | int | None = b"v",
    labels: Sequence[int] = (1, 3),
) -> bytes:
    message = SequenceExample()
    if isinstance(name, bytes):
        message.context.feature["id"].bytes_list.value.append(name)
    elif name is not None:
        message.context.feature["id"].int64_list.value.append(name)
    message.context.feature["labels"].int64_list.value.extend(labels)
    for key, frames in (("rgb", rgb), ("audio", audio)):
        if frames is not None:
            items = message.feature_lists.feature_list[key]
            items.SetInParent()
            for frame in frames:
                write(items.feature.add(), frame)
    return message.SerializeToString()


def codes(length: int, width: int = 12) -> npt.NDArray[Any]:
    return np.random.default_rng([length, width]).integers(0, 256, (length, width))


def normal(length: int, width: int = 12) -> npt.NDArray[Any]:
    return np.random.default_rng([length, width]).normal(size=(length, width))


# --- storage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "write", "values", "stored"),
    [
        ({"storage": "float32-bytes"}, as_bytes("<f4"), normal, "<f4"),
        ({"storage": "float16-bytes"}, as_bytes("<f2"), normal, "<f2"),
        ({"storage": "float64-bytes"}, as_bytes("<f8"), normal, "<f4"),
        ({"storage": "int64"}, as_whole, codes, "<f4"),
        ({"storage": "int64", "dtype": "uint8"}, as_whole, codes, "u1"),
    ],
)
def test_values_are_read_as_they_are_stored(keys: Any, write: Write, values: Any, stored: str) -> None:
    chosen = schema(FLOATS, **keys)
    rgb, audio = values(3), values(3, 4)
    found = decode(record(rgb, audio, write), chosen)
    for frames, expected in zip(found.features, (rgb, audio), strict=True):
        assert frames.dtype == chosen.dtype
        np.testing.assert_array_equal(frames, expected.astype(stored).astype(chosen.dtype))
    with pytest.raises(DataError):
        decode(record(rgb, audio, as_floats if chosen.dtype == "uint8" else as_bytes("u1")), chosen)


@pytest.mark.parametrize(
    ("keys", "content", "fault"),
    [
        ({"storage": "int64"}, record(codes(2) + 200, codes(2, 4), as_whole), "is no uint8"),
        ({"storage": "int64"}, record(codes(2) - 256, codes(2, 4), as_whole), "is no uint8"),
        (
            {"storage": "int64", "dtype": "float32"},
            record(codes(2) + (1 << 24), codes(2, 4), as_whole),
            "is no float32",
        ),
        (
            {"storage": "float64-bytes", "dtype": "float32"},
            record(codes(2) * 1e300, codes(2, 4), as_bytes("<f8")),
            "NaN",
        ),
        (
            {"storage": "float16-bytes", "dtype": "float32"},
            record(np.full((2, 12), np.inf), codes(2, 4), as_bytes("<f2")),
            "NaN",
        ),
        ({"storage": "float32-bytes", "dtype": "float32"}, record(codes(2), codes(2, 4)), "3 values, expected 12"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_values_beyond_the_dtype_are_refused(keys: Any, content: bytes, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        decode(content, schema(**keys))


# --- flat frames ----------------------------------------------------------------------------------


def flat(kind: str, rgb: npt.NDArray[Any], frames: int | None = None) -> bytes:
    message = Example()
    context = message.features.feature
    context["id"].bytes_list.value.append(b"v")
    if kind == "bytes a frame":
        context["rgb"].bytes_list.value.extend(frame.astype(np.uint8).tobytes() for frame in rgb)
    elif kind == "bytes":
        context["rgb"].bytes_list.value.append(rgb.astype(np.uint8).tobytes())
    else:
        context["rgb"].float_list.value.extend(rgb.ravel().tolist())
    if frames is not None:
        context["num_frames"].int64_list.value.append(frames)
    return message.SerializeToString()


@pytest.mark.parametrize("kind", ["bytes a frame", "bytes", "floats"])
@pytest.mark.parametrize("frames", [None, 3, 2])
def test_flat_frames_are_cut_into_frames(kind: str, frames: int | None) -> None:
    keys = {"features": [{"name": "rgb", "width": 12}], "frames": "flat"} | (
        {"frame_count": "num_frames"} if frames else {}
    )
    chosen = schema(FLOATS if kind == "floats" else BYTES, **keys)
    rgb = codes(3)
    np.testing.assert_array_equal(decode(flat(kind, rgb, frames), chosen).features[0], rgb[:frames])


@pytest.mark.parametrize(
    ("content", "keys", "fault"),
    [
        (flat("bytes", codes(3, 11)), {}, "33 bytes are not whole frames of 12"),
        (flat("bytes a frame", codes(12, 11)), {}, "11 bytes are not whole frames"),  # though there are 11 x 12 in all
        (flat("floats", codes(3, 11)), {"dtype": "float32"}, "33 values are not whole frames of 12"),
        (flat("bytes", codes(3), 4), {"frame_count": "num_frames"}, "'num_frames' is 4, but 'rgb' holds 3 frames"),
        (flat("bytes", codes(3)), {"frame_count": "num_frames"}, "no feature 'num_frames'"),
        (flat("bytes", codes(3), 0), {"frame_count": "num_frames"}, "0 frames"),
    ],
    ids=["bytes", "bytes a frame", "floats", "another count", "no count", "no frames"],
)
def test_flat_frames_that_do_not_fit_are_refused(content: bytes, keys: Any, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        decode(content, schema(features=[{"name": "rgb", "width": 12}], frames="flat", **keys))


# --- n-hot labels ---------------------------------------------------------------------------------

HOT = [0, 1, 0, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("kind", ["int64_list", "float_list", "bytes_list"])
@pytest.mark.parametrize("level", ["frame", "video"])
def test_n_hot_labels_of_every_kind(kind: str, level: str) -> None:
    chosen = schema(FLOATS if level == "video" else BYTES, labels=N_HOT, level=level)
    plain = schema(FLOATS if level == "video" else BYTES, level=level)
    message = (Example if level == "video" else SequenceExample).FromString(encode(make_video(plain, 1), plain))
    context = (message.features if level == "video" else message.context).feature
    getattr(context["labels"], kind).value[:] = [bytes(HOT)] if kind == "bytes_list" else HOT
    assert decode(message.SerializeToString(), chosen).labels.tolist() == [1, 7]
    if kind != "int64_list":
        with pytest.raises(DataError, match='encoding = "n-hot"'):
            decode(message.SerializeToString(), plain)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [(HOT[:8], "has 8 values for 9 classes"), ([*HOT[:8], 2], "holds 2, and n-hot labels are 0 or 1")],
)
def test_n_hot_labels_that_do_not_fit_are_refused(labels: list[int], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        decode(record(codes(2), codes(2, 4), labels=labels), schema(labels=N_HOT))


def shard(path: Path, labels: Sequence[Sequence[int]]) -> list[Path]:
    write_shard(path, [record(codes(2), codes(2, 4), name=b"%d" % n, labels=each) for n, each in enumerate(labels)])
    return [path]


@pytest.mark.parametrize(
    ("labels", "refused"),
    [
        ([HOT, HOT[::-1]], 9),
        ([[0, 1], [1, 0], []], 2),  # an unlabelled record tells nothing
        ([[1, 1, 1]], 3),
        ([[0], [1], [0]], 0),  # one class a video
        ([[0, 1], [1]], 0),
        ([[0, 1], [1, 2]], 0),
        ([HOT, [8]], 0),
        ([[], []], 0),
    ],
)
def test_lists_that_may_be_n_hot_are_refused_until_told(labels: Any, refused: int, tmp_path: Path) -> None:
    paths = shard(tmp_path / "s", labels)
    if refused:
        for read in (lambda: scan(paths, BYTES), lambda: list(read_examples(paths, BYTES, labelled=True))):
            with pytest.raises(UsageError, match=rf"every list has {refused} values, all 0 or 1 \(\d+ records?\)"):
                read()
    told = scan(paths, schema(labels={"encoding": "index"}))
    expected = [sum(number in set(each) for each in labels) for number in range(9)]
    assert told.class_counts.tolist() == expected
    if not refused:
        np.testing.assert_array_equal(scan(paths, BYTES).class_counts, told.class_counts)
    assert len(list(read_examples(paths, BYTES))) == len(labels)  # tagging needs no labels


def test_n_hot_shards_are_those_of_class_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hot = (rng.random((20, 9)) < 0.3).astype(int)
    by_flags = scan(shard(tmp_path / "hot", hot.tolist()), schema(labels=N_HOT))
    numbers = [np.flatnonzero(each).tolist() for each in hot]
    by_numbers = scan(shard(tmp_path / "numbers", numbers), BYTES)
    np.testing.assert_array_equal(by_flags.class_counts, by_numbers.class_counts)
    pairs = zip(map(Shards(by_flags).read, range(20)), map(Shards(by_numbers).read, range(20)), strict=True)
    assert all(one.labels.tolist() == other.labels.tolist() for one, other in pairs)


# --- incomplete records ---------------------------------------------------------------------------


def test_a_missing_feature_is_an_error_zeros_or_skipped(tmp_path: Path) -> None:
    whole, without, empty = record(codes(3), codes(3, 4)), record(codes(3), None), record(codes(3), codes(0, 4))
    for content in (without, empty):
        with pytest.raises(DataError):
            decode(content, BYTES)
        video = decode(content, schema(missing="zero"))
        assert video.remarks == ("records without 'audio', filled with zeros",)
        np.testing.assert_array_equal(video.features[0], codes(3))
        np.testing.assert_array_equal(video.features[1], np.zeros((3, 4)))
    for content in (record(None, None), record(codes(0), codes(0, 4))):
        with pytest.raises(DataError):  # nothing to fill up to
            decode(content, schema(missing="zero"))
    numbered = [record(codes(3), None if n % 3 else codes(3, 4), name=b"%d" % n) for n in range(9)]
    write_shard(tmp_path / "s", [*numbered, whole])
    found = scan([tmp_path / "s"], schema(missing="skip"))
    assert len(found) == 4
    assert (found.remarks, found.shards[0].left_out, found.left_out) == (
        {"records without 'audio', left out": 6},
        6,
        (),
    )
    assert [Shards(found).read(n).id for n in range(4)] == ["0", "3", "6", "v"]
    filled = scan([tmp_path / "s"], schema(missing="zero"))
    assert (len(filled), filled.remarks) == (10, {"records without 'audio', filled with zeros": 6})
    with pytest.raises(DataError, match=r"record 1, byte \d+: video '1': no feature 'audio'"):
        scan([tmp_path / "s"], BYTES)


def test_a_missing_vector_is_zeros() -> None:
    vectors = schema(FLOATS, level="video")
    message = Example.FromString(encode(make_video(vectors, 1), vectors))
    del message.features.feature["audio"]
    video = decode(message.SerializeToString(), schema(vectors, missing="zero"))
    np.testing.assert_array_equal(video.features[1], np.zeros((1, 4), np.float32))


@pytest.mark.parametrize(("rgb", "audio"), [(6, 5), (5, 6), (1, 40)])
def test_features_of_different_lengths_are_cut_to_the_shortest(rgb: int, audio: int) -> None:
    content = record(codes(rgb), codes(audio, 4))
    with pytest.raises(DataError, match=r'disagree on the number of frames: .*; schema.unequal = "cut"'):
        decode(content, BYTES)
    video = decode(content, schema(unequal="cut"))
    shortest = min(rgb, audio)
    assert (video.length, video.remarks) == (shortest, (CUT,))
    np.testing.assert_array_equal(video.features[0], codes(rgb)[:shortest])
    np.testing.assert_array_equal(video.features[1], codes(audio, 4)[:shortest])


@pytest.mark.parametrize("number", [0, -7, 2**63 - 1])
def test_a_whole_number_is_an_id(number: int) -> None:
    assert decode(record(codes(2), codes(2, 4), name=number), BYTES).id == str(number)


def test_records_without_an_id_are_called_by_shard_and_number(tmp_path: Path) -> None:
    for split in ("a", "b"):
        write_shard(
            tmp_path / f"{split}.tfrecord", [record(codes(n + 1), codes(n + 1, 4), name=None) for n in range(3)]
        )
    paths = [tmp_path / "a.tfrecord", tmp_path / "b.tfrecord"]
    with pytest.raises(DataError, match=r'no id: .*; schema.unnamed = "number"'):
        scan(paths, BYTES)
    found = scan(paths, schema(unnamed="number"))
    assert found.remarks == {UNNAMED: 6}
    names = [Shards(found).read(number).id for number in range(6)]
    assert names == [f"{split}.tfrecord:{number}" for split in "ab" for number in range(3)]
    found.save(tmp_path / "m")
    assert Manifest.load(tmp_path / "m").remarks == {UNNAMED: 6}


def test_empty_shards_are_passed_over_when_told(tmp_path: Path) -> None:
    paths = [*shard(tmp_path / "a", [[1], [3]]), tmp_path / "b", *shard(tmp_path / "c", [[2]])]
    (tmp_path / "b").touch()
    with pytest.raises(DataError, match=r"b: is empty, so it is not a shard; leave it out .*data.schema.empty_shards"):
        scan(paths, BYTES)
    chosen = schema(BYTES, empty_shards="skip", unnamed="number")
    with pytest.raises(DataError, match="occurs already"):  # ids of a and c are alike
        scan(paths, chosen)
    write_videos(tmp_path / "d", [make_video(BYTES)], BYTES)
    found = scan([*paths[:2], tmp_path / "d"], chosen)
    assert (found.remarks, found.first_records.tolist()) == ({EMPTY: 1}, [0, 2, 2, 3])
    assert [Shards(found).read(number).id for number in range(3)] == ["0", "1", "ab"]


def test_the_lenient_schema_counts_all_of_it(tmp_path: Path) -> None:
    records = [record(codes(3), codes(2, 4), name=None), record(None, codes(2, 4)), record(codes(2), codes(2, 4))]
    write_shard(tmp_path / "s", records)
    (tmp_path / "t").touch()
    bad = BadRecords()
    videos = list(read_examples([tmp_path / "s", tmp_path / "t"], BYTES.lenient, bad))
    assert [video.id for video in videos] == ["s:0", "v", "v"]
    assert bad.remarks == {UNNAMED: 1, CUT: 1, "records without 'rgb', filled with zeros": 1, EMPTY: 1}
    assert schema(missing="skip").lenient.missing == "skip"


def test_ids_in_two_unicode_forms_are_one(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    one, other = (Video(name, None, make_video(BYTES).features) for name in (composed, decomposed))
    with pytest.raises(DataError, match="occurs already"):
        write_videos(tmp_path / "s", [one, other], BYTES)
    write_videos(tmp_path / "a", [one], BYTES)
    write_videos(tmp_path / "b", [other], BYTES)
    with pytest.raises(DataError, match="occurs already in record 0"):
        scan([tmp_path / "a", tmp_path / "b"], BYTES)
    with pytest.raises(DataError, match="are training videos too"):
        refuse_overlap(scan([tmp_path / "a"], BYTES), scan([tmp_path / "b"], BYTES))


def test_hashes_of_schemas_without_the_new_keys_stay() -> None:
    old = {"level", "ids", "labels", "features", "dtype", "classes", "max_frames", "segments", "segment_classes"}
    for each in (BYTES, FLOATS, preset_schema("yt8m-video")):
        assert set(each.model_dump()) == old
        assert each.model_dump()["labels"] == "labels"


# --- drafts ---------------------------------------------------------------------------------------

KINDS: dict[str, tuple[dict[str, Any], Write, Any]] = {
    "uint8": ({}, as_bytes("u1"), codes),
    "uint8 around 128": ({}, as_bytes("u1"), lambda *shape: np.clip(normal(*shape) * 20 + 128, 0, 255)),
    "small uint8": ({}, as_bytes("u1"), lambda *shape: codes(*shape) % 12 + 50),
    "uint8 of zeros": ({}, as_bytes("u1"), lambda *shape: np.zeros(shape)),
    "float32": ({"dtype": "float32", "storage": "float32-bytes"}, as_bytes("<f4"), normal),
    "float32 of whole numbers": ({"dtype": "float32", "storage": "float32-bytes"}, as_bytes("<f4"), codes),
    "float32 after ReLU": (
        {"dtype": "float32", "storage": "float32-bytes"},
        as_bytes("<f4"),
        lambda *shape: np.maximum(normal(*shape), 0),
    ),
    "float16": ({"dtype": "float32", "storage": "float16-bytes"}, as_bytes("<f2"), normal),
    "float64": ({"dtype": "float32", "storage": "float64-bytes"}, as_bytes("<f8"), normal),
    "int64 codes": ({"storage": "int64"}, as_whole, codes),
    "int64": ({"dtype": "float32", "storage": "int64"}, as_whole, lambda *shape: codes(*shape) - 128),
    "floats": ({"dtype": "float32"}, as_floats, normal),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_reads_what_it_was_drafted_from(kind: str) -> None:
    keys, write, values = KINDS[kind]
    records = [record(values(n % 5 + 2, 16), values(n % 5 + 2, 8), write, b"v%d" % n, (n % 7, 8)) for n in range(12)]
    drafted = draft(records)
    assert Schema.model_validate(drafted.schema) == schema(
        features=[{"name": "rgb", "width": 16}, {"name": "audio", "width": 8}], max_frames=6, **keys
    )
    assert any("look like float" in remark for remark in drafted.remarks) == ("-bytes" in keys.get("storage", ""))
    for content in records:
        decode(content, Schema.model_validate(drafted.schema))


@pytest.mark.parametrize("kind", ["bytes a frame", "bytes", "floats"])
def test_flat_frames_are_drafted(kind: str) -> None:
    counted = kind != "bytes a frame"
    records = [flat(kind, codes(n + 2, 16), n + 2 if counted else None) for n in range(5)]
    drafted = draft(records)
    keys = {"frames": "flat"} | ({"frame_count": "num_frames"} if counted else {})
    keys |= {"dtype": "float32"} if kind == "floats" else {}
    found = Schema.model_validate(drafted.schema | {"classes": 9})
    assert found == schema(features=[{"name": "rgb", "width": 16}], max_frames=6, **keys)
    assert [decode(content, found).length for content in records] == [2, 3, 4, 5, 6]


def test_n_hot_labels_are_drafted_as_such() -> None:
    contents = [record(codes(2), codes(2, 4), labels=hot) for hot in (HOT, HOT[::-1])]
    drafted = draft(contents)
    assert drafted.schema["labels"] == {"name": "labels", "encoding": "n-hot"}
    assert (drafted.schema["classes"], drafted.highest_label) == (9, 8)
    assert any("all 0 or 1" in remark and 'encoding = "index"' in remark for remark in drafted.remarks)
    assert draft([*contents, record(codes(2), codes(2, 4), labels=[4])]).schema.get("labels") is None


def test_frames_of_features_that_are_left_out_do_not_count() -> None:
    message = SequenceExample.FromString(record(codes(3), codes(3, 4)))
    for number in range(9):
        message.feature_lists.feature_list["boxes"].feature.add().float_list.value.extend([0.5] * (number + 1))
    other = SequenceExample.FromString(message.SerializeToString())
    other.feature_lists.feature_list["boxes"].feature[0].float_list.value.append(1.0)
    drafted = draft([message.SerializeToString(), other.SerializeToString()])
    assert (drafted.schema["max_frames"], drafted.most_frames) == (3, 3)
    assert any(remark.startswith("boxes is left out: frames have 1 floats or 2 floats") for remark in drafted.remarks)


# --- the writer -----------------------------------------------------------------------------------

GOOD = make_video(FLOATS, 3)


def of(*features: npt.NDArray[Any]) -> Video:
    return Video("clip-7", np.array([1]), features)


FAULTS: dict[str, Video] = {
    r"feature 'rgb' is \[3, 11\] float32, expected \[T, 12\] float32": of(GOOD.features[0][:, :11], GOOD.features[1]),
    r"is \[3, 12\] float64": of(GOOD.features[0].astype(np.float64), GOOD.features[1]),
    r"is \[12\] float32": of(GOOD.features[0][0], GOOD.features[1]),
    "has 1 features, the schema 2": of(GOOD.features[0]),
    "disagree on the number of frames": of(GOOD.features[0], GOOD.features[1][:2]),
    "0 frames": of(GOOD.features[0][:0], GOOD.features[1][:0]),
    "NaN or infinite": of(GOOD.features[0] * np.nan, GOOD.features[1]),
    r"beyond ±1e\+15": of(GOOD.features[0] * 0 + 1e16, GOOD.features[1]),
    "label 9 is outside the 9 classes": Video("clip-7", np.array([1, 9]), GOOD.features),
    "label -1 is outside": Video("clip-7", np.array([-1]), GOOD.features),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_writer_refuses_what_the_reader_would_and_leaves_nothing(fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^video 'clip-7': .*{fault}"):
        write_videos(tmp_path / "s", [GOOD, FAULTS[fault]], FLOATS)
    assert list(tmp_path.iterdir()) == []


def test_the_writer_refuses_ids_twice_existing_files_and_no_videos(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^video 'ab': the id occurs already"):
        write_videos(tmp_path / "s", [GOOD, GOOD], FLOATS)
    with pytest.raises(DataError, match="no valid text"):
        write_videos(tmp_path / "s", [Video("\ud800", None, GOOD.features)], FLOATS)
    with pytest.raises(UsageError, match="has no record"):
        write_videos(tmp_path / "s", [], FLOATS)
    with pytest.raises(UsageError, match="leave out the schema's storage"):
        write_videos(tmp_path / "s", [GOOD], schema(FLOATS, labels=N_HOT))
    assert list(tmp_path.iterdir()) == []
    assert write_videos(tmp_path / "s", [GOOD], FLOATS) == 1
    before = (tmp_path / "s").read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        write_videos(tmp_path / "s", [make_video(FLOATS, name="other")], FLOATS)
    assert (tmp_path / "s").read_bytes() == before
    assert len(ShardFile(tmp_path / "s").offsets()) == 1
