"""Records: two readers that agree, a writer that is their inverse, and errors that say what is wrong."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google import protobuf
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from packaging.version import Version

from conftest import TINY, assert_same, data_file, encode_unchecked, golden, make_video, records_of
from oracle import agree
from reeltag.core.errors import DataError
from reeltag.data.formats.example import Video, decode, encode
from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.inspect import describe_record
from reeltag.data.schema import Schema, preset_schema
from reeltag.models.layers import dequantize

BYTES = TINY.record_schema
FLOATS = Schema(**BYTES.model_dump() | {"dtype": "float32"})
VECTORS = Schema(**FLOATS.model_dump() | {"level": "video"})
each_schema = pytest.mark.parametrize("schema", [BYTES, FLOATS, VECTORS], ids=["bytes", "floats", "vectors"])


@st.composite
def videos(draw: st.DrawFn, schema: Schema) -> Video:
    length = 1 if schema.level == "video" else draw(st.integers(1, schema.max_frames))
    values = st.integers(0, 255) if schema.dtype == "uint8" else st.floats(-1e9, 1e9, width=32)
    features = tuple(draw(arrays(schema.dtype, (length, width), elements=values)) for width in schema.widths)
    labels = draw(st.none() | st.sets(st.integers(0, schema.classes - 1)))
    return Video(draw(st.text()), None if labels is None else np.array(sorted(labels), np.int64), features)


def test_tensorflows_records_decode_to_what_the_winners_program_reads(tmp_path: Path) -> None:
    expected, schema = golden("tfrecord_frame"), preset_schema("yt8m-frame")
    (tmp_path / "shard").write_bytes(expected["tfrecord_bytes"].tobytes())
    records = records_of(tmp_path / "shard")
    assert all(agree(record, schema) for record in records)
    found = [decode(record, schema) for record in records]
    assert [video.id.encode() for video in found] == expected["ids"].tolist()
    assert [video.length for video in found] == expected["num_frames"].tolist() == [5, 300, 300, 1, 12]
    assert [video.cut for video in found] == [0, 0, 5, 0, 0]
    labels = [[number, label] for number, video in enumerate(found) for label in video.labels.tolist()]
    assert labels == expected["label_rows_cols"].tolist()
    for number, video in enumerate(found):
        frames = np.zeros((300, 1152))
        frames[: video.length] = dequantize(torch.from_numpy(video.frames())).double()
        np.testing.assert_allclose(frames[:3], expected["first_rows"][number], rtol=0, atol=1e-5)
        np.testing.assert_allclose(frames.sum(1), expected["row_sums"][number], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "schema", "count"),
    [
        ("yt8m_video/validate0000.tfrecord", "yt8m-video", 284),
        ("audioset/eval-00000-of-00016.tfrecord", "audioset", 1274),
        ("yt8m_frame/extracted_141_frames.tfrecord", "yt8m-frame", 1),
    ],
)
def test_real_records_are_read_alike_by_both_readers(name: str, schema: str, count: int) -> None:
    records = records_of(data_file(name))
    assert len({decode(record, preset_schema(schema)).id for record in records}) == count
    assert all(agree(record, preset_schema(schema)) for record in records[:100])


def field(number: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def entry(key: bytes, value: bytes) -> bytes:
    return field(1, field(1, key), field(2, value))


USUAL_LABELS = field(3, field(1, b"\x01\x03"))


def by_hand(labels: bytes = USUAL_LABELS, before: bytes = b"", inside: bytes = b"", turned: bool = False) -> bytes:
    """The record of `make_video(BYTES)`, written without a library; `before` goes into each frame."""
    context = [entry(b"id", field(1, field(1, b"ab"))), entry(b"labels", labels), inside]
    both = make_video(BYTES).features
    rgb, audio = (b"".join(field(1, before, field(1, field(1, bytes(row)))) for row in rows) for rows in both)
    lists = [entry(b"audio", audio), entry(b"rgb", rgb)]
    if turned:
        return field(2, *lists[::-1]) + field(1, *context[::-1])
    return field(1, *context) + field(2, *lists)


@pytest.mark.parametrize(
    ("content", "usual"),
    [
        (by_hand(), True),
        (by_hand(turned=True), True),
        (by_hand() + field(9, b"an unknown field"), False),
        (by_hand(inside=entry(b"other", field(2, field(1, bytes(8))))), True),
        (by_hand(inside=entry(b"other", b"broken, and none of the schema's business")), True),
        (by_hand(inside=entry(b"video_id", field(1, field(1, b"not the first name")))), True),
        (by_hand() + b"\x48\x07", False),  # an unknown varint field
        (by_hand(labels=field(3, b"\x08\x01\x08\x03")), False),  # not packed
        (by_hand(labels=field(3, b"\x08\x01", field(1, b"\x03"))), False),  # half packed
        (by_hand(labels=field(1, field(1, b"x")) + USUAL_LABELS), False),  # the last kind counts
        (by_hand(before=field(1, field(1, b"old")) + field(3)), False),
        (by_hand(before=field(9, b"?")), False),
        (field(1, entry(b"id", field(1, field(1, b"old")))) + by_hand(), False),  # sections merge
    ],
)
def test_other_encodings_of_a_video_decode_to_the_same_video(content: bytes, usual: bool) -> None:
    assert agree(content, BYTES) == usual
    assert_same(decode(content, BYTES), make_video(BYTES))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(by_hand() + b"\x02\x00", id="field number 0"),
        pytest.param(
            by_hand() + b"\x1a" + b"\x80" * 5 + b"\x00",
            id="a length of six bytes",
            marks=pytest.mark.skipif(Version(protobuf.__version__) < Version("7.34"), reason="older versions read it"),
        ),
        pytest.param(by_hand() + b"\x22\x03\x0a", id="a field that runs past the end"),
        pytest.param(by_hand(inside=entry(b"\xff\xfe", b"")), id="a key that is no UTF-8"),
    ],
)
def test_the_strided_reader_declines_what_protobuf_refuses(content: bytes) -> None:
    assert not agree(content, BYTES)
    with pytest.raises(DataError, match="is not a valid SequenceExample"):
        decode(content, BYTES)


# --- in what the schema names, the strided reader may decline, never differ -----------------------


@each_schema
@given(data=st.data())
def test_what_we_write_the_strided_reader_takes_and_decodes_to_the_same(schema: Schema, data: st.DataObject) -> None:
    original = data.draw(videos(schema))
    content = encode(original, schema)
    assert agree(content, schema)
    decoded = decode(content, schema)
    assert_same(decoded, original)
    assert encode(decoded, schema) == content
    kind = SequenceExample if schema.level == "frame" else Example
    assert kind.FromString(content).SerializeToString(deterministic=True) == content  # as protobuf itself writes it


def with_more(content: bytes, schema: Schema) -> bytes:
    """The same video in a record that holds more than the schema names, as AudioSet's do."""
    message = (SequenceExample if schema.level == "frame" else Example).FromString(content)
    context = (message.context if schema.level == "frame" else message.features).feature
    context["start_time_seconds"].float_list.value.append(1.5)
    context["video_id"].bytes_list.value.append(b"another name")
    return message.SerializeToString(deterministic=True)


