"""TensorFlow's records outside of shards: compressed TFRecord files, and MediaPipe's bare `features.pb`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError

from reeltag.core.errors import DataError
from reeltag.data.formats.kinds import HEAD
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import masked_crc
from reeltag.data.sources.conversion import Array
from reeltag.data.sources.videos import (
    FRAME_NUMBERS,
    IDS,
    LABELS,
    Files,
    SourceVideo,
    as_id,
    field,
    video_from,
    without_suffix,
)

CHUNK = 1 << 20  # bytes that are decompressed at once
MAX_RECORD = 1 << 30  # bytes
_MEDIAPIPE = "/feature/floats"  # ends the names of MediaPipe's feature lists, such as RGB/feature/floats


@dataclass(frozen=True)
class CompressedRecords(Files):
    """TFRecord files compressed by gzip or zlib, of Examples or SequenceExamples; a part is a file."""

    wanted: tuple[str, ...] = ()
    kind = "compressed TFRecord"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the video of each record; the id of a record without one is FILE:NUMBER.

        Raises:
            DataError: the file is damaged, or a record is no video.
        """
        path = self.root / part
        with self.opened(part) as file:
            for number, record in enumerate(_records(Decompressed(file, str(path)), str(path))):
                place = f"{path}, record {number}"
                yield _video(record, f"{Path(part).name}:{number}", place, self.wanted)


@dataclass(frozen=True)
class MessageFiles(Files):
    """Files of one SequenceExample each, as MediaPipe writes `features.pb`; the id is the name of the file.

    Files called `features` take the name of their folder.
    """

    wanted: tuple[str, ...] = ()
    kind = "features.pb"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the video of a file.

        Raises:
            DataError: the file is damaged, or holds no video.
        """
        path = self.root / part
        name = without_suffix(part)
        if path.stem == "features":
            name = without_suffix(part).removesuffix("features").rstrip("/") or path.absolute().parent.name
        with self.opened(part) as file:
            yield _video(file.read(), name, str(path), self.wanted)


def first_bytes(path: Path) -> bytes:
    """Return the first bytes of what gzip or zlib compressed, as many as tell its kind; none if it is damaged."""
    try:
        with path.open("rb") as file:
            return zlib.decompressobj(47).decompress(file.read(1 << 16), HEAD)
    except zlib.error:
        return b""


class Decompressed:
    """A stream of bytes that gzip or zlib compressed, decompressed as they are read.

    Args:
        file: opened for reading bytes.
        name: of the file, for messages.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._inflate = zlib.decompressobj(47)  # gzip or zlib, by the header
        self._rest, self._ready = b"", bytearray()

    def read(self, size: int) -> bytes:
        """Read bytes, fewer at the end.

        Raises:
            DataError: the compressed bytes are damaged or end early.
        """
        while len(self._ready) < size and (more := self._next()):
            self._ready += more
        content = bytes(self._ready[:size])
        del self._ready[:size]
        return content

    def _next(self) -> bytes:
        while True:
            if self._inflate.eof:
                self._rest = self._inflate.unused_data or self._file.read(CHUNK)
                if not self._rest.strip(b"\0"):  # padding
                    return b""
                self._inflate = zlib.decompressobj(47)  # gzip files may be joined
            data = self._rest or self._file.read(CHUNK)
            if not data:
                raise DataError("ends early; fetch the file again", file=self._name)
            try:
                content = self._inflate.decompress(data, CHUNK)
            except zlib.error as error:
                raise DataError(f"cannot be decompressed ({error}); fetch it again", file=self._name) from error
            self._rest = self._inflate.unconsumed_tail
            if content:
                return content


def _records(stream: Decompressed, path: str) -> Iterator[bytes]:
    """Yield the payloads of TFRecords in a stream.

    Raises:
        DataError: a checksum does not match, or the stream ends within a record.
    """
    number = 0
    while header := stream.read(12):
        if len(header) < 12 or masked_crc(header[:8]) != struct.unpack("<I", header[8:])[0]:
            reason = "CRC of the length does not match, so no later record can be found; fetch the file again"
            raise DataError(reason, file=path, record=number)
        (length,) = struct.unpack("<Q", header[:8])
        if length > MAX_RECORD:
            raise DataError(f"is {length:,} bytes long; a video has at most {MAX_RECORD:,}", file=path, record=number)
        record = stream.read(length + 4)
        if len(record) < length + 4:
            raise DataError("truncated; fetch the file again", file=path, record=number)
        payload = record[:-4]
        if masked_crc(payload) != struct.unpack("<I", record[-4:])[0]:
            raise DataError("CRC of the payload does not match; fetch the file again", file=path, record=number)
        yield payload
        number += 1


def _video(record: bytes, name: str, place: str, wanted: tuple[str, ...]) -> SourceVideo:
    """Read a SequenceExample or an Example, whose bytes begin alike."""
    message = SequenceExample()
    try:
        message.ParseFromString(record)
    except DecodeError as error:
        raise DataError("is neither an Example nor a SequenceExample; fetch the file again", file=place) from error
    context = {key: _values(item) for key, item in message.context.feature.items()}
    fields: dict[str, Any] = {}
    lists = message.feature_lists.feature_list
    if lists:
        for key, items in lists.items():
            short = key.removesuffix(_MEDIAPIPE).lower() if key.endswith(_MEDIAPIPE) else key
            if (frames := _frames(items.feature, short, place)) is not None:
                fields[short] = frames
    else:
        fields = {key: np.array(values, np.float32) for key, values in context.items() if _is_vector(values)}
    label = field(list(context), LABELS)
    if label:
        fields["labels"] = context[label]
    given = field(list(context), IDS)
    found = as_id(context[given][0]) if given and len(context[given]) == 1 else None
    return video_from(fields, found or name, place, wanted)


def _values(item: Any) -> list[Any]:
    kind = item.WhichOneof("kind")
    return list(getattr(item, kind).value) if kind else []


def _is_vector(values: list[Any]) -> bool:
    return len(values) > 1 and isinstance(values[0], float)


def _frames(items: Any, name: str, place: str) -> Array | None:
    """Return a feature list as an array [T, D] of uint8 or float32; None for numbers of frames or times."""
    if not items:
        return np.empty((0, 0), np.float32)
    kinds = {item.WhichOneof("kind") for item in items}
    if len(kinds) > 1 or None in kinds:
        raise DataError(f"{name!r} has frames of different kinds, or empty ones; leave the video out", file=place)
    (kind,) = kinds
    if kind == "int64_list":
        if name.rpartition("/")[2].lower() in FRAME_NUMBERS:
            return None
        raise DataError(f"{name!r} holds int64; store uint8 codes or floats", file=place)
    if kind == "bytes_list":
        frames = [np.frombuffer(b"".join(item.bytes_list.value), np.uint8) for item in items]
    else:
        frames = [np.array(item.float_list.value, np.float32) for item in items]
    if len({len(frame) for frame in frames}) > 1:
        raise DataError(f"{name!r} has frames of different widths; all need the same number", file=place)
    return np.stack(frames)
