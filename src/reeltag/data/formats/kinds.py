"""Tell the kind of a file by its content, whatever its name."""

from __future__ import annotations

import zlib
from pathlib import Path

from google.protobuf.message import DecodeError
from google_crc32c import value as crc32c

from reeltag.core.errors import UsageError
from reeltag.core.storage import require_regular
from reeltag.data.formats.protos import SequenceExample

HEAD = 1024  # bytes that tell the kind
MAX_MESSAGE = 1 << 28  # bytes of a bare SequenceExample

HDF5, NPY, NPZ, ZIP, PICKLE, PARQUET, ARROW = "HDF5", ".npy", ".npz", "zip", "pickle", "Parquet", "Arrow"
GZIP, ZLIB, ZSTD, TAR, LFS, PAGE = "gzip", "zlib", "zstd", "tar", "Git LFS pointer", "web page"
MESSAGE, TFRECORD, JSON, TEXT = "SequenceExample", "TFRecord", "JSON", "text"

_BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": HDF5,
    b"\x93NUMPY": NPY,
    b"PAR1": PARQUET,
    b"PARE": PARQUET,  # with an encrypted footer
    b"ARROW1": ARROW,
    b"\xff\xff\xff\xff": ARROW,  # an IPC stream
    b"PK\x03\x04": ZIP,
    **{bytes([0x80, version]): PICKLE for version in range(2, 6)},
    b"\x1f\x8b": GZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"version https://git-lfs": LFS,
}
_CONTROL = set(range(32)) - set(b"\t\n\v\f\r\x1b")  # bytes that text does not have
NO_FEATURES = {  # what to do with a file that holds none
    LFS: "fetch the file with `git lfs pull`",
    PAGE: "download the file again",
    PICKLE: "save its arrays with numpy.savez, as pickles can run any program and are never read",
}


def recognise(path: Path) -> str | None:
    """Return the kind of a file by its first bytes, one of this module's constants; None for any other kind.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with require_regular(path).open("rb") as file:
            head = file.read(HEAD)
            if _may_be_message(head):
                head += file.read(MAX_MESSAGE)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    return recognise_content(head)


def recognise_content(content: bytes) -> str | None:
    """Return the kind of a file by its content, or by its first kilobyte; None for an unknown kind."""
    head = content[:HEAD]
    if _is_record(head):
        return TFRECORD
    by_beginning = (kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning))
    if kind := next(by_beginning, None):
        return _archive(head) if kind == ZIP else kind
    if head[257:262] == b"ustar":
        return TAR
    if _is_zlib(head):
        return ZLIB
    return MESSAGE if _may_be_message(head) and _is_message(content) else _text(head)


def _is_record(head: bytes) -> bool:
    """Return True if the checksum of a TFRecord's first length matches."""
    if len(head) < 12:
        return False
    crc: int = crc32c(head[:8])
    return int.from_bytes(head[8:12], "little") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _archive(head: bytes) -> str:
    size = int.from_bytes(head[26:28], "little")
    name = head[30 : 30 + size]
    if name.endswith(b".npy"):
        return NPZ
    return PICKLE if name.endswith(b".pkl") else ZIP  # PyTorch's files begin with a pickle


def _is_zlib(head: bytes) -> bool:
    if head[:1] != b"\x78" or int.from_bytes(head[:2], "big") % 31:
        return False
    try:
        return bool(zlib.decompressobj().decompress(head, 1))
    except zlib.error:
        return False


def _may_be_message(head: bytes) -> bool:
    return head[:1] in (b"\x0a", b"\x12")  # the tags of context and feature_lists


def _is_message(content: bytes) -> bool:
    message = SequenceExample()
    try:
        message.ParseFromString(content)
    except DecodeError:
        return False
    return bool(message.feature_lists.feature_list or message.context.feature)


def _text(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):  # UTF-16
        return TEXT
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start or _CONTROL & set(head):
        return None
    if start.startswith(b"<"):
        return PAGE
    return JSON if start[:1] in (b"{", b"[") else TEXT


def explain(kind: str, name: str | None) -> str:
    """Return what to do with a file that is of a kind and not a shard.

    Args:
        kind: from `recognise`.
        name: of the file; None for one in memory.
    """
    if kind in NO_FEATURES:
        return f"is a {kind}, not a shard; {NO_FEATURES[kind]}"
    what = "one SequenceExample outside a TFRecord" if kind == MESSAGE else kind
    command = f"; `reeltag data import {name} --out FOLDER` makes shards of features" if name else ""
    return f"is {what}, not a TFRecord file{command}"