def damaged(content: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(mutant))
        flipped = bytes([mutant[at] ^ 1 << rng.randrange(8)])
        telling = bytes([rng.choice(b"\x00\x01\x02\x08\x0a\x0d\x12\x1a\x80\xff")])
        repeated = bytes(mutant[at : at + 5] * 2)
        mutant[at : at + 1] = rng.choice([flipped, telling, b"", repeated])
    return bytes(mutant)


@pytest.mark.parametrize("more", [False, True], ids=["plain", "more than the schema names"])
@each_schema
def test_on_damaged_payloads_the_strided_reader_declines_or_agrees(schema: Schema, more: bool) -> None:
    rng, taken = random.Random(f"{schema.level} {schema.dtype}"), 0
    for number in range(1500):
        length = 1 if schema.level == "video" else number % 3
        labels = [None, [], [1, 3], [5, 300, 2**40]][number % 4]
        content = encode_unchecked(make_video(schema, length, labels), schema)
        record = damaged(with_more(content, schema) if more else content, rng)
        try:
            taken += agree(record, schema)
        except (DataError, DecodeError) as error:
            pytest.fail(f"the strided reader took {record!r}, protobuf says: {error}")
    assert 100 < taken < 1400


# --- what a record may lack, and what it must not hold ------------------------------------------

ID = {"id": ("bytes_list", [b"ab"])}
RGB, AUDIO = {"rgb": ("bytes_list", [[bytes(6)]] * 2)}, {"audio": ("bytes_list", [[bytes(2)]] * 2)}
TWICE = field(1, *(entry(name, field(2, field(1, bytes(4 * n))) * 2) for name, n in [(b"rgb", 6), (b"audio", 2)]))
NAN = replace(make_video(FLOATS, 1), features=(np.full((1, 6), np.nan, np.float32), np.zeros((1, 2), np.float32)))


