"""Draft a recipe's `[data.schema]` from records without a known schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from reeltag.core.text import counted
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.ratings import CLASSES, ENDS, FEATURES, STARTS
from reeltag.data.schema import PRESETS, STORED_BYTES, Schema, preset_schema

_NOUNS = {"bytes_list": "bytes", "float_list": "floats", "int64_list": "whole numbers"}
_Values = tuple[str, int]  # the kind of a list, and how many values it holds

SAMPLED_BYTES = 1 << 16  # of a feature, from which floats are told
SAMPLED_RECORDS = 1000  # from which flat frames are told
FEWEST_FLOATS = 64
WIDE = 8  # bytes of a value that may be a frame, and no name of a class
APART = 0.4  # least distance between the distributions of a mantissa's byte and an exponent's
# Magnitudes that features have; bytes that are no floats are often beyond.
MODERATE = {"<f2": (6e-5, 6e4), "<f4": (1e-10, 1e10), "<f8": (1e-10, 1e10)}


@dataclass(frozen=True)
class Draft:
    """Schema derived from some records.

    Attributes:
        records: number of records read.
        schema: the keys of `[data.schema]` that have no default, or another value.
        preset: one that the records follow too, or None.
        highest_label: None if there are no labels.
        most_frames: largest number of frames of a record.
        unlabelled: records without labels.
        remarks: on features that do not fit, and on what could not be determined.
    """

    records: int
    schema: dict[str, Any]
    preset: str | None
    highest_label: int | None
    most_frames: int
    unlabelled: int
    remarks: list[str]


@dataclass
class _Seen:
    """Statistics of records, by feature name."""

    records: int = 0
    lists: dict[str, set[_Values]] = field(default_factory=dict)
    context: dict[str, set[_Values]] = field(default_factory=dict)
    having: Counter[str] = field(default_factory=Counter)
    lowest: dict[str, int] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    frames: Counter[tuple[tuple[str, int], ...]] = field(default_factory=Counter)
    sizes: list[dict[str, int]] = field(default_factory=list)
    counts: list[dict[str, int]] = field(default_factory=list)
    pieces: dict[str, set[int]] = field(default_factory=dict)
    samples: dict[str, bytearray] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    segments: set[int] = field(default_factory=set)

    def add(self, message: Any) -> None:
        self.records += 1
        found = message.context.feature
        sizes, ones = dict[str, int](), dict[str, int]()
        if len(self.sizes) < SAMPLED_RECORDS:
            self.sizes.append(sizes)
            self.counts.append(ones)
        for name, item in found.items():
            kind, values = _values(item)
            sizes[name] = sum(map(len, values)) if kind == "bytes_list" else len(values)
            if kind == "int64_list" and len(values) == 1:
                ones[name] = values[0]
            elif kind == "bytes_list" and len(values) > 1:
                self.pieces.setdefault(name, set()).update(map(len, values))
            self._note(self.context, name, kind, len(values), values)
            # Values of an n-hot list; one of bytes holds them in one value.
            flags = values[0] if kind == "bytes_list" and len(values) == 1 else values
            if kind and len(flags):
                (self.flags if len(flags) > 1 and set(flags) <= {0, 1} else self.other).add(name)
        counts = {}
        for name, items in message.feature_lists.feature_list.items():
            counts[name] = len(items.feature)
            if items.feature:  # a frame tells of the others; `data verify` looks at all of them
                kind, values = _values(items.feature[0])
                width = sum(map(len, values)) if kind == "bytes_list" else len(values)
                self._note(self.lists, name, kind, width, values)
            for item in items.feature[1:]:
                self._sample(name, item.bytes_list.value)
        self.frames[tuple(sorted(counts.items()))] += 1
        if STARTS in found and ENDS in found:
            starts, ends = (_values(found[name])[1] for name in (STARTS, ENDS))
            self.segments.update(int(end - start) for start, end in zip(starts, ends, strict=False))

    def _note(self, where: dict[str, set[_Values]], name: str, kind: str, width: int, values: Any) -> None:
        where.setdefault(name, set()).add((kind, width))
        self.having[name] += 1
        if kind == "int64_list" and values:
            self.lowest[name] = min(self.lowest.get(name, values[0]), *values)
            self.highest[name] = max(self.highest.get(name, values[0]), *values)
        elif kind == "bytes_list":
            self._sample(name, values)

    def _sample(self, name: str, values: Iterable[bytes]) -> None:
        sample = self.samples.setdefault(name, bytearray())
        if len(sample) < SAMPLED_BYTES:
            sample.extend(b"".join(values))

    def most_frames(self, schema: Mapping[str, Any]) -> int:
        """Return the largest number of frames of the features that a draft keeps."""
        if "frame_count" in schema:
            return max(counts[schema["frame_count"]] for counts in self.counts)
        size = _item_bytes(schema.get("storage", "native"))
        widths: dict[str, int] = {feature["name"]: size * feature["width"] for feature in schema["features"]}
        if "frames" in schema:
            return max(sizes.get(name, 0) // width for sizes in self.sizes for name, width in widths.items())
        return max((count for counts in self.frames for name, count in counts if name in widths), default=0)

    def disagreeing(self, names: Container[str]) -> int:
        """Return the number of records in which some features have different numbers of frames."""
        several = (len({count for name, count in counts if name in names}) > 1 for counts in self.frames)
        return sum(records for records, differ in zip(self.frames.values(), several, strict=True) if differ)


def _values(item: Any) -> tuple[str, Any]:
    kind = item.WhichOneof("kind")
    return (kind, getattr(item, kind).value) if kind else ("", ())


def draft(records: Iterable[bytes]) -> Draft:
    """Draft a schema from all of some records; those that are no record of TensorFlow's are remarked upon."""
    seen, broken = _Seen(), 0
    for record in records:
        message = SequenceExample()
        try:
            message.ParseFromString(record)
        except DecodeError:
            broken += 1
        else:
            seen.add(message)
    schema, remarks = _features(seen)
    if broken:
        remarks.append(f"{counted(broken, 'record')} could not be read; `reeltag data verify` names the first")
    labels, highest = _labels(seen, schema, remarks)
    _ids(seen, schema, remarks)
    if len(seen.segments) == 1 and min(seen.segments) > 0:
        schema["segments"] = min(seen.segments)
    unlabelled = seen.records - seen.having[labels]
    return Draft(seen.records, schema, _preset(schema), highest, seen.most_frames(schema), unlabelled, remarks)


