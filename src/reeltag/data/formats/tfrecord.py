"""Read and write TFRecord files of checksummed records.

A record is its length (8 bytes), the length's CRC (4), the payload, and the payload's CRC (4), all
little-endian; a CRC is CRC-32C, rotated and offset ("masked").
"""

from __future__ import annotations

import os
import struct
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, NoReturn

import google_crc32c
import numpy as np
import numpy.typing as npt

from reeltag.core.errors import DataError, UsageError
from reeltag.core.remote_files import RemoteFile
from reeltag.core.storage import DataFile, atomic_path, require_regular
from reeltag.data.formats import kinds
from reeltag.data.shard_cache import discard, open_copy

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _CRC.size


def masked_crc(*pieces: bytes) -> int:
    """Return the masked CRC-32C of bytes in pieces, as TFRecord stores it."""
    crc = 0
    for piece in pieces:
        crc = google_crc32c.extend(crc, piece)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame_record(*payload: bytes) -> bytes:
    """Frame a payload, given in pieces, as a TFRecord: length and payload, each with its CRC."""
    return b"".join(_framed(payload))


def _framed(payload: Sequence[bytes]) -> tuple[bytes, ...]:
    length = struct.pack("<Q", sum(map(len, payload)))
    return (length, _CRC.pack(masked_crc(length)), *payload, _CRC.pack(masked_crc(*payload)))


class ShardWriter:
    """A TFRecord file that is written record by record; there is no file until it is closed.

    Args:
        path: of the file, which replaces one that exists.

    Attributes:
        size: bytes of the records so far.

    Raises:
        UsageError: the operating system refuses the write, here and in every method.
    """

    def __init__(self, path: Path) -> None:
        self.size = 0
        with ExitStack() as opened:
            self._file = opened.enter_context(opened.enter_context(atomic_path(path)).open("wb"))
            self._opened = opened.pop_all()

    def append(self, *payload: bytes) -> None:
        """Write a record, whose payload is given in pieces."""
        try:
            for piece in _framed(payload):
                self.size += self._file.write(piece)
        except OSError:
            self._opened.__exit__(*sys.exc_info())  # which raises it as a UsageError
            raise

    def close(self) -> None:
        """Put the whole file in its place; may be called from another thread."""
        self._opened.close()


class Record(NamedTuple):
    """One record.

    Attributes:
        number: index in its shard, from 0.
        offset: of its first byte in the shard.
        payload: its content.
        crc: masked CRC of the payload, as stored in the shard.
    """

    number: int
    offset: int
    payload: bytes
    crc: int


def _raise(error: DataError) -> NoReturn:
    raise error


class Records(ABC):
    """Sequence of checksummed records; base class for those in files and in memory.

    Attributes:
        name: of the file, for error messages; None without a file.
    """

    name: str | None

    @property
    @abstractmethod
    def size(self) -> int:
        """Size of all records in bytes."""

    @abstractmethod
    def _bytes(self, begin: int, size: int) -> bytes:
        """Read up to `size` bytes from a position, fewer at the end; OSError if they cannot be read."""

    def offsets(self) -> npt.NDArray[np.int64]:
        """Return the byte offset of every record; only the lengths are read, and each one's CRC is checked.

        Raises:
            DataError: a length is damaged or points past the end.
        """
        offsets: list[int] = []
        offset = 0
        while offset < self.size:
            length = self._length(offset, len(offsets))
            offsets.append(offset)
            offset += _OVERHEAD + length
        return np.array(offsets, np.int64)

    def records(self, damaged: Callable[[DataError], None] = _raise) -> Iterator[Record]:
        """Yield every record, from first to last.

        Args:
            damaged: called for each record whose payload's CRC does not match, which is then skipped; by default the
                error is raised.

        Raises:
            DataError: a length is damaged or points past the end, so that the next record cannot be found, or the
                bytes cannot be read.
        """
        number = offset = 0
        while offset < self.size:
            record = self._unchecked(offset, number)
            if fault := self._fault(record):
                damaged(fault)
            else:
                yield record
            number += 1
            offset += _OVERHEAD + len(record.payload)

    def record(self, offset: int, number: int) -> Record:
        """Read the record at a byte offset and check both CRCs.

        Args:
            offset: where the record begins.
            number: the record's index, for error messages.

        Raises:
            DataError: a CRC does not match, or the bytes end early or cannot be read.
        """
        record = self._unchecked(offset, number)
        if fault := self._fault(record):
            raise fault
        return record

    def _unchecked(self, offset: int, number: int) -> Record:
        begin = offset + _HEADER.size
        length = self._length(offset, number)
        payload = self._read(begin, length, offset, number)
        (crc,) = _CRC.unpack(self._read(begin + length, _CRC.size, offset, number))
        return Record(number, offset, payload, crc)

    def _fault(self, record: Record) -> DataError | None:
        if masked_crc(record.payload) == record.crc:
            return None
        reason = "CRC of the payload does not match; the shard is damaged, fetch it again"
        return self._error(reason, record.number, record.offset)

    def _length(self, offset: int, number: int) -> int:
        header = self._read(offset, _HEADER.size, offset, number)
        length, crc = _HEADER.unpack(header)
        if masked_crc(header[:8]) != crc:
            self._refuse_other_kind(number, offset)
            hint = "fetch the shard again" if offset else "is this a TFRecord file, uncompressed?"
            reason = f"CRC of the length does not match, so no later record can be found; {hint}"
            raise self._error(reason, number, offset)
        # Checked before memory of that length is allocated.
        missing = offset + _OVERHEAD + length - self.size
        if missing > 0:
            raise self._truncated(missing, number, offset)
        return int(length)

    def _read(self, begin: int, size: int, offset: int, number: int) -> bytes:
        try:
            content = self._bytes(begin, size)
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})", number, offset) from error
        if len(content) < size:
            if begin + size == _HEADER.size:
                self._refuse_other_kind(number, offset)
            raise self._truncated(size - len(content), number, offset)
        return content

    def _refuse_other_kind(self, number: int, offset: int) -> None:
        """Refuse a file that does not begin with a record and is of a known kind.

        Raises:
            DataError: the message says what it is.
        """
        if not offset and (kind := kinds.recognise_content(self._bytes(0, kinds.MAX_MESSAGE))):
            raise self._error(kinds.explain(kind, self.name), number, offset)

    def _truncated(self, missing: int, number: int, offset: int) -> DataError:
        return self._error(f"truncated: {missing} bytes are missing; fetch the shard again", number, offset)

    def _error(self, reason: str, number: int, offset: int) -> DataError:
        return DataError(reason, file=self.name, record=number, offset=offset)


