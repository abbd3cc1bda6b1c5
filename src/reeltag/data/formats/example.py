"""TensorFlow's `Example` and `SequenceExample`: decode bytes to a `Video`, and encode it back.

There are two readers. The fast strided one relies on the layout that every TensorFlow writer produces: each frame is
encoded in the same number of bytes, so a feature's T frames are one strided view of the record. It declines any other
layout, and the general protobuf reader takes over. For the features of the schema both readers give the same result;
features that the schema leaves out are not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from reeltag.core.errors import DataError
from reeltag.data import ratings
from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.ratings import Ratings
from reeltag.data.schema import Feature, Schema

FrameArray = npt.NDArray[Any]


@dataclass(frozen=True)
class Video:
    """One record, or a segment of its frames.

    Attributes:
        id: the video's name in the data set.
        labels: class indices, sorted, each once; None where the record has no labels.
        features: one array [T, D_f] a feature, `uint8` or `float32`; views of the record where possible.
        cut: number of frames beyond the schema's limit, which `features` leaves out.
        ratings: of the video's segments if the schema has segments; None if the record has no ratings.
        rated: of a segment, the classes that were rated, for which the labels are complete; None for all classes.
    """

    id: str
    labels: npt.NDArray[np.int64] | None
    features: tuple[FrameArray, ...]
    cut: int = 0
    ratings: Ratings | None = None
    rated: npt.NDArray[np.int64] | None = None

    @property
    def length(self) -> int:
        """T, the number of frames."""
        return len(self.features[0])

    @property
    def labelled(self) -> bool:
        """True if the labels are known for at least one class."""
        return self.labels is not None and (self.rated is None or len(self.rated) > 0)

    def frames(self) -> FrameArray:
        """Concatenate all features to [T, D]; a copy."""
        return np.concatenate(self.features, axis=1)


MAX_VALUE = 1e15  # largest magnitude of a value, so that the sum of a frame's squares fits float32
_TAGS = frozenset({0x0A, 0x12, 0x1A})  # fields 1 to 3, length-delimited: all that these messages have


class _Unusual(Exception):  # noqa: N818 - a signal between the two readers, never an error
    """The strided reader declines."""


def decode(record: bytes, schema: Schema) -> Video:
    """Decode one record.

    Args:
        record: a TFRecord payload.
        schema: of the record.

    Raises:
        DataError: the record does not follow the schema; the caller adds file and offset.
    """
    try:
        parts = _read_strided(record, schema)
    except (_Unusual, IndexError):  # an IndexError ran off the record's end
        parts = _read_general(record, schema)
    return _checked(*parts, schema)


_Parts = tuple["bytes | None", "list[int] | None", list[FrameArray], ratings.Lists]


def _checked(
    name: bytes | None, labels: list[int] | None, features: list[FrameArray], rated: ratings.Lists, schema: Schema
) -> Video:
    if name is None:
        raise DataError(f"no id: expected a bytes feature named {' or '.join(schema.ids)}")
    length = len(features[0])
    if any(len(frames) != length for frames in features):
        lengths = {feature.name: len(frames) for feature, frames in zip(schema.features, features, strict=True)}
        raise DataError(f"features disagree on the number of frames: {lengths}")
    if not length:
        raise DataError("0 frames: a video needs at least one; leave this record out")
    if labels:
        labels = sorted(set(labels))
        if labels[0] < 0 or labels[-1] >= schema.classes:
            outside = labels[-1] if labels[0] >= 0 else labels[0]
            raise DataError(
                f"label {outside} is outside the {schema.classes} classes 0…{schema.classes - 1}; "
                "check the schema's 'classes'"
            )
    if schema.dtype == "float32" and not all(map(is_computable, features)):
        raise DataError(f"a feature holds NaN or infinite values, or some beyond ±{MAX_VALUE:g}")
    cut = max(0, length - schema.max_frames)
    if cut:
        features = [frames[: schema.max_frames] for frames in features]
    known = None if labels is None else np.array(labels, np.int64)
    of_segments = ratings.from_lists(rated, length - cut, schema)
    try:
        return Video(name.decode(), known, tuple(features), cut, of_segments)
    except UnicodeDecodeError as error:
        raise DataError(f"the id {name[:40]!r} is not UTF-8; write it as text") from error


def is_computable(frames: FrameArray) -> bool:
    """Return True if all values are finite and small enough to be squared in float32."""
    return bool(frames.min() >= -MAX_VALUE and frames.max() <= MAX_VALUE)


# --- the strided reader -------------------------------------------------------------------------


def _read_strided(record: bytes, schema: Schema) -> _Parts:
    sections: dict[int, tuple[int, int]] = {}
    position = 0
    while position < len(record):
        tag, begin, position = _field(record, position, len(record))
        if tag in sections:
            raise _Unusual
        sections[tag] = begin, position
    context = _map_entries(record, sections.get(0x0A))
    name = None
    for key in schema.ids:
        if (span := context.get(key.encode())) and name is None:
            name = _single_bytes(record, span)
    span = context.get(schema.labels.encode())
    labels = None if span is None else _int64_list(record, span)
    lists = _map_entries(record, sections.get(0x12)) if schema.level == "frame" else context
    features = []
    for feature in schema.features:
        place = lists.get(feature.name.encode())
        if place is None:
            raise _Unusual
        features.append(_strided_frames(record, place, feature.width, schema))
    return name, labels, features, _strided_ratings(record, context, schema)


def _strided_ratings(record: bytes, context: dict[bytes, tuple[int, int]], schema: Schema) -> ratings.Lists:
    return {
        key: _int64_list(record, span) if kind == "int64_list" else _float_list(record, span)
        for key, kind in ratings.FEATURES.items()
        if schema.segments and (span := context.get(key.encode()))
    }


def _strided_frames(record: bytes, span: tuple[int, int], width: int, schema: Schema) -> FrameArray:
    header, frame = _frame_layout(width, schema.dtype, schema.level == "frame")
    begin, end = span
    frames, rest = divmod(end - begin, frame.itemsize)
    if rest or (schema.level == "video" and frames != 1):
        raise _Unusual
    rows = np.frombuffer(record, frame, frames, begin)
    if rows["header"].tobytes() != header * frames:
        raise _Unusual
    return rows["values"]


@lru_cache(maxsize=64)
def _frame_layout(width: int, dtype: str, in_list: bool) -> tuple[bytes, np.dtype[np.void]]:
    """Return the bytes before each frame (tags and lengths of `Feature`, kind, value) and a frame's dtype."""
    kind, code = (0x0A, "u1") if dtype == "uint8" else (0x12, "<f4")
    size = width * np.dtype(code).itemsize
    header = b"\x0a" + _varint_bytes(size)
    header = bytes([kind]) + _varint_bytes(len(header) + size) + header
    if in_list:
        header = b"\x0a" + _varint_bytes(len(header) + size) + header
    return header, np.dtype([("header", "V", len(header)), ("values", code, (width,))])