def _features(seen: _Seen) -> tuple[dict[str, Any], list[str]]:
    """Derive level, dtype, storage and features, with remarks on features that are left out."""
    schema, found = _layout(seen)
    remarks: list[str] = []
    widths: dict[tuple[str, str], dict[str, int]] = {}
    for name, kinds in sorted(found.items()):
        (kind, width), *others = sorted(kinds)
        if others or not kind or not width:
            what = " or ".join(f"{width:,} {_NOUNS.get(kind, 'values')}" for kind, width in sorted(kinds)[:3])
            remarks.append(f"{name} is left out: frames have {what}; all should have equally many bytes or floats")
        else:
            stored = _stored(seen, name, kind, width)
            width //= _item_bytes(stored[1])
            widths.setdefault(stored, {})[name] = width
            remarks += _remarks(seen, name, stored, width)
    chosen = min(widths, key=_PREFERRED.index, default=("float32", "native"))
    for stored, names in widths.items():
        if stored != chosen:
            held = f"it holds {_described(stored)}, and the others {_described(chosen)}"
            remarks += [f"{name} is left out: {held}" for name in names]
    kept = widths.get(chosen, {})
    if disagreeing := seen.disagreeing(kept):
        remarks.append(
            f"in {counted(disagreeing, 'record')} the features have different numbers of frames; "
            'unequal = "cut" cuts them to the shortest'
        )
    wide_first = sorted(kept.items(), key=lambda item: (-item[1], item[0]))
    schema["features"] = [{"name": name, "width": width} for name, width in wide_first]
    dtype, storage = chosen
    if dtype != "uint8":
        schema["dtype"] = dtype
    if storage != "native":
        schema["storage"] = storage
    if not schema["features"]:
        remarks.append("nothing is left that could be features; see what the first record holds")
    return schema, remarks


