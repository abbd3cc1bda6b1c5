"""TensorFlow's record messages, declared without TensorFlow (tensorflow/core/example/*.proto)."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "reeltag.tensorflow"

_LISTS = {"BytesList": _Field.TYPE_BYTES, "FloatList": _Field.TYPE_FLOAT, "Int64List": _Field.TYPE_INT64}
_KINDS = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}
_MAPS = {"Features": ("feature", "Feature"), "FeatureLists": ("feature_list", "FeatureList")}
_PARENTS = {
    "FeatureList": {"feature": "Feature"},
    "Example": {"features": "Features"},
    "SequenceExample": {"context": "Features", "feature_lists": "FeatureLists"},
}


def _add(message: Any, number: int, name: str, *, scalar: int | None = None, of: str = "", many: bool = False) -> Any:
    label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
    kind = _Field.TYPE_MESSAGE if scalar is None else scalar
    field = message.field.add(name=name, number=number, label=label, type=kind)
    if of:
        field.type_name = f".{_PACKAGE}.{of}"
    return field


def _declare() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="reeltag/example.proto", package=_PACKAGE, syntax="proto3")
    for name, scalar in _LISTS.items():
        _add(file.message_type.add(name=name), 1, "value", scalar=scalar, many=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(_KINDS.items(), 1):
        _add(feature, number, name, of=of).oneof_index = 0
    for name, (field, of) in _MAPS.items():
        message = file.message_type.add(name=name)
        entry_name = "".join(word.title() for word in field.split("_")) + "Entry"
        entry = message.nested_type.add(name=entry_name)
        entry.options.map_entry = True
        _add(entry, 1, "key", scalar=_Field.TYPE_STRING)
        _add(entry, 2, "value", of=of)
        _add(message, 1, field, of=f"{name}.{entry_name}", many=True)
    for name, fields in _PARENTS.items():
        message = file.message_type.add(name=name)
        for number, (field, of) in enumerate(fields.items(), 1):
            _add(message, number, field, of=of, many=name == "FeatureList")
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_declare())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Example: Any = _message("Example")
SequenceExample: Any = _message("SequenceExample")