def build(context: Any, lists: Any) -> bytes:
    message = SequenceExample()
    for key, (kind, values) in context.items():
        getattr(message.context.feature[key], kind).value.extend(values)
    for key, (kind, frames) in lists.items():
        for values in frames:
            getattr(message.feature_lists.feature_list[key].feature.add(), kind).value.extend(values)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("content", "schema", "fault"),
    [
        (build(ID, {"pix": RGB["rgb"]} | AUDIO), BYTES, "no feature 'rgb'; the record has audio, pix"),
        (build(ID, {"rgb": AUDIO["audio"]} | AUDIO), BYTES, "'rgb', frame 0: 2 values, expected 6; check the schema's"),
        (build(ID, {"rgb": ("bytes_list", [[bytes(6)], [bytes(5)]])} | AUDIO), BYTES, "'rgb', frame 1: 5 values"),
        (build(ID, RGB | AUDIO), FLOATS, "'rgb', frame 0: is a bytes_list, expected a float_list"),
        (build(ID | {"labels": ("int64_list", [8])}, RGB | AUDIO), BYTES, "label 8 is outside the 8 classes 0…7"),
        (build(ID | {"labels": ("int64_list", [7, -1])}, RGB | AUDIO), BYTES, "label -1 is outside the 8 classes"),
        (build(ID, {"rgb": ("bytes_list", [[bytes(6)]])} | AUDIO), BYTES, "number of frames: {'rgb': 1, 'audio': 2}"),
        (build({"name": ID["id"]}, RGB | AUDIO), BYTES, "no id: expected a text or whole number named id or video_id"),
        (build({"id": ("bytes_list", [b"a", b"b"])}, RGB | AUDIO), BYTES, "'id' has 2 values, expected one"),
        (TWICE, VECTORS, "'rgb', frame 0: 12 values, expected 6"),
        (encode_unchecked(make_video(BYTES, 0), BYTES), BYTES, "0 frames: a video needs at least one"),
        (encode_unchecked(NAN, FLOATS), FLOATS, "NaN or infinite"),
        (encode_unchecked(NAN, VECTORS), VECTORS, "NaN or infinite"),
        (encode(make_video(VECTORS, 1), VECTORS), FLOATS, "no feature 'rgb'"),
        (encode(make_video(BYTES), BYTES), VECTORS, "no feature 'rgb'; the record has id, labels"),
        (b"These are notes.", BYTES, "is not a valid SequenceExample; check the schema's level (frame)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-",  # the order of features in a record is random
)
def test_a_record_that_breaks_the_schema_says_how(content: bytes, schema: Schema, fault: str) -> None:
    with pytest.raises(DataError, match=re.escape(fault)):
        decode(content, schema)


def test_labels_come_sorted_and_once_or_empty_or_not_at_all() -> None:
    contents = [build(ID | {"labels": ("int64_list", [7, 0, 3, 7])}, RGB | AUDIO)]
    contents += [encode(make_video(BYTES, labels=labels), BYTES) for labels in ([], None)]
    found = [decode(content, BYTES).labels for content in contents]
    assert [None if labels is None else labels.tolist() for labels in found] == [[0, 3, 7], [], None]


def test_frames_beyond_the_limit_are_cut_and_counted() -> None:
    decoded, whole = decode(encode(make_video(BYTES, 11), BYTES), BYTES), make_video(BYTES, 11)
    assert_same(decoded, replace(whole, features=tuple(frames[:9] for frames in whole.features), cut=2))


@each_schema
def test_frames_are_views_of_the_record(schema: Schema) -> None:
    record = encode(make_video(schema, 1), schema)
    whole = np.frombuffer(record, np.uint8)
    assert all(np.shares_memory(frames, whole) for frames in decode(record, schema).features)


def test_equal_videos_give_equal_bytes_however_they_lie_in_memory() -> None:
    one = make_video(BYTES, 4)
    other = replace(one, features=tuple(np.asfortranarray(frames) for frames in one.features))
    assert encode(replace(other, labels=np.array([1, 3], np.int32)), BYTES) == encode(one, BYTES)
    assert encode(make_video(BYTES), BYTES) == by_hand()


def test_describe_names_what_a_record_holds() -> None:
    text = "\n".join(describe_record(by_hand()))
    for part in ("frame level", "'labels': int64_list with 2 values, 1, 3", "'rgb': 2 frames", "1 value of 6 bytes"):
        assert part in text