def _layout(seen: _Seen) -> tuple[dict[str, Any], dict[str, set[_Values]]]:
    """Return the keys of the level and of flat frames, and what may be features."""
    if seen.lists:
        return {}, seen.lists
    if flat := _flat(seen):
        return flat
    labels = {name for name in seen.flags - seen.other if "label" in name.lower()}
    vectors = {
        name: {each for each in kinds if each[0] == "float_list"}
        for name, kinds in seen.context.items()
        if name not in FEATURES and name not in labels
    }
    return {"level": "video"}, {name: kinds for name, kinds in vectors.items() if kinds - {("float_list", 1)}}


def _flat(seen: _Seen) -> tuple[dict[str, Any], dict[str, set[_Values]]] | None:
    """Find features that hold all frames one after another, and what counts their frames; None if there are none."""
    pieces = {name: size for name, sizes in seen.pieces.items() for size in sizes if len(sizes) == 1 and size >= WIDE}
    if pieces:
        return {"frames": "flat"}, {name: {("bytes_list", size)} for name, size in pieces.items()}
    for count in sorted({name for counts in seen.counts for name in counts}):
        frames = [counts.get(count, 0) for counts in seen.counts]
        if min(frames) < 1 or (len(set(frames)) == 1 and "frame" not in count.lower()):
            continue
        found: dict[str, set[_Values]] = {}
        for name, kinds in seen.context.items():
            widths = {sizes.get(name, 0) / each for sizes, each in zip(seen.sizes, frames, strict=True)}
            if len(widths) == 1 and (width := widths.pop()) > 1 and width.is_integer():
                found[name] = {(kind, int(width)) for kind, _ in kinds}
        if found:
            return {"frames": "flat", "frame_count": count}, found
    return None


def _remarks(seen: _Seen, name: str, stored: tuple[str, str], width: int) -> Iterator[str]:
    """Yield remarks on a feature that may be kept."""
    if stored[1] in STORED_BYTES:
        yield (
            f"{name}: its bytes look like {_described(stored)}, {width:,} values a frame, and not like uint8; "
            "leave dtype and storage out, and give its number of bytes as width, if they are uint8"
        )
    if missing := seen.records - seen.having[name]:
        yield f'{name} is missing in {counted(missing, "record")}; missing = "zero" or "skip" allows that'


# Ways to store features, in the order in which a draft takes them if records have several.
_PREFERRED = [
    ("uint8", "native"),
    *(("float32", f"{each}-bytes") for each in ("float16", "float32", "float64")),
    ("float32", "native"),
    ("uint8", "int64"),
    ("float32", "int64"),
]


def _described(stored: tuple[str, str]) -> str:
    dtype, storage = stored
    if storage == "native":
        return "bytes" if dtype == "uint8" else "floats"
    return "whole numbers" if storage == "int64" else storage.removesuffix("-bytes")


def _item_bytes(storage: str) -> int:
    """Return the bytes of a value in a list of bytes, 1 for other lists."""
    return np.dtype(STORED_BYTES.get(storage, "u1")).itemsize


def _stored(seen: _Seen, name: str, kind: str, width: int) -> tuple[str, str]:
    """Return the dtype and the storage of a feature."""
    if kind == "float_list":
        return "float32", "native"
    if kind == "int64_list":
        return "uint8" if seen.lowest[name] >= 0 and seen.highest[name] <= 255 else "float32", "int64"
    code = float_code(np.frombuffer(bytes(seen.samples[name]), np.uint8), width)
    return ("uint8", "native") if code is None else ("float32", f"float{8 * int(code[-1])}-bytes")


