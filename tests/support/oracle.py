"""Reference decoding of a record by the protobuf library, to compare the strided reader with."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from reeltag.data.formats import example, protos
from reeltag.data.ratings import FEATURES
from reeltag.data.schema import Schema


@cache
def loose(name: str) -> Any:
    """The message with its features left as bytes, which have the same wire format."""
    file = protos._declare()
    for entry_type in (nested for message in file.message_type for nested in message.nested_type):
        entry_type.field[1].type = entry_type.field[1].TYPE_BYTES
        entry_type.field[1].ClearField("type_name")
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))


def named_by(schema: Schema, content: bytes) -> bytes:
    """The record without the features that the schema does not name, sound or not."""
    message = loose("SequenceExample" if schema.level == "frame" else "Example").FromString(content)
    names = {schema.labels.name, *(feature.name for feature in schema.features)}
    names |= set(FEATURES) if schema.segments else set()
    for features in [features for _, section in message.ListFields() for _, features in section.ListFields()]:
        for key in set(features) - names - {next((key for key in schema.ids if key in features), "")}:
            del features[key]
    return message.SerializeToString()


def agree(record: bytes, schema: Schema) -> bool:
    """Return True if the strided reader accepted the record; protobuf must then read the same of it."""
    try:
        taken = example._read_strided(record, schema)
    except (example._Unusual, IndexError):
        return False
    name, labels, features, ratings = example._read_general(named_by(schema, record), schema)
    assert taken[:2] == (name, labels)
    assert repr(taken[3]) == repr(ratings)  # NaN is no other than NaN here
    for frames, others in zip(taken[2], features, strict=True):
        assert (frames.dtype, frames.shape, frames.tobytes()) == (others.dtype, others.shape, others.tobytes())
    return True
