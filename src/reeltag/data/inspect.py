"""Describe a record without knowing its schema."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError

from reeltag.core.errors import DataError
from reeltag.core.text import counted
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.schema import Schema

MAX_VALUES = 4  # values of a list


def describe_record(record: bytes) -> list[str]:
    """Describe a record's features, one line each, for people who do not know its schema yet.

    Raises:
        DataError: the record is neither an Example nor a SequenceExample.
    """
    message = _parsed(record)
    level = "frame" if message.feature_lists.feature_list else "video"
    lines = [f"{level} level"]
    for name, item in sorted(message.context.feature.items()):
        lines.append(f"feature {name!r}: {_summary(item)}")
    for name, items in sorted(message.feature_lists.feature_list.items()):
        first = f", each a {_summary(items.feature[0])}" if items.feature else ""
        lines.append(f"feature list {name!r}: {counted(len(items.feature), 'frame')}{first}")
    return lines


def context_names(record: bytes) -> list[str]:
    """Return the names of a record's video-level features, such as its labels.

    Raises:
        DataError: the record is neither an Example nor a SequenceExample.
    """
    return sorted(_parsed(record).context.feature)


def record_id(record: bytes, schema: Schema) -> str | None:
    """Return the id of a record for a message, as far as it can be read."""
    try:
        context = _parsed(record).context.feature
    except DataError:
        return None
    for key in schema.ids:
        if key in context:
            item = context[key]
            for value in item.bytes_list.value:
                return str(value.decode(errors="replace"))
            for value in item.int64_list.value:
                return str(value)
    return None


def label_values(record: bytes, schema: Schema) -> list[int]:
    """Return the class numbers of a record as they are stored, repeated ones included."""
    return list(_parsed(record).context.feature[schema.labels.name].int64_list.value)


def _parsed(record: bytes) -> Any:
    message = SequenceExample()
    try:
        message.ParseFromString(record)
    except DecodeError as error:
        raise DataError("is neither an Example nor a SequenceExample") from error
    return message


def _summary(item: Any) -> str:
    kind = item.WhichOneof("kind")
    if kind is None:
        return "empty"
    values = getattr(item, kind).value
    if kind == "bytes_list":
        sizes = ", ".join(str(len(value)) for value in values[:3])
        return f"{kind} with {counted(len(values), 'value')} of {sizes} bytes"
    shown = ", ".join(f"{value:.4g}" for value in values[:MAX_VALUES])
    return f"{kind} with {counted(len(values), 'value')}, {shown}{' …' if len(values) > MAX_VALUES else ''}"
