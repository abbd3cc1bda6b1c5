"""TensorFlow's `Example` and `SequenceExample`: decode bytes to a `Video`, and encode it back.

There are two readers. The fast strided one relies on the layout that every TensorFlow writer produces: each frame is
encoded in the same number of bytes, so a feature's T frames are one strided view of the record. It declines any other
layout, and the general protobuf reader takes over. For the features of the schema both readers give the same result;
features that the schema leaves out are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from reeltag.core.errors import DataError, UsageError
from reeltag.data import ratings
from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.ratings import Ratings
from reeltag.data.schema import STORED_BYTES, Feature, Schema

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
        remarks: what the schema forgave in the record, such as `UNNAMED`; to be counted.
    """

    id: str
    labels: npt.NDArray[np.int64] | None
    features: tuple[FrameArray, ...]
    cut: int = 0
    ratings: Ratings | None = None
    rated: npt.NDArray[np.int64] | None = None
    remarks: tuple[str, ...] = ()

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

UNNAMED = "records without an id, called SHARD:NUMBER"
CUT = "records whose features differ in length, cut to the shortest"
MAX_WHOLE = 1 << 24  # largest magnitude up to which float32 holds every whole number


class MissingFeatureError(DataError):
    """A record lacks a feature of the schema.

    Attributes:
        feature: its name.
    """

    def __init__(self, feature: str, reason: str) -> None:
        super().__init__(reason)
        self.feature = feature


class _Unusual(Exception):  # noqa: N818 - a signal between the two readers, never an error
    """The strided reader declines."""


def decode(record: bytes, schema: Schema, unnamed: str | None = None) -> Video:
    """Decode one record.

    Args:
        record: a TFRecord payload.
        schema: of the record.
        unnamed: id of a record that has none, if the schema allows that.

    Raises:
        MissingFeatureError: the record lacks a feature, and the schema does not fill it with zeros.
        DataError: the record does not follow the schema; the caller adds file and offset.
    """
    try:
        parts = _read_strided(record, schema)
    except (_Unusual, IndexError):  # an IndexError ran off the record's end
        parts = _read_general(record, schema)
    return _checked(*parts, schema, unnamed=unnamed)


# Absent features have no frames.
_Parts = tuple["bytes | None", "Sequence[float] | None", list[FrameArray], ratings.Lists]


def _checked(
    name: bytes | None,
    labels: Sequence[float] | None,
    features: Sequence[FrameArray],
    rated: ratings.Lists,
    schema: Schema,
    *,
    unnamed: str | None = None,
) -> Video:
    remarks: tuple[str, ...] = ()
    if name is None:
        if unnamed is None or schema.unnamed == "fail":
            expected = f"expected a text or whole number named {' or '.join(schema.ids)}"
            raise DataError(f'no id: {expected}; schema.unnamed = "number" calls records SHARD:NUMBER')
        name, remarks = unnamed.encode(), (UNNAMED,)
    lengths = list(map(len, features))
    length = lengths[0]
    if lengths.count(length) < len(lengths):
        features, more = _of_equal_length(features, schema)
        length, remarks = len(features[0]), remarks + more
    if not length:
        raise DataError("0 frames: a video needs at least one; leave this record out")
    if schema.dtype == "float32" and not all(map(is_computable, features)):
        raise DataError(f"a feature holds NaN or infinite values, or some beyond ±{MAX_VALUE:g}")
    cut = max(0, length - schema.max_frames)
    if cut:
        features = [frames[: schema.max_frames] for frames in features]
    known = None if labels is None else np.array(_classes(labels, schema), np.int64)
    of_segments = ratings.from_lists(rated, length - cut, schema)
    try:
        return Video(name.decode(), known, tuple(features), cut, of_segments, None, remarks)
    except UnicodeDecodeError as error:
        raise DataError(f"the id {name[:40]!r} is not UTF-8; write it as text") from error


