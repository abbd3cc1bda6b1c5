"""Named arrays and JSON in one safetensors file whose every byte is checked.

The header's metadata holds the JSON and a CRC-32C of every array and of the header itself. A header must equal, byte
for byte, what writing its own content would give; any difference counts as damage.

An array that is stored in fewer bytes is an array of those bytes in the header; the key `coded` of the JSON has its
type, shape and coder, and a CRC-32C of its elements. The module `core.entropy_coding` codes and decodes it.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import mmap
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reeltag.core.entropy_coding import Coder, chunk_count, decode, encode, streams
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.storage import atomic_path
from reeltag.core.text import did_you_mean, megabytes

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[Any]

MAX_HEADER = 1_000_000  # bytes
_LENGTH = 8  # bytes before the header that say how long it is
_Type = Literal["U64", "I64", "F64", "F32", "U32", "I32", "F16", "I8", "U8", "BOOL"]
# In the order in which safetensors writes them, the widest first, so that each array is aligned.
_TYPES: dict[_Type, str] = {
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "U32": "<u4",
    "I32": "<i4",
    "F16": "<f2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_CODED = "coded"  # key of the content
# A forged header can claim so many bytes for each that is stored, as in the file of an array that is nearly all zeros.
MOST_EXPANSION = 1_000
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


_Natural = Annotated[int, Field(ge=0, lt=1 << 48)]


class _Entry(_Strict):
    """Header entry of an array; its offset follows from the entries before it."""

    dtype: _Type
    shape: tuple[_Natural, ...] = Field(max_length=8)

    @property
    def kind(self) -> np.dtype[Any]:
        return np.dtype(_TYPES[self.dtype])

    @property
    def bytes(self) -> int:
        return self.kind.itemsize * math.prod(self.shape)


class _Coded(_Entry):
    """A coded array: its own type and shape, the bytes of the streams of each chunk, the checksum of its elements."""

    coder: Coder
    crc32c: int
    lengths: tuple[tuple[_Natural, ...], ...]

    @property
    def stored(self) -> int:
        """Bytes in the file: the streams, and zeros up to the least that the array's size allows."""
        return max(sum(map(sum, self.lengths)), -(-self.bytes // MOST_EXPANSION))

    def consistent(self, entry: _Entry) -> bool:
        """Return True if the array can be what an entry of the header stores."""
        chunks, each = chunk_count(math.prod(self.shape)), streams(self.coder, self.kind)
        lengths = 0 < len(self.lengths) == chunks and all(len(chunk) == each > 0 for chunk in self.lengths)
        return lengths and entry.dtype == "U8" and entry.shape == (self.stored,)


_CODED_ARRAYS = TypeAdapter(dict[str, _Coded])


class _Metadata(_Strict):
    reeltag: str


class _Header(_Strict):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Entry]

    metadata: _Metadata = Field(alias="__metadata__")


class _Sealed(_Strict):
    """Content of the `reeltag` metadata; its checksum is not read, since the header is recomputed and compared."""

    content: dict[str, Any]
    crc32c: dict[str, int]


def write(path: Path, arrays: Mapping[str, Array], content: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write a file atomically; equal content gives equal bytes.

    Args:
        path: of the file; an existing file is replaced.
        arrays: by name.
        content: JSON.
        compress: store arrays in fewer bytes where that saves enough.

    Raises:
        UsageError: the header would be too long or hold NaN, or the operating system refuses the write.
    """
    try:
        content = json.loads(_json(content))  # as it will be read
    except ValueError as error:
        raise UsageError(f"{path}: a number in the header is not finite ({error})") from error
    arrays = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    if compress and (coded := _coded(arrays)):
        arrays |= {name: stored for name, (stored, _) in coded.items()}
        content = {**content, _CODED: {name: each.model_dump() for name, (_, each) in coded.items()}}
    entries = {name: _Entry(dtype=_NAMES[array.dtype], shape=array.shape) for name, array in arrays.items()}
    header = _header(entries, {name: _crc(array) for name, array in arrays.items()}, content)
    if len(header) > MAX_HEADER:
        most = f"the header takes {megabytes(len(header))}, of which at most {MAX_HEADER:,} bytes are allowed"
        raise UsageError(f"{path}: {most}; shorten the names of the classes")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(header).to_bytes(_LENGTH, "little") + header)
        for name in _order(entries):
            file.write(_bytes(arrays[name]).data)


class TensorFile:
    """File that `write` wrote; its header is checked when it is opened, each array when it is read.

    Args:
        path: the file.
        wanted: the file that was expected, for messages.

    Attributes:
        content: the JSON.
        digest: SHA-256 of the header, which holds a checksum of every array, in hexadecimal.

    Raises:
        ArtifactError: the file is missing, damaged, or was not written by this version of reeltag.
    """

    def __init__(self, path: Path, wanted: str = "a .reeltag file") -> None:
        self.path, self._wanted = path, wanted
        if path.is_dir():
            raise ArtifactError(f"{path}: is a folder; give the path of {wanted}")
        if not path.is_file():
            raise ArtifactError(f"{path}: no such file; {self._again() or _meant(path, wanted)}")
        try:
            with path.open("rb") as file:
                self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._file: Array = np.frombuffer(self._pages, np.uint8)
        except (OSError, ValueError) as error:  # ValueError: it is empty
            if getattr(error, "errno", None) == errno.ENOMEM:  # nothing is wrong with the file
                raise
            raise self._unknown(f"cannot be read ({error})") from error
        header = self._header_bytes()
        self.digest = hashlib.sha256(header).hexdigest()
        self.content, self._entries, self._checksums = self._parsed(header)
        self._coded = self._coded_arrays(self.content.pop(_CODED, {}))
        ends = np.cumsum([_LENGTH + len(header), *(entry.bytes for entry in self._entries.values())], dtype=object)
        if ends[-1] != len(self._file):
            raise self._damaged(f"holds {len(self._file):,} bytes, but its header describes {ends[-1]:,}")
        self._begins = dict(zip(self._entries, ends.tolist(), strict=False))

    @property
    def names(self) -> list[str]:
        """Names of the arrays, in the file's order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array without reading it."""
        return (self._coded.get(name) or self._entries[name]).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """Return the type of an array without reading it."""
        return (self._coded.get(name) or self._entries[name]).kind

    def stored_bytes(self, name: str) -> int:
        """Return the bytes that an array takes in the file."""
        return self._entries[name].bytes

    def is_coded(self, name: str) -> bool:
        """Return True if an array is decoded into memory of its own, which takes `dtype` and `shape` of it."""
        return name in self._coded

    def read(self, name: str) -> Array:
        """Return an array as copy-on-write pages of the file, or decoded.

        Raises:
            ArtifactError: its checksum does not match, or it cannot be decoded.
        """
        entry, begin = self._entries[name], self._begins[name]
        content = self._file[begin : begin + entry.bytes]
        if _crc(content) != self._checksums[name]:
            raise self._damaged(f"checksum of tensor {name} does not match")
        if name in self._coded:
            array = self._decoded(name, content)
            self.forget(name)
            return array
        return content.view(entry.kind).reshape(entry.shape)

    def forget(self, name: str) -> None:
        """Give back the memory that reading an array took; a change that was made to its pages is lost."""
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows
            return
        begin, end = self._begins[name], self._begins[name] + self._entries[name].bytes
        first, last = -(-begin // mmap.PAGESIZE), end // mmap.PAGESIZE  # pages that hold nothing else
        if first < last:
            self._pages.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)

    def _decoded(self, name: str, content: npt.NDArray[np.uint8]) -> Array:
        coded = self._coded[name]
        array: Array = np.empty(coded.shape, coded.kind)
        try:
            decode(content, coded.coder, coded.lengths, array)
        except ValueError as error:
            raise self._damaged(f"tensor {name} cannot be decoded ({error})") from error
        if _crc(array) != coded.crc32c or content[sum(map(sum, coded.lengths)) :].any():
            raise self._damaged(f"checksum of tensor {name}, decoded, does not match")
        return array

    def _coded_arrays(self, table: object) -> dict[str, _Coded]:
        """Check the table of coded arrays against the header's entries, before any memory is taken for them."""
        try:
            arrays = _CODED_ARRAYS.validate_json(_json(table))  # JSON has no tuples
        except ValidationError as error:
            raise self._unknown("stores arrays in a way that this version of reeltag does not know") from error
        for name, coded in arrays.items():
            if name not in self._entries or not coded.consistent(self._entries[name]):
                raise self._damaged(f"the header's lengths of tensor {name} contradict each other")
        return arrays

    def _header_bytes(self) -> bytes:
        """Return the header's bytes after checking its length."""
        size = int.from_bytes(self._file[:_LENGTH].tobytes(), "little")
        if len(self._file) < _LENGTH or size > len(self._file) - _LENGTH:
            raise self._unknown("is truncated, or not a reeltag file")
        if size > MAX_HEADER:
            raise self._unknown(f"has a header of {size:,} bytes; at most {MAX_HEADER:,} are allowed")
        return self._file[_LENGTH : _LENGTH + size].tobytes()

    def _parsed(self, header: bytes) -> tuple[dict[str, Any], dict[str, _Entry], dict[str, int]]:
        try:
            parsed = _Header.model_validate_json(header)
            sealed = _Sealed.model_validate_json(parsed.metadata.reeltag)
        except ValidationError as error:
            raise self._unknown("is not a reeltag file, or is one of another version") from error
        entries = parsed.__pydantic_extra__
        try:
            same = _header(entries, sealed.crc32c, sealed.content) == header
        except (KeyError, ValueError):  # an array without a checksum; what only some programs take for JSON
            same = False
        if not same:
            raise self._damaged("checksum of the header does not match")
        return sealed.content, {name: entries[name] for name in _order(entries)}, sealed.crc32c

    def _damaged(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {what}; the file is damaged, {self._again() or 'copy it again'}")

    def _unknown(self, what: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {what}; {self._again() or f'copy it again, or give {self._wanted}'}")

    def _again(self) -> str:
        """Return how to recreate an intermediate file of a run; empty for any other file."""
        folder = self.path.parent
        return f"remove {folder} and run again" if folder.parent.name == "stages" else ""


def _meant(path: Path, wanted: str) -> str:
    """Suggest a file for a path that does not exist."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    here = [file.name for file in path.parent.glob(f"*{glob.escape(path.suffix)}")]
    return did_you_mean(path.name, here) or f"give the path of {wanted}"


def _header(entries: Mapping[str, _Entry], checksums: Mapping[str, int], content: Mapping[str, Any]) -> bytes:
    """Return the only valid header for this content; its checksum covers the same header with a checksum of 0."""
    table, begin = {}, 0
    for name in _order(entries):
        end = begin + entries[name].bytes
        table[name] = {**entries[name].model_dump(), "data_offsets": [begin, end]}
        begin = end

    def written(checksum: int) -> bytes:
        sealed = {"checksum": checksum, "content": content, "crc32c": {name: checksums[name] for name in table}}
        header = _json({"__metadata__": {"reeltag": _json(sealed, sort_keys=True)}, **table}).encode()
        return header + b" " * (-len(header) % _LENGTH)

    return written(google_crc32c.value(written(0)))


def _coded(arrays: Mapping[str, Array]) -> dict[str, tuple[Array, _Coded]]:
    """Return the bytes and the header's description of each array that is smaller when it is coded."""
    coded = {}
    for name, coder, chunks in encode(arrays):
        array = arrays[name]
        lengths = tuple(tuple(map(len, chunk)) for chunk in chunks)
        each = _Coded(dtype=_NAMES[array.dtype], shape=array.shape, coder=coder, crc32c=_crc(array), lengths=lengths)
        stored = b"".join(chain.from_iterable(chunks)).ljust(each.stored, b"\0")
        coded[name] = np.frombuffer(stored, np.uint8), each
    return coded


def _order(entries: Mapping[str, _Entry]) -> list[str]:
    kinds = list(_TYPES)
    return sorted(entries, key=lambda name: (kinds.index(entries[name].dtype), name))


def _json(value: object, *, sort_keys: bool = False) -> str:
    return json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)


def _crc(array: Array) -> int:
    crc: int = google_crc32c.value(_bytes(array))
    return crc


def all_finite(tensor: Tensor) -> bool:
    """Return True if no element is infinite or NaN; unlike `isfinite().all()` without a copy of the tensor."""
    import torch  # slow to import, and files of arrays do without it

    return not tensor.numel() or math.isfinite(torch.linalg.vector_norm(tensor, math.inf))


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any], *, compress: bool = False
) -> None:
    """Write tensors and JSON to a tensor file, with `compress` in fewer bytes where that saves enough."""
    write(path, {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}, header, compress=compress)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and JSON from a tensor file.

    Raises:
        ArtifactError: the file is missing, damaged, or was not written by this version of reeltag.
    """
    file = TensorFile(path)
    return {name: read_tensor(file, name) for name in file.names}, file.content


def read_tensor(file: TensorFile, name: str) -> Tensor:
    """Return a tensor of a file.

    Raises:
        ArtifactError: it is damaged.
    """
    import torch  # slow to import, and files of arrays do without it

    tensor = torch.from_numpy(file.read(name))
    # Floats are copied, because in the file they are not aligned, and matrix products round differently then.
    # Codes are pages of the file, if they were not decoded, until something else is made of them.
    if file.is_coded(name) or not tensor.is_floating_point():
        return tensor
    tensor = tensor.clone()
    file.forget(name)
    return tensor


def meta_tensor(file: TensorFile, name: str) -> Tensor:
    """Return a tensor of the type and shape of one of a file, without memory."""
    import torch

    dtype: torch.dtype = torch.from_numpy(np.empty(0, file.dtype(name))).dtype
    return torch.empty(file.shape(name), dtype=dtype, device="meta")