class ShardFile(Records):
    """One TFRecord file, opened on first use and picklable.

    Records are read, not mapped: the copy costs what a map's page faults cost, a file that was cut short is an
    error instead of a SIGBUS, and a record's memory is free when its last view is. There is no position, so
    that forked processes can share the open file.

    Args:
        path: the shard; one behind a URL is fetched when it is opened.
    """

    def __init__(self, path: DataFile) -> None:
        self.path, self.name = path, str(path)
        self._opened: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[type[ShardFile], tuple[DataFile]]:
        return ShardFile, (self.path,)

    def _open(self) -> tuple[int, int]:
        """Open the file on first use; return its descriptor and size.

        Raises:
            DataError: the file cannot be opened or is empty.
        """
        if self._opened is None:
            try:
                if isinstance(self.path, RemoteFile):
                    file = open_copy(self.path)
                else:
                    file = require_regular(self.path).open("rb", buffering=0)
            except OSError as error:
                raise DataError(f"cannot be read ({error.strerror})", file=self.name) from error
            weakref.finalize(self, file.close)
            size = os.fstat(file.fileno()).st_size
            if not size:
                raise DataError(
                    'is empty, so it is not a shard; leave it out (in a recipe data.schema.empty_shards = "skip" does)',
                    file=self.name,
                )
            self._opened = file.fileno(), size
        return self._opened

    @property
    def size(self) -> int:
        """Size of the file in bytes when it was opened.

        Raises:
            DataError: the file cannot be opened or is empty.
        """
        return self._open()[1]

    def _bytes(self, begin: int, size: int) -> bytes:
        return os.pread(self._open()[0], size, begin)

    def _error(self, reason: str, number: int, offset: int) -> DataError:
        if isinstance(self.path, RemoteFile):
            discard(self.path)  # the cached copy may be the damaged one
        return super()._error(reason, number, offset)


class ShardBytes(Records):
    """A shard that is in memory, such as the body of a request.

    Args:
        content: its bytes.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.name = content, None

    @property
    def size(self) -> int:
        """Size of the content in bytes."""
        return len(self.content)

    def _bytes(self, begin: int, size: int) -> bytes:
        return self.content[begin : begin + size]


def write_shard(path: Path, payloads: Iterable[bytes]) -> int:
    """Write a TFRecord file atomically, in place of one that exists; `shards.write_videos` keeps that one.

    Returns:
        The number of records.

    Raises:
        UsageError: there is no record, so readers would refuse the file.
    """
    count = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for payload in payloads:
            file.writelines(_framed((payload,)))
            count += 1
        if not count:
            raise UsageError(f"{path}: has no record, and a shard needs one; write none instead")
    return count
