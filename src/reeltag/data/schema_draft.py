"""Draft a recipe's `[data.schema]` from records without a known schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError

from reeltag.core.text import counted
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.ratings import CLASSES, ENDS, FEATURES, STARTS
from reeltag.data.schema import PRESETS, Schema, preset_schema

_DTYPES = {"bytes_list": "uint8", "float_list": "float32"}
_NOUNS = {"bytes_list": "bytes", "float_list": "floats", "int64_list": "whole numbers"}
_Values = tuple[str, int]  # the kind of a list, and how many values it holds


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
    having: dict[str, int] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    most_frames: int = 0
    disagreeing: int = 0
    segments: set[int] = field(default_factory=set)

    def add(self, message: Any) -> None:
        self.records += 1
        found = message.context.feature
        for name, item in found.items():
            kind, values = _values(item)
            self._note(self.context, name, (kind, len(values)))
            if kind == "int64_list" and values:
                self.highest[name] = max(self.highest.get(name, -1), *values)
        counts = set()
        for name, items in message.feature_lists.feature_list.items():
            counts.add(len(items.feature))
            if items.feature:  # a frame tells of the others; `data verify` looks at all of them
                kind, values = _values(items.feature[0])
                width = sum(map(len, values)) if kind == "bytes_list" else len(values)
                self._note(self.lists, name, (kind, width))
        self.most_frames = max(self.most_frames, *counts, 0)
        self.disagreeing += len(counts) > 1
        if STARTS in found and ENDS in found:
            starts, ends = (_values(found[name])[1] for name in (STARTS, ENDS))
            self.segments.update(int(end - start) for start, end in zip(starts, ends, strict=False))

    def _note(self, where: dict[str, set[_Values]], name: str, values: _Values) -> None:
        where.setdefault(name, set()).add(values)
        self.having[name] = self.having.get(name, 0) + 1


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
    unlabelled = seen.records - seen.having.get(labels, 0)
    return Draft(seen.records, schema, _preset(schema), highest, seen.most_frames, unlabelled, remarks)


def _features(seen: _Seen) -> tuple[dict[str, Any], list[str]]:
    """Derive level, dtype and features, with remarks on features that are left out."""
    found: Mapping[str, set[_Values]] = seen.lists
    if not seen.lists:
        vectors = ((name, {each for each in kinds if each[0] == "float_list"}) for name, kinds in seen.context.items())
        found = {name: kinds for name, kinds in vectors if kinds - {("float_list", 1)} and name not in FEATURES}
    remarks: list[str] = []
    widths: dict[str, dict[str, int]] = {"uint8": {}, "float32": {}}
    for name, kinds in sorted(found.items()):
        (kind, width), *others = sorted(kinds)
        if others or kind not in _DTYPES or not width:
            what = " or ".join(f"{width:,} {_NOUNS.get(kind, 'values')}" for kind, width in sorted(kinds)[:3])
            remarks.append(f"{name} is left out: frames have {what}; all should have equally many bytes or floats")
        else:
            widths[_DTYPES[kind]][name] = width
            if missing := seen.records - seen.having[name]:
                remarks.append(f"{name} is missing in {counted(missing, 'record')}")
    dtype = "uint8" if widths["uint8"] else "float32"
    if dtype == "uint8":
        remarks += [f"{name} is left out: it holds floats, and the others bytes" for name in widths["float32"]]
    if seen.disagreeing:
        remarks.append(f"in {counted(seen.disagreeing, 'record')} the features have different numbers of frames")
    wide_first = sorted(widths[dtype].items(), key=lambda item: (-item[1], item[0]))
    schema: dict[str, Any] = {} if seen.lists else {"level": "video"}
    schema["features"] = [{"name": name, "width": width} for name, width in wide_first]
    if dtype != "uint8":
        schema["dtype"] = dtype
    if not schema["features"]:
        remarks.append("nothing is left that could be features; see what the first record holds")
    return schema, remarks


def _labels(seen: _Seen, schema: dict[str, Any], remarks: list[str]) -> tuple[str, int | None]:
    """Return the name of the labels and the highest label; add classes and frames to the schema."""
    default = Schema.model_fields["labels"].default
    known = [name for name in seen.highest if name not in FEATURES]
    likely = [name for name in sorted(known) if "label" in name.lower()] or (known if len(known) == 1 else [])
    name = default if default in known or not likely else likely[0]
    if name != default:
        schema["labels"] = name
    highest = max(seen.highest.get(name, -1), seen.highest.get(CLASSES, -1))
    if highest < 0:
        remarks.append('no labels were found; how many classes there are is yours to write, and labels = "NAME"')
    else:
        schema["classes"] = highest + 1
    if seen.lists:
        schema["max_frames"] = max(1, seen.most_frames)
    return name, highest if highest >= 0 else None


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