def _of_equal_length(features: Sequence[FrameArray], schema: Schema) -> tuple[Sequence[FrameArray], tuple[str, ...]]:
    """Fill absent features and cut others to the shortest, as far as the schema allows; return them and remarks."""
    absent = [feature.name for feature, frames in zip(schema.features, features, strict=True) if not len(frames)]
    if absent and schema.missing == "skip":
        raise MissingFeatureError(absent[0], f"feature {absent[0]!r} has no frames")
    remarks: tuple[str, ...] = ()
    lengths = {feature.name: len(frames) for feature, frames in zip(schema.features, features, strict=True)}
    if absent and schema.missing == "zero":
        present = min(filter(None, lengths.values()))
        features = [
            frames if len(frames) else np.zeros((present, *frames.shape[1:]), schema.dtype) for frames in features
        ]
        remarks = tuple(f"records without {name!r}, filled with zeros" for name in absent)
    shortest = min(map(len, features))
    if shortest < max(map(len, features)):
        if schema.unequal == "fail":
            raise DataError(
                f'features disagree on the number of frames: {lengths}; schema.unequal = "cut" cuts to the shortest'
            )
        features, remarks = [frames[:shortest] for frames in features], (*remarks, CUT)
    return features, remarks


def _classes(labels: Sequence[float], schema: Schema) -> list[float]:
    """Return the class numbers of a label list, ascending, each once."""
    if not labels:
        return []
    if schema.labels.encoding == "n-hot":
        if len(labels) != schema.classes:
            raise DataError(
                f"{schema.labels.name!r} has {len(labels)} values for {schema.classes} classes; "
                "check the schema's 'classes' and labels.encoding"
            )
        if other := set(labels) - {0, 1}:
            raise DataError(
                f"{schema.labels.name!r} holds {min(other):g}, and n-hot labels are 0 or 1; "
                "check the schema's labels.encoding"
            )
        return [number for number, present in enumerate(labels) if present]
    classes = sorted(set(labels))
    if classes[0] < 0 or classes[-1] >= schema.classes:
        outside = classes[-1] if classes[0] >= 0 else classes[0]
        raise DataError(
            f"label {outside} is outside the {schema.classes} classes 0…{schema.classes - 1}; "
            "check the schema's 'classes'"
        )
    return classes


def _survive(frames: FrameArray, code: str) -> bool:
    """Return True if values are the same after they were stored as a type of NumPy's."""
    with np.errstate(over="ignore"):
        return bool((frames.astype(code) == frames).all())


def is_computable(frames: FrameArray) -> bool:
    """Return True if all values are finite and small enough to be squared in float32."""
    return bool(frames.min() >= -MAX_VALUE and frames.max() <= MAX_VALUE)


# --- the strided reader -------------------------------------------------------------------------


def _read_strided(record: bytes, schema: Schema) -> _Parts:
    if schema.frames == "flat":
        raise _Unusual
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
    span = context.get(schema.labels.name.encode())
    labels = None if span is None else _int64_list(record, span)
    lists = _map_entries(record, sections.get(0x12)) if schema.level == "frame" else context
    features = []
    for feature in schema.features:
        place = lists.get(feature.name.encode())
        if place is None:
            raise _Unusual
        features.append(_strided_frames(record, place, feature.width, schema))
    return name, labels, features, _strided_ratings(record, context) if schema.segments else {}


def _strided_ratings(record: bytes, context: dict[bytes, tuple[int, int]]) -> ratings.Lists:
    return {
        key: _int64_list(record, span) if kind == "int64_list" else _float_list(record, span)
        for key, kind in ratings.FEATURES.items()
        if (span := context.get(key.encode()))
    }


