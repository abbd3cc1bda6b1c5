"""Records that are valid but unusual, by what is odd about them, and what they hold or why they are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.schema import Feature, Schema

BYTES = Schema(features=(Feature(name="rgb", width=12), Feature(name="audio", width=4)), classes=9, max_frames=50)
FLOATS = BYTES.model_copy(update={"dtype": "float32"})
VECTORS = FLOATS.model_copy(update={"level": "video"})


def varint(value: int, more: int = 0) -> bytes:
    """A varint, in some bytes more than it needs."""
    out = bytearray()
    while value > 0x7F or more:
        out.append(value & 0x7F | 0x80)
        value, more = value >> 7, more - (value <= 0x7F)
    return bytes([*out, value])


def field(number: int, *contents: bytes, more: int = 0) -> bytes:
    content = b"".join(contents)
    return varint(number << 3 | 2) + varint(len(content), more) + content


def entry(key: bytes, *value: bytes) -> bytes:
    return field(1, field(1, key), field(2, *value))


def frames(length: int, width: int = 12, code: str = "u1", value: Any = None) -> list[bytes]:
    rng = np.random.default_rng([length, width])
    rows = rng.integers(0, 256, (length, width)) if value is None else np.full((length, width), value)
    if value is None and code != "u1":
        rows = rows / 64 - 2
    return [row.astype(code).tobytes() for row in rows]


def as_list(rows: list[bytes], kind: int = 1, before: bytes = b"", more: int = 0) -> bytes:
    return b"".join(field(1, before, field(kind, field(1, row, more=more))) for row in rows)


ID = entry(b"id", field(1, field(1, b"ab")))
LABELS = entry(b"labels", field(3, field(1, b"\x01\x03")))
RGB, AUDIO = as_list(frames(3)), as_list(frames(3, 4))
LISTS = entry(b"audio", AUDIO) + entry(b"rgb", RGB)
UNKNOWN = b"\x48\x07" + b"\x55abcd" + b"\x59abcdefgh" + field(12, b"?") + b"\x6b\x08\x01\x6c"  # of every wire type


def record(
    name: bytes = ID, labels: bytes = LABELS, rgb: bytes | None = None, audio: bytes | None = None, extra: bytes = b""
) -> bytes:
    """A record of frames, of which parts are as given."""
    lists = entry(b"audio", AUDIO if audio is None else audio) + entry(b"rgb", RGB if rgb is None else rgb)
    return field(1, name, labels, extra) + field(2, lists)


def named(name: bytes) -> bytes:
    return record(name=entry(b"id", field(1, field(1, name))))


def labelled(*contents: bytes) -> bytes:
    return record(labels=entry(b"labels", field(3, *contents)))


def of_length(length: int) -> bytes:
    return record(rgb=as_list(frames(length)), audio=as_list(frames(length, 4)))


def constant(value: int, length: int = 3) -> bytes:
    return record(rgb=as_list(frames(length, value=value)), audio=as_list(frames(length, 4, value=value)))


def floats(value: Any = None, kind: int = 2) -> bytes:
    rgb, audio = frames(3, 12, "<f4", value), frames(3, 4, "<f4", value)
    return record(rgb=as_list(rgb, kind), audio=as_list(audio, kind))


def vector(*rgb: bytes, audio: bytes | None = None) -> bytes:
    value = audio or field(2, field(1, frames(1, 4, "<f4")[0]))
    return field(1, ID, LABELS, entry(b"rgb", *rgb), entry(b"audio", value))


def unpacked(row: bytes) -> bytes:
    return b"".join(b"\x0d" + row[at : at + 4] for at in range(0, len(row), 4))


ROW = frames(1, 12, "<f4")[0]
SIGNS = np.where(np.arange(12) % 2, 1e15, -1e15).astype("<f4").tobytes()
LONE = np.array([1e15] + [0] * 11, "<f4").tobytes()

# What is odd → schema and record.
ODD: dict[str, tuple[Schema, bytes]] = {
    "one frame": (BYTES, of_length(1)),
    "as many frames as the schema allows": (BYTES, of_length(50)),
    "more frames than the schema allows": (BYTES, of_length(57)),
    "no labels": (BYTES, record(labels=b"")),
    "labels of no kind": (BYTES, record(labels=entry(b"labels"))),
    "an empty list of labels": (BYTES, labelled()),
    "labels twice": (BYTES, labelled(field(1, b"\x03\x01\x03\x03"))),
    "labels in no order": (BYTES, labelled(field(1, b"\x08\x00\x05"))),
    "labels not packed": (BYTES, labelled(b"\x08\x01\x08\x03")),
    "labels in several pieces": (BYTES, labelled(field(1, b"\x01"), b"\x08\x05", field(1, b"\x03\x07"))),
    "labels in more bytes than they need": (BYTES, labelled(field(1, varint(1, 3) + varint(3, 8)))),
    "labels after a value of another kind": (
        BYTES,
        record(labels=entry(b"labels", field(1, field(1, b"x")), field(3, field(1, b"\x02")))),
    ),
    "more context": (
        BYTES,
        record(extra=entry(b"a", field(2, field(1, bytes(8)))) + entry(b"b") + entry(b"c", field(3, b"\x08\x07"))),
    ),
    "more feature lists": (BYTES, record() + field(2, entry(b"depth", as_list(frames(5, 2))))),
    "unknown fields": (BYTES, record(extra=UNKNOWN) + UNKNOWN),
    "unknown fields in a frame": (BYTES, record(rgb=as_list(frames(3), before=UNKNOWN))),
    "features in another order": (BYTES, field(1, ID, LABELS) + field(2, entry(b"rgb", RGB), entry(b"audio", AUDIO))),
    "context after the frames": (BYTES, field(2, LISTS) + field(1, LABELS, ID)),
    "context in two pieces": (BYTES, field(1, ID) + field(2, LISTS) + field(1, LABELS)),
    "feature lists in two pieces": (
        BYTES,
        field(1, ID, LABELS) + field(2, entry(b"rgb", RGB)) + field(2, entry(b"audio", AUDIO)),
    ),
    "a feature twice, of which the last counts": (BYTES, field(2, entry(b"rgb", as_list(frames(9)))) + record()),
    "an id twice, of which the last counts": (BYTES, record(name=entry(b"id", field(1, field(1, b"old"))) + ID)),
    "a map's value before its key": (
        BYTES,
        record(name=field(1, field(2, field(1, field(1, b"ab"))), field(1, b"id"))),
    ),
    "a frame's bytes in two values": (
        BYTES,
        record(rgb=b"".join(field(1, field(1, field(1, row[:5]), field(1, row[5:]))) for row in frames(3))),
    ),
    "lengths in more bytes than they need": (BYTES, field(1, ID, LABELS, more=2) + field(2, LISTS, more=1)),
    "a frame's lengths in more bytes than they need": (BYTES, record(rgb=as_list(frames(3), more=1))),
    "the id under its second name": (BYTES, record(name=entry(b"video_id", field(1, field(1, b"second"))))),
    "the id under both names": (BYTES, record(name=entry(b"video_id", field(1, field(1, b"second"))) + ID)),
    "an empty id": (BYTES, named(b"")),
    "an id that is a number": (BYTES, record(name=entry(b"id", field(3, field(1, b"\x07"))))),
    "an id beyond ASCII": (BYTES, named("視頻 Ünïcode 🎬".encode())),
    "an id of 10,000 letters": (BYTES, named(b"x" * 10_000)),
    "an id with quotes, commas, line breaks and a NUL": (BYTES, named(b'a,"b"\n\r\0c')),
    "frames of zeros": (BYTES, constant(0)),
    "frames of 255": (BYTES, constant(255)),
    "frames that are all the same": (BYTES, constant(77, 50)),
    "floats": (FLOATS, floats()),
    "floats of zero": (FLOATS, floats(0)),
    "floats of negative zero": (FLOATS, floats(-0.0)),
    "denormal floats": (FLOATS, floats(1e-42)),
    "tiny floats": (FLOATS, floats(1e-30)),
    "floats of ±1e15, the largest": (
        FLOATS,
        record(rgb=as_list([SIGNS] * 3, 2), audio=as_list(frames(3, 4, "<f4", 1e15), 2)),
    ),
    "one large float among zeros": (
        FLOATS,
        record(rgb=as_list([LONE] * 3, 2), audio=as_list(frames(3, 4, "<f4", 0), 2)),
    ),
    "floats not packed": (
        FLOATS,
        record(
            rgb=b"".join(field(1, field(2, unpacked(row))) for row in frames(3, 12, "<f4")),
            audio=as_list(frames(3, 4, "<f4"), 2),
        ),
    ),
    "a vector": (VECTORS, vector(field(2, field(1, ROW)))),
    "a vector in pieces": (VECTORS, vector(field(2, field(1, ROW[:8]), unpacked(ROW[8:24]), field(1, ROW[24:])))),
    "a vector of zeros": (VECTORS, vector(field(2, field(1, bytes(48))))),
    "a vector of ±1e15": (VECTORS, vector(field(2, field(1, SIGNS)))),
}

# What is refused → schema, record and part of the message.
REFUSED: dict[str, tuple[Schema, bytes, str]] = {
    "an empty record": (BYTES, b"", "no feature 'rgb'; the record has none"),
    "no frames": (BYTES, of_length(0), "0 frames"),
    "features of other lengths": (BYTES, record(rgb=as_list(frames(2))), "features disagree on the number of frames"),
    "a frame that is empty": (BYTES, record(rgb=field(1) * 3), "'rgb', frame 0: is empty, expected a bytes_list"),
    "frames of another width": (BYTES, record(rgb=as_list(frames(3, 11))), "'rgb', frame 0: 11 values, expected 12"),
    "floats where bytes should be": (BYTES, floats(), "frame 0: is a float_list, expected a bytes_list"),
    "no id": (BYTES, record(name=b""), "no id"),
    "an id of two values": (
        BYTES,
        record(name=entry(b"id", field(1, field(1, b"a"), field(1, b"b")))),
        "has 2 values, expected one",
    ),
    "an id that is not UTF-8": (BYTES, named(b"caf\xe9"), "is not UTF-8"),
    "a label below 0": (BYTES, labelled(field(1, b"\xff" * 9 + b"\x01")), "label -1 is outside"),
    "a label beyond the classes": (BYTES, labelled(field(1, b"\x09")), "label 9 is outside the 9 classes"),
    "a label of 63 bits": (BYTES, labelled(field(1, varint(2**63 - 1))), "label 9223372036854775807 is outside"),
    "labels that are bytes": (
        BYTES,
        record(labels=entry(b"labels", field(1, field(1, b"3")))),
        "'labels' is a bytes_list",
    ),
    "floats beyond 1e15": (FLOATS, floats(1e16), "some beyond ±1e+15"),
    "floats whose squares overflow": (FLOATS, floats(-1e38), "some beyond ±1e+15"),
    "NaN": (FLOATS, floats(np.nan), "NaN or infinite"),
    "infinity": (FLOATS, floats(-np.inf), "NaN or infinite"),
    "a vector that is too short": (VECTORS, vector(field(2, field(1, ROW[:44]))), "11 values, expected 12"),
    "a key that is not UTF-8": (BYTES, record(extra=entry(b"\xff")), "is not a valid SequenceExample"),
}


def by_protobuf(schema: Schema, content: bytes) -> dict[str, Any]:
    """Decode a record with the protobuf library to a `Video`."""
    message = (SequenceExample if schema.level == "frame" else Example).FromString(content)
    context = (message.context if schema.level == "frame" else message.features).feature
    read: Callable[[Any], bytes] = (
        (lambda item: b"".join(item.bytes_list.value))
        if schema.dtype == "uint8"
        else (lambda item: np.array(list(item.float_list.value), "<f4").tobytes())
    )
    features = []
    for feature in schema.features:
        items = (
            message.feature_lists.feature_list[feature.name].feature
            if schema.level == "frame"
            else [context[feature.name]]
        )
        features.append(b"".join(map(read, items[: schema.max_frames])))
    names = [context[key] for key in schema.ids if context[key].WhichOneof("kind")]
    name = names[0].bytes_list.value[0] if names[0].bytes_list.value else b"%d" % names[0].int64_list.value[0]
    known = "labels" in context and context["labels"].HasField("int64_list")
    labels = sorted(set(context["labels"].int64_list.value)) if known else None
    return {"id": name.decode(), "labels": labels, "features": features}