def _field(record: bytes, position: int, end: int) -> tuple[int, int, int]:
    """Return tag, begin and end of the length-delimited field at a position; decline any other field."""
    tag, size, begin = record[position], record[position + 1], position + 2
    if tag not in _TAGS:
        raise _Unusual
    if size > 0x7F:
        size, more = _size(record[begin - 1 : begin + 3])
        begin += more
    if begin + size > end:
        raise _Unusual
    return tag, begin, begin + size


@lru_cache(maxsize=4096)
def _size(encoded: bytes) -> tuple[int, int]:
    """Decode the varint at the start of four bytes; return its value and its number of bytes beyond the first.

    Sizes repeat from record to record, so most come from the cache.
    """
    value = 0
    for place, byte in enumerate(encoded):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, place
    raise _Unusual  # a length of 256 MiB or more is no frame's, and less than four bytes are no record's


def _varint_bytes(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _map_entries(record: bytes, span: tuple[int, int] | None) -> dict[bytes, tuple[int, int]]:
    """Return the byte spans of a protobuf map's values by key."""
    entries: dict[bytes, tuple[int, int]] = {}
    position, end = span or (0, 0)
    while position < end:
        tag, begin, position = _field(record, position, end)
        key_tag, begin, key_end = _field(record, begin, position)
        value_tag, value_begin, value_end = _field(record, key_end, position)
        key = record[begin:key_end]
        if tag != 0x0A or key_tag != 0x0A or value_tag != 0x12 or value_end != position:
            raise _Unusual
        if key in entries or not key.isascii():  # protobuf refuses keys that are not UTF-8
            raise _Unusual
        entries[key] = value_begin, value_end
    return entries


def _only_field(record: bytes, span: tuple[int, int], tag: int) -> tuple[int, int]:
    found, begin, end = _field(record, *span)
    if found != tag or end != span[1]:
        raise _Unusual
    return begin, end


def _single_bytes(record: bytes, span: tuple[int, int]) -> bytes:
    begin, end = _only_field(record, _only_field(record, span, 0x0A), 0x0A)
    return record[begin:end]


def _int64_list(record: bytes, span: tuple[int, int]) -> list[int]:
    begin, end = _only_field(record, span, 0x1A)
    values: list[int] = []
    if begin < end:
        position, end = _only_field(record, (begin, end), 0x0A)
        value = shift = 0
        for byte in record[position:end]:
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                values.append(value)
                value = shift = 0
            else:
                shift += 7
                if shift == 63:
                    raise _Unusual
        if shift:
            raise _Unusual
    return values


def _float_list(record: bytes, span: tuple[int, int]) -> list[float]:
    begin, end = _only_field(record, span, 0x12)
    if begin < end:
        begin, end = _only_field(record, (begin, end), 0x0A)
    if (end - begin) % 4:
        raise _Unusual
    values: list[float] = np.frombuffer(record, "<f4", (end - begin) // 4, begin).tolist()
    return values


# --- the general reader ---------------------------------------------------------------------------


def _read_general(record: bytes, schema: Schema) -> _Parts:
    """Decode any valid encoding with the protobuf library, which copies the frames."""
    message = SequenceExample() if schema.level == "frame" else Example()
    try:
        message.ParseFromString(record)
    except DecodeError as error:
        kind = type(message).__name__
        raise DataError(f"is not a valid {kind}; check the schema's level ({schema.level})") from error
    context = (message.context if schema.level == "frame" else message.features).feature
    name = next((_value(context, key, "bytes_list")[0] for key in schema.ids if _has(context, key)), None)
    labels = None
    if _has(context, schema.labels):
        labels = list(_value(context, schema.labels, "int64_list"))
    rated = {
        key: list(_value(context, key, kind))
        for key, kind in ratings.FEATURES.items()
        if schema.segments and _has(context, key)
    }
    if schema.level == "video":
        return name, labels, [_vector(context, feature, schema) for feature in schema.features], rated
    lists = message.feature_lists.feature_list
    features = []
    for feature in schema.features:
        if feature.name not in lists:
            raise _missing(feature.name, lists)
        frames = [
            _frame_values(item, feature, number, schema) for number, item in enumerate(lists[feature.name].feature)
        ]
        features.append(np.stack(frames) if frames else np.empty((0, feature.width), schema.dtype))
    return name, labels, features, rated


def _has(features: Any, key: str) -> bool:
    return key in features and features[key].WhichOneof("kind") is not None


def _value(features: Any, key: str, kind: str) -> Any:
    found = features[key].WhichOneof("kind")
    if found != kind:
        raise DataError(f"feature {key!r} is a {found}, expected a {kind}")
    values = getattr(features[key], kind).value
    if kind == "bytes_list" and len(values) != 1:
        raise DataError(f"feature {key!r} has {len(values)} values, expected one")
    return values


def _vector(features: Any, feature: Feature, schema: Schema) -> FrameArray:
    if not _has(features, feature.name):
        raise _missing(feature.name, features)
    return _frame_values(features[feature.name], feature, 0, schema)[None]


def _frame_values(item: Any, feature: Feature, number: int, schema: Schema) -> FrameArray:
    kind = "bytes_list" if schema.dtype == "uint8" else "float_list"
    found = item.WhichOneof("kind")
    if found != kind:
        expected = f"expected a {kind}; check the schema's dtype ({schema.dtype})"
        what = f"is a {found}" if found else "is empty"
        raise DataError(f"feature {feature.name!r}, frame {number}: {what}, {expected}")
    values = getattr(item, kind).value
    frame = np.frombuffer(b"".join(values), np.uint8) if kind == "bytes_list" else np.array(values, np.float32)
    if len(frame) != feature.width:
        raise DataError(
            f"feature {feature.name!r}, frame {number}: {len(frame)} values, expected {feature.width}; "
            "check the schema's width"
        )
    return frame


def _missing(name: str, present: Any) -> DataError:
    few = sorted(present)[:20]
    names = ", ".join(few) or "none, so check the schema's level"
    return DataError(f"no feature {name!r}; the record has {names}{', …' if len(present) > len(few) else ''}")


# --- the writer ---------------------------------------------------------------------------------


def encode(video: Video, schema: Schema) -> bytes:
    """Encode one record, the inverse of `decode`; equal videos give equal bytes."""
    message = SequenceExample() if schema.level == "frame" else Example()
    context = message.context if schema.level == "frame" else message.features
    context.feature[schema.ids[0]].bytes_list.value.append(video.id.encode())
    if video.labels is not None:
        # Naming the list keeps "no labels known" apart from "known to have none".
        labels = context.feature[schema.labels].int64_list
        labels.SetInParent()
        labels.value.extend(video.labels.tolist())
    if video.ratings is not None:
        for key, values in ratings.to_lists(video.ratings, schema).items():
            held = getattr(context.feature[key], ratings.FEATURES[key])
            held.SetInParent()
            held.value.extend(values)
    if schema.level == "video":
        for feature, vectors in zip(schema.features, video.features, strict=True):
            context.feature[feature.name].float_list.value.extend(vectors[0].tolist())
    encoded: bytes = message.SerializeToString(deterministic=True)
    return encoded if schema.level == "video" else encoded + _feature_lists(video, schema)


def _feature_lists(video: Video, schema: Schema) -> bytes:
    """Encode the feature lists of a frame-level record, in the order and layout of a deterministic protobuf writer."""
    entries = []
    for name, frames in sorted(
        (feature.name.encode(), frames) for feature, frames in zip(schema.features, video.features, strict=True)
    ):
        header, frame = _frame_layout(frames.shape[1], schema.dtype, True)
        rows = np.empty(len(frames), frame)
        rows["header"], rows["values"] = np.void(header), frames
        entries.append(_delimited(0x0A, _delimited(0x0A, name), _delimited(0x12, rows.tobytes())))
    return _delimited(0x12, *entries)


def _delimited(tag: int, *parts: bytes) -> bytes:
    """Encode a length-delimited field whose content is the parts, joined."""
    return b"".join((bytes([tag]), _varint_bytes(sum(map(len, parts))), *parts))