def _strided_frames(record: bytes, span: tuple[int, int], width: int, schema: Schema) -> FrameArray:
    header, frame, convert = _frame_layout(width, schema.dtype, schema.storage, schema.level == "frame")
    begin, end = span
    frames, rest = divmod(end - begin, frame.itemsize)
    if rest or (schema.level == "video" and frames != 1):
        raise _Unusual
    rows = np.frombuffer(record, frame, frames, begin)
    if rows["header"].tobytes() != header * frames:
        raise _Unusual
    return _as_floats(rows["values"]) if convert else rows["values"]


@lru_cache(maxsize=64)
def _frame_layout(width: int, dtype: str, storage: str, in_list: bool) -> tuple[bytes, np.dtype[np.void], bool]:
    """Return the bytes before each frame (tags and lengths of `Feature`, kind, value), a frame's dtype, and True if its
    values have to be converted."""
    if storage == "int64":
        raise _Unusual  # varints have no regular stride
    kind, code = (
        (0x12, "<f4") if dtype == "float32" and storage == "native" else (0x0A, STORED_BYTES.get(storage, "u1"))
    )
    size = width * np.dtype(code).itemsize
    header = b"\x0a" + _varint_bytes(size)
    header = bytes([kind]) + _varint_bytes(len(header) + size) + header
    if in_list:
        header = b"\x0a" + _varint_bytes(len(header) + size) + header
    frame = np.dtype([("header", "V", len(header)), ("values", code, (width,))])
    return header, frame, storage in STORED_BYTES


def _as_floats(values: FrameArray) -> FrameArray:
    with np.errstate(over="ignore"):  # what becomes infinite is refused later
        return values.astype(np.float32, copy=False)


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
    name = next((_id(context, key) for key in schema.ids if _has(context, key)), None)
    labels = _label_list(context, schema) if _has(context, schema.labels.name) else None
    rated = {
        key: list(_value(context, key, kind))
        for key, kind in ratings.FEATURES.items()
        if schema.segments and _has(context, key)
    }
    lists = message.feature_lists.feature_list if schema.level == "frame" and schema.frames == "listed" else None
    absent = [
        each.name for each in schema.features if not (_has(context, each.name) if lists is None else each.name in lists)
    ]
    if absent and (schema.missing != "zero" or len(absent) == len(schema.features)):
        raise _missing(absent[0], context if lists is None else lists)
    features = []
    for feature in schema.features:
        if feature.name in absent:
            features.append(np.empty((0, feature.width), schema.dtype))
        elif lists is None:
            features.append(_rows(context, feature, schema))
        else:
            items = lists[feature.name].feature
            frames = [_frame_values(item, feature, number, schema) for number, item in enumerate(items)]
            features.append(np.stack(frames) if frames else np.empty((0, feature.width), schema.dtype))
    return name, labels, features, rated


def _has(features: Any, key: str) -> bool:
    return key in features and features[key].WhichOneof("kind") is not None


def _value(features: Any, key: str, kind: str) -> Any:
    found = features[key].WhichOneof("kind")
    if found != kind:
        raise DataError(f"feature {key!r} is a {found}, expected a {kind}")
    return getattr(features[key], kind).value


def _single(features: Any, key: str, kind: str) -> Any:
    values = _value(features, key, kind)
    if len(values) != 1:
        raise DataError(f"feature {key!r} has {len(values)} values, expected one")
    return values[0]


def _id(context: Any, key: str) -> bytes:
    """Return an id, which may be a whole number."""
    if context[key].WhichOneof("kind") == "int64_list":
        return str(_single(context, key, "int64_list")).encode()
    name: bytes = _single(context, key, "bytes_list")
    return name


def _label_list(context: Any, schema: Schema) -> list[float]:
    """Return the values of the label list; n-hot labels may also be floats, or bytes of 0 and 1."""
    key, kind = schema.labels.name, context[schema.labels.name].WhichOneof("kind")
    if schema.labels.encoding == "n-hot":
        return list(_single(context, key, kind) if kind == "bytes_list" else _value(context, key, kind))
    if kind != "int64_list":
        hint = f'labels = {{ name = "{key}", encoding = "n-hot" }}'
        raise DataError(
            f"feature {key!r} is a {kind}, expected an int64_list of class numbers; "
            f"if it holds a 0 or 1 for each class, write {hint}"
        )
    return list(context[key].int64_list.value)