def float_code(sample: npt.NDArray[np.uint8], width: int) -> str | None:
    """Tell bytes of floats from uint8 codes.

    Floats have moderate magnitudes, and their last byte, with the exponent, takes other values than those of the
    mantissa; of codes all bytes are alike.

    Args:
        sample: bytes of some frames.
        width: bytes a frame.

    Returns:
        The NumPy type `<f8`, `<f4` or `<f2`; None if the bytes do not look like floats.
    """
    for code, (least, most) in sorted(MODERATE.items(), reverse=True):
        size = int(code[-1])
        if width % size:
            continue
        columns = sample[: len(sample) // size * size].reshape(-1, size)
        columns = columns[columns.any(1)]  # zeros tell nothing
        if len(columns) < FEWEST_FLOATS:
            continue
        mantissa, exponent = (
            np.bincount(columns[:, each] >> 4, minlength=16) / len(columns) for each in (size // 2 - 1, size - 1)
        )
        with np.errstate(invalid="ignore"):  # codes may look like NaN
            magnitudes = np.abs(np.frombuffer(columns.tobytes(), code).astype(np.float64))
        moderate = (magnitudes >= least) & (magnitudes <= most)
        if moderate.mean() > 0.99 and np.abs(mantissa - exponent).sum() / 2 > APART:
            return code
    return None


def _labels(seen: _Seen, schema: dict[str, Any], remarks: list[str]) -> tuple[str, int | None]:
    """Return the name of the labels and the highest label; add classes and frames to the schema."""
    default = Schema.model_fields["labels"].default.name
    lists = {name for name, kinds in seen.context.items() if len(kinds) == 1 and name in seen.flags - seen.other}
    taken = {*FEATURES, *seen.lists, schema.get("frame_count")}
    known = [name for name in {**seen.highest, **dict.fromkeys(lists)} if name not in taken]
    likely = [name for name in sorted(known) if "label" in name.lower()] or (known if len(known) == 1 else [])
    name = default if default in known or not likely else likely[0]
    if name != default:
        schema["labels"] = name
    if schema.get("level") != "video":
        schema["max_frames"] = max(1, seen.most_frames(schema))
    if name in lists and not seen.segments:
        return name, _n_hot(seen, name, schema, remarks)
    highest = max(seen.highest.get(name, -1), seen.highest.get(CLASSES, -1))
    if highest < 0:
        remarks.append('no labels were found; how many classes there are is yours to write, and labels = "NAME"')
        return name, None
    schema["classes"] = highest + 1
    return name, highest


def _n_hot(seen: _Seen, name: str, schema: dict[str, Any], remarks: list[str]) -> int:
    """Describe n-hot labels in the schema; return the highest label."""
    ((kind, length),) = seen.context[name]
    classes = max(sizes.get(name, 0) for sizes in seen.sizes) if kind == "bytes_list" else length
    schema["labels"] = {"name": name, "encoding": "n-hot"}
    schema["classes"] = classes
    remarks.append(
        f"{name}: every list has {classes} values, all 0 or 1, so it is drafted as n-hot, a 0 or 1 for each class; "
        'write encoding = "index" if they are the numbers 0 and 1 of classes'
    )
    return classes - 1


def _ids(seen: _Seen, schema: dict[str, Any], remarks: list[str]) -> None:
    """Add the name of the id to the schema if it is not a default one."""
    defaults = Schema.model_fields["ids"].default
    texts = sorted(name for name, kinds in seen.context.items() if kinds == {("bytes_list", 1)})
    if not set(defaults) & set(texts):
        likely = [name for name in texts if "id" in name.lower()] or texts
        if likely:
            schema["ids"] = likely[:1]
        else:
            remarks.append(
                f'no id was found; each record needs one, a text named {" or ".join(defaults)}, or ids = ["NAME"]'
            )


def _preset(schema: Mapping[str, Any]) -> str | None:
    """Return the preset with the same features, and at least as many classes and frames."""
    given = {key: value for key, value in schema.items() if key not in ("classes", "max_frames")}
    for name in PRESETS:
        known = preset_schema(name)
        content = known.model_dump(mode="json", exclude_defaults=True, exclude={"classes", "max_frames"})
        enough = known.classes >= schema.get("classes", 0) and known.max_frames >= schema.get("max_frames", 0)
        if enough and content == given:
            return name
    return None
