"""Read TensorFlow checkpoints without TensorFlow: the V2 format, an index table and raw data files.

The index is a LevelDB table (tensorflow/core/lib/io/format.cc): blocks of prefix-compressed entries, each
with a masked CRC-32C. Its entries map a variable's name to a `BundleEntryProto` that gives its data file, offset and
size (tensorflow/core/protobuf/tensor_bundle.proto).
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from reeltag.core.errors import DataError
from reeltag.core.storage import require_regular
from reeltag.data.formats.protos import BundleEntry, BundleHeader
from reeltag.data.formats.tfrecord import masked_crc

Array = npt.NDArray[Any]

_MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # a block's compression type and CRC
MOST_DIMENSIONS, LONGEST_NAME = 16, 4096
# tensorflow/core/framework/types.proto
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 9: "<i8", 10: "|b1", 19: "<f2"}


@dataclass(frozen=True)
class _Handle:
    """Location of a block in the index file."""

    offset: int
    size: int


def index_path(checkpoint: Path) -> Path:
    """Return the index file of a checkpoint, given its prefix, one of its files or its folder.

    Raises:
        DataError: there is no index file, or a folder holds several.
    """
    if checkpoint.is_dir():
        indexes = sorted(checkpoint.glob("*.index"))
        if len(indexes) != 1:
            what = f"holds {', '.join(path.stem for path in indexes)}" if indexes else "holds no .index file"
            raise DataError(f"{what}; give the path of one checkpoint", file=str(checkpoint))
        return indexes[0]
    name = checkpoint.name.partition(".data-")[0].removesuffix(".index").removesuffix(".meta")
    path = checkpoint.with_name(f"{name}.index")
    if not path.is_file():
        raise DataError("no such file; a TensorFlow checkpoint is a .index file beside .data files", file=str(path))
    return path


def read_checkpoint(checkpoint: Path) -> dict[str, Array]:
    """Read every variable of a checkpoint, by name, and verify all checksums.

    Args:
        checkpoint: prefix, index file, data file or folder.

    Raises:
        DataError: the checkpoint is missing, damaged, or in an unsupported form.
    """
    index = index_path(checkpoint)
    entries = dict(_Table(index).items())
    header = _decode(BundleHeader, entries.pop(b"", b""), index)
    if header.endianness != 0:
        raise DataError("was written on a big-endian machine; save it again on a usual one", file=str(index))
    shards = header.num_shards
    return {key.decode(errors="replace"): _tensor(key, value, index, shards) for key, value in entries.items()}


def _tensor(key: bytes, value: bytes, index: Path, shards: int) -> Array:
    entry = _decode(BundleEntry, value, index)
    name = key.decode(errors="replace")
    if entry.slices:
        raise DataError(
            f"variable {name!r} is stored in slices; save the checkpoint without partitioning", file=str(index)
        )
    if entry.dtype not in _DTYPES:
        raise DataError(
            f"variable {name!r} has TensorFlow's type {entry.dtype}, which is not a number", file=str(index)
        )
    dtype, shape = np.dtype(_DTYPES[entry.dtype]), [dim.size for dim in entry.shape.dim]
    sound = 0 <= entry.shard_id < shards and len(shape) <= MOST_DIMENSIONS and min(shape, default=1) >= 0
    if not sound or entry.size != dtype.itemsize * math.prod(shape):
        raise DataError(f"the entry of variable {name!r} contradicts itself; the file is damaged", file=str(index))
    file = index.with_name(f"{index.stem}.data-{entry.shard_id:05d}-of-{shards:05d}")
    try:
        with require_regular(file).open("rb") as stream:
            left = os.fstat(stream.fileno()).st_size - stream.seek(max(0, entry.offset))
            content = stream.read(max(0, min(entry.size, left)))  # never more than the file holds
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); it belongs to {index.name}", file=str(file)) from error
    if len(content) != entry.size or masked_crc(content) != entry.crc32c:
        what = f"variable {name!r} is cut short or its checksum does not match"
        raise DataError(f"{what}; copy the checkpoint again", file=str(file), offset=entry.offset)
    return np.frombuffer(content, dtype).reshape(shape)


def _decode(message: Any, content: bytes, path: Path) -> Any:
    try:
        return message.FromString(content)
    except DecodeError as error:
        raise DataError("an entry is not a protobuf message; the file is damaged", file=str(path)) from error


class _Table:
    """LevelDB table, read into memory at once.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content = require_regular(path).read_bytes()
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", file=str(path)) from error

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values in order.

        Raises:
            DataError: the file is not a table, or is damaged.
        """
        footer = self.content[-_FOOTER:]
        if len(footer) < _FOOTER or struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
            raise DataError("is not a TensorFlow checkpoint in the V2 format, or is cut short", file=str(self.path))
        try:
            _, at = _handle(footer, 0)  # of the metaindex, which is empty
            root, _ = _handle(footer, at)
            end = 0
            for _, value in self._entries(root):
                handle, _ = _handle(value, 0)
                if handle.offset < end:  # repeating the same block would never end
                    raise IndexError
                end = handle.offset + handle.size
                yield from self._entries(handle)
        except (IndexError, struct.error) as error:
            raise DataError("holds an invalid block; the file is damaged", file=str(self.path)) from error

    def _entries(self, handle: _Handle) -> Iterator[tuple[bytes, bytes]]:
        block = self._block(handle)
        (restarts,) = struct.unpack("<I", block[-4:])
        end, at, key = len(block) - 4 * (restarts + 1), 0, b""
        while at < end:
            shared, at = _varint(block, at)
            fresh, at = _varint(block, at)
            size, at = _varint(block, at)
            if shared + fresh > LONGEST_NAME:  # a name that grows with each entry would fill memory
                raise IndexError
            key = key[:shared] + block[at : at + fresh]
            at += fresh
            yield key, block[at : at + size]
            at += size

    def _block(self, handle: _Handle) -> bytes:
        end = handle.offset + handle.size
        block, trailer = self.content[handle.offset : end], self.content[end : end + _TRAILER]
        if len(trailer) < _TRAILER or masked_crc(block + trailer[:1]) != struct.unpack("<I", trailer[1:])[0]:
            what = "checksum of a block does not match"
            raise DataError(f"{what}; copy the checkpoint again", file=str(self.path), offset=handle.offset)
        if trailer[0]:
            what = "a block is compressed, which TensorFlow's own checkpoints are not"
            raise DataError(
                f"{what}; save the checkpoint with tf.train.Saver", file=str(self.path), offset=handle.offset
            )
        return block


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a protobuf varint and the position after it; raise IndexError if it does not end."""
    value = 0
    for shift in range(0, 64, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError


def _handle(content: bytes, at: int) -> tuple[_Handle, int]:
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return _Handle(offset, size), at