def _rows(context: Any, feature: Feature, schema: Schema) -> FrameArray:
    """Return the frames of a context feature: the one of the video level, or flat ones one after another."""
    if schema.frames == "listed":
        return _frame_values(context[feature.name], feature, 0, schema)[None]
    values = _stored_values(context[feature.name], f"feature {feature.name!r}", schema, feature.width)
    count, rest = divmod(len(values), feature.width)
    if rest:
        raise DataError(
            f"feature {feature.name!r}: {len(values)} values are not whole frames of {feature.width}; "
            "check the schema's width"
        )
    if schema.frame_count is not None:
        if not _has(context, schema.frame_count):
            raise _missing(schema.frame_count, context)
        frames = _single(context, schema.frame_count, "int64_list")
        if not 0 <= frames <= count:
            raise DataError(f"{schema.frame_count!r} is {frames}, but {feature.name!r} holds {count} frames")
        count = frames
    return values.reshape(-1, feature.width)[:count]


def _frame_values(item: Any, feature: Feature, number: int, schema: Schema) -> FrameArray:
    place = f"feature {feature.name!r}, frame {number}"
    frame = _stored_values(item, place, schema)
    if len(frame) != feature.width:
        raise DataError(f"{place}: {len(frame)} values, expected {feature.width}; check the schema's width")
    return frame


def _stored_values(item: Any, place: str, schema: Schema, width: int | None = None) -> FrameArray:
    """Return the values of a feature in the schema's dtype.

    Args:
        item: the `Feature` message.
        place: of the feature, for messages.
        schema: of the record.
        width: of a frame, if each value of a list of bytes has to hold whole frames.

    Raises:
        DataError: the values are of another kind, or beyond the dtype.
    """
    as_bytes = schema.storage in STORED_BYTES or (schema.storage == "native" and schema.dtype == "uint8")
    kind = "bytes_list" if as_bytes else "int64_list" if schema.storage == "int64" else "float_list"
    found = item.WhichOneof("kind")
    if found != kind:
        what = f"is a {found}" if found else "is empty"
        checked = f"dtype ({schema.dtype})" if schema.storage == "native" else f"storage ({schema.storage})"
        raise DataError(f"{place}: {what}, expected a {kind}; check the schema's {checked}")
    values = getattr(item, kind).value
    if as_bytes:
        code = np.dtype(STORED_BYTES.get(schema.storage, "u1"))
        if odd := next((len(each) for each in values if len(each) % (code.itemsize * (width or 1))), 0):
            of = f"frames of {width} values" if width else "values"
            raise DataError(f"{place}: {odd} bytes are not whole {of}; check the schema's width and storage")
        return (
            np.frombuffer(b"".join(values), code) if code == "u1" else _as_floats(np.frombuffer(b"".join(values), code))
        )
    if kind == "float_list":
        return np.array(values, np.float32)
    whole = np.array(values, np.int64)
    low, high = (0, 255) if schema.dtype == "uint8" else (-MAX_WHOLE, MAX_WHOLE)
    if len(whole) and (whole.min() < low or whole.max() > high):
        outside = whole.min() if whole.min() < low else whole.max()
        raise DataError(f"{place}: {outside} is no {schema.dtype}; check the schema's dtype")
    return whole.astype(schema.dtype)


def _missing(name: str, present: Any) -> MissingFeatureError:
    few = sorted(present)[:20]
    names = ", ".join(few) or "none, so check the schema's level"
    return MissingFeatureError(
        name, f"no feature {name!r}; the record has {names}{', …' if len(present) > len(few) else ''}"
    )


# --- the writer ---------------------------------------------------------------------------------


