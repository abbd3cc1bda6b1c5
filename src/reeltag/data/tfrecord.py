"""TFRecord files: checksummed records as views of a memory map, and back.

A record is its length (8 bytes), the length's CRC (4), the payload, and the payload's CRC (4), all
little-endian; a CRC is CRC-32C, rotated and offset ("masked").
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

from reeltag.errors import DataError
from reeltag.storage import atomic_path

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _CRC.size

Bytes = npt.NDArray[np.uint8]


def masked_crc(content: bytes | Bytes) -> int:
    """CRC-32C of some bytes, masked as TFRecord stores it."""
    # google_crc32c takes NumPy arrays without a copy, but no memoryview.
    crc: int = google_crc32c.value(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


class ShardFile:
    """One TFRecord file, memory-mapped on first use and picklable.

    Args:
        path: the shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: Bytes | None = None

    def __reduce__(self) -> tuple[type[ShardFile], tuple[Path]]:
        return ShardFile, (self.path,)

    @property
    def content(self) -> Bytes:
        """The whole file as a read-only array of bytes.

        Raises:
            DataError: the file cannot be opened or is empty.
        """
        if self._bytes is None:
            try:
                with self.path.open("rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:
                raise DataError("is empty, so it is no shard", file=str(self.path)) from error
            except OSError as error:
                raise DataError(f"cannot be read ({error.strerror})", file=str(self.path)) from error
            self._bytes = np.frombuffer(mapped, np.uint8)
        return self._bytes

    def offsets(self) -> npt.NDArray[np.int64]:
        """Byte offset of every record; reads the lengths alone and checks each one's CRC.

        Raises:
            DataError: a length is damaged or points past the end of the file.
        """
        offsets: list[int] = []
        offset = 0
        while offset < len(self.content):
            length = self._length(offset, len(offsets))
            offsets.append(offset)
            offset += _OVERHEAD + length
        return np.array(offsets, np.int64)

    def records(self) -> Iterator[tuple[int, Bytes]]:
        """Byte offset and payload of every record, as `record` gives it, in one walk through the file."""
        number = offset = 0
        while offset < len(self.content):
            payload = self.record(offset, number)
            yield offset, payload
            number += 1
            offset += _OVERHEAD + len(payload)

    def record(self, offset: int, number: int) -> Bytes:
        """Payload of the record at a byte offset, as a view, after checking both CRCs.

        Args:
            offset: where the record begins.
            number: the record's number in the shard, for error messages.

        Raises:
            DataError: a CRC does not match, or the file ends early.
        """
        begin = offset + _HEADER.size
        end = begin + self._length(offset, number)
        payload = self.content[begin:end]
        if masked_crc(payload) != _CRC.unpack(self.content[end : end + _CRC.size].tobytes())[0]:
            raise self._error("CRC of the payload does not match; the shard is damaged, fetch it again", number, offset)
        return payload

    def _length(self, offset: int, number: int) -> int:
        content = self.content
        header = content[offset : offset + _HEADER.size].tobytes()
        if len(header) < _HEADER.size:
            raise self._error(f"truncated: {len(header)} bytes are no record header", number, offset)
        length, crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != crc:
            hint = "" if offset else " (is this a TFRecord file, uncompressed?)"
            raise self._error(f"CRC of the length does not match{hint}", number, offset)
        if offset + _OVERHEAD + length > len(content):
            missing = offset + _OVERHEAD + length - len(content)
            raise self._error(f"truncated: {missing} bytes are missing; fetch the shard again", number, offset)
        return int(length)

    def _error(self, reason: str, number: int, offset: int) -> DataError:
        return DataError(reason, file=str(self.path), record=number, offset=offset)


def write_shard(path: Path, payloads: Iterable[bytes]) -> int:
    """Write a TFRecord file, whole or not at all.

    Returns:
        The number of records.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + _CRC.pack(masked_crc(length)))
            file.write(payload + _CRC.pack(masked_crc(payload)))
            count += 1
    return count
