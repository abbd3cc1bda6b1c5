"""TensorFlow's messages, declared without TensorFlow.

Records: tensorflow/core/example/*.proto. Checkpoints: tensorflow/core/protobuf/tensor_bundle.proto.
"""

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
# Messages of plain fields: name → number, and a scalar's type or another message's name.
_CHECKPOINT: dict[str, dict[str, tuple[int, int | str]]] = {
    "Dim": {"size": (1, _Field.TYPE_INT64)},
    "Shape": {"dim": (2, "Dim")},
    "Slice": {},
    "BundleHeader": {"num_shards": (1, _Field.TYPE_INT32), "endianness": (2, _Field.TYPE_INT32)},
    "BundleEntry": {
        "dtype": (1, _Field.TYPE_INT32),
        "shape": (2, "Shape"),
        "shard_id": (3, _Field.TYPE_INT32),
        "offset": (4, _Field.TYPE_INT64),
        "size": (5, _Field.TYPE_INT64),
        "crc32c": (6, _Field.TYPE_FIXED32),
        "slices": (7, "Slice"),
    },
}
_REPEATED = {"dim", "slices"}


def _add(message: Any, number: int, name: str, *, scalar: int | None = None, of: str = "", many: bool = False) -> Any:
    label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
    kind = _Field.TYPE_MESSAGE if scalar is None else scalar
    field = message.field.add(name=name, number=number, label=label, type=kind)
    if of:
        field.type_name = f".{_PACKAGE}.{of}"
    return field


def _declare() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="reeltag/tensorflow.proto", package=_PACKAGE, syntax="proto3")
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
    for name, plain in _CHECKPOINT.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in plain.items():
            if isinstance(kind, str):
                _add(message, number, field, of=kind, many=field in _REPEATED)
            else:
                _add(message, number, field, scalar=kind)
    return file


_pool = descriptor_pool.DescriptorPool()
_pool.Add(_declare())


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


Example: Any = _message("Example")
SequenceExample: Any = _message("SequenceExample")
BundleHeader: Any = _message("BundleHeader")
BundleEntry: Any = _message("BundleEntry")