def encode(video: Video, schema: Schema) -> bytes:
    """Encode one record, the inverse of `decode`; equal videos give equal bytes.

    Raises:
        DataError: `decode` would refuse the record; the message names the video's id.
        UsageError: the schema is one of records that others wrote: whole numbers, flat `frames` or n-hot labels.
    """
    return b"".join(encode_pieces(video, schema))


def encode_pieces(video: Video, schema: Schema) -> list[bytes]:
    """Encode one record as pieces that follow each other, to be written without joining them; see `encode`."""
    if not schema.standard:
        raise UsageError(
            "records are written as uint8 or floats, in lists of frames, with class numbers; "
            "leave out the schema's storage, frames and labels.encoding"
        )
    try:
        _refuse_unreadable(video, schema)
    except DataError as error:
        raise DataError(error.reason, id=video.id) from error
    message = SequenceExample() if schema.level == "frame" else Example()
    context = message.context if schema.level == "frame" else message.features
    context.feature[schema.ids[0]].bytes_list.value.append(video.id.encode())
    if video.labels is not None:
        # Naming the list keeps "no labels known" apart from "known to have none".
        labels = context.feature[schema.labels.name].int64_list
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
    return [encoded] if schema.level == "video" else [encoded, *_feature_lists(video, schema)]


def _feature_lists(video: Video, schema: Schema) -> Iterator[bytes]:
    """Yield the pieces of a record's feature lists, in the order and layout of a deterministic protobuf writer."""
    entries: list[tuple[bytes, bytes]] = []
    for name, frames in sorted(
        (feature.name.encode(), frames) for feature, frames in zip(schema.features, video.features, strict=True)
    ):
        header, frame, _ = _frame_layout(frames.shape[1], schema.dtype, schema.storage, True)
        rows = np.empty(len(frames), frame)
        rows["header"], rows["values"] = np.void(header), frames
        before = b"\x0a" + _varint_bytes(len(name)) + name + b"\x12" + _varint_bytes(rows.nbytes)
        entries.append((b"\x0a" + _varint_bytes(len(before) + rows.nbytes) + before, rows.tobytes()))
    yield b"\x12" + _varint_bytes(sum(map(len, chain.from_iterable(entries))))
    yield from chain.from_iterable(entries)


def _refuse_unreadable(video: Video, schema: Schema) -> None:
    """Refuse a video that `decode` would not give back.

    Raises:
        DataError: as described.
    """
    if len(video.features) != len(schema.features):
        raise DataError(f"has {len(video.features)} features, the schema {len(schema.features)}; give one array each")
    for feature, frames in zip(schema.features, video.features, strict=True):
        if frames.ndim != 2 or frames.shape[1] != feature.width or frames.dtype != schema.dtype:
            expected = f"[T, {feature.width}] {schema.dtype}"
            raise DataError(f"feature {feature.name!r} is {list(frames.shape)} {frames.dtype}, expected {expected}")
    if len(lengths := {len(frames) for frames in video.features}) > 1:
        raise DataError(f"features disagree on the number of frames: {sorted(lengths)}")
    if schema.level == "video" and video.length != 1:
        raise DataError(f"has {video.length} frames, expected one vector; check the schema's level")
    if video.ratings is not None and schema.segments is None:
        raise DataError("has ratings of segments, but the schema has no segments")
    try:
        name = video.id.encode()
    except UnicodeEncodeError as error:
        raise DataError("the id is no valid text; leave lone surrogates out") from error
    labels = None if video.labels is None else video.labels.tolist()
    rated = {} if video.ratings is None else ratings.to_lists(video.ratings, schema)
    _checked(name, labels, video.features, rated, schema)
    for feature, frames in zip(schema.features, video.features, strict=True):
        if schema.storage in STORED_BYTES and not _survive(frames, STORED_BYTES[schema.storage]):
            what = f"feature {feature.name!r} holds values that {schema.storage} cannot; round them to it first"
            raise DataError(what)
