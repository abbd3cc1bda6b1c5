"""WebDataset's tar files, read by webdataset: the members of one basename are a video."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, cast

from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.kinds import GZIP, recognise
from reeltag.data.sources.json_values import parse_object
from reeltag.data.sources.npy import read_arrays
from reeltag.data.sources.videos import Files, SourceVideo, video_from

_PICKLES = {"pyd", "pkl", "pickle", "pth", "pt"}
_LABELS = {"cls", "cls2", "index", "inx", "txt", "label", "labels"}


@dataclass(frozen=True)
class WebDatasetFiles(Files):
    """Tar files, compressed by gzip or not; a part is a file.

    `KEY.npy` is the only feature of video KEY and `KEY.rgb.npy` its feature rgb; `KEY.npz` holds arrays by feature
    name, `KEY.cls` or `KEY.txt` the labels, and `KEY.json` any of these.
    """

    wanted: tuple[str, ...] = ()
    kind = "WebDataset"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a file.

        Raises:
            DataError: the file is damaged, or a sample is no video.
        """
        try:
            from webdataset import tariterators
        except ImportError as error:
            raise UsageError(f"WebDataset needs webdataset ({error}): pip install 'reeltag[import]'") from error
        path = str(self.root / part)
        try:
            with ExitStack() as stack:
                file: IO[bytes] = stack.enter_context((self.root / part).open("rb"))
                if recognise(self.root / part) == GZIP:
                    file = cast("IO[bytes]", stack.enter_context(gzip.open(file)))
                stream = _Tail(file)
                members = tariterators.tar_file_expander([{"url": path, "stream": stream}])
                samples = tariterators.group_by_keys(_with_suffix(members, path), lcase=False)
                for sample in samples:
                    place = f"{path}: {sample['__key__']}"
                    yield video_from(_fields(sample, place), sample["__key__"], place, self.wanted)
                if not stream.ends_with_zeros():
                    raise DataError("ends early: the mark of a tar file's end is missing; copy it again", file=path)
        except DataError:
            raise
        except ValueError as error:
            member = str(error.args[0]).partition(":")[0]
            raise DataError(f"has the member {member} twice; write the file again", file=path) from error
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            reason = str(error.args[0] if error.args else error).partition(" @ ")[0]  # webdataset adds the stream
            raise DataError(f"cannot be read ({reason}); copy or write it again", file=path) from error


class _Tail:
    """A stream that keeps the last bytes that were read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._last = stream, b""

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self._last = (self._last + content)[-tarfile.BLOCKSIZE :]
        return content

    def ends_with_zeros(self) -> bool:
        """Read the rest, and return True if the last block is one of the zeros that end a tar file."""
        while self.read(1 << 20):
            pass
        return self._last == bytes(tarfile.BLOCKSIZE)


def _with_suffix(members: Iterator[dict[str, Any]], path: str) -> Iterator[dict[str, Any]]:
    """Refuse members without a suffix, which `group_by_keys` passes over.

    Raises:
        DataError: there is one.
    """
    from webdataset.tariterators import base_plus_ext

    for member in members:
        if "fname" in member and base_plus_ext(member["fname"])[0] is None:
            reason = f"the member {member['fname']} has no suffix, so that it belongs to no sample"
            raise DataError(f"{reason}; name it KEY.npy or remove it", file=path)
        yield member


def _fields(sample: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the fields of a sample, decoded by the suffixes of its members."""
    fields: dict[str, Any] = {}
    for suffix, content in sample.items():
        if suffix.startswith("__"):
            continue
        name, _, kind = suffix.rpartition(".")
        if kind.lower() in _PICKLES:
            raise DataError(f"has a member .{suffix}, a pickle, which is never read; store .npy or .npz", file=place)
        if kind in ("npy", "npz"):
            arrays = read_arrays(content, f"{place}.{suffix}")
            found: dict[str, Any] = {name or key if kind == "npy" else key: values for key, values in arrays.items()}
        elif kind == "json":
            found = parse_object(_text(content, suffix, place), place)
        elif suffix.lower() in _LABELS:
            found = {"labels": _text(content, suffix, place).strip()}
        else:
            continue
        if twice := set(found) & set(fields):
            raise DataError(f"has {min(twice)!r} in two of its members; keep one", file=place)
        fields |= found
    return fields


def _text(content: bytes, suffix: str, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"its member .{suffix} is not UTF-8; write it as text", file=place) from error
