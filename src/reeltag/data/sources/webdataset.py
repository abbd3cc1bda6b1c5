"""WebDataset's tar files, read by webdataset: the members of one basename are a video."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any, cast

from reeltag.core.environment import install_command
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
            raise UsageError(f"WebDataset needs webdataset ({error}): {install_command('import')}") from error
        path = str(self.root / part)
        try:
            with ExitStack() as stack:
                file: IO[bytes] = stack.enter_context((self.root / part).open("rb"))
                if recognise(self.root / part) == GZIP:
                    file = cast("IO[bytes]", stack.enter_context(gzip.open(file)))
                for sample in tariterators.group_by_keys(_members(file, path), lcase=False):
                    place = f"{path}: {sample['__key__']}"
                    yield video_from(_fields(sample, place), sample["__key__"], place, self.wanted)
        except DataError:
            raise
        except ValueError as error:
            member = str(error.args[0]).partition(":")[0]
            raise DataError(f"has the member {member} twice; write the file again", file=path) from error
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            reason = error.args[0] if error.args else error
            raise DataError(f"cannot be read ({reason}); copy or write it again", file=path) from error


class _Tail:
    """A stream that keeps the last bytes that were read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.last = stream, b""

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self.last = (self.last + content)[-tarfile.BLOCKSIZE :]
        return content


def _members(file: IO[bytes], path: str) -> Iterator[dict[str, Any]]:
    """Yield the members of a tar file as `group_by_keys` takes them, which passes over those without a suffix.

    webdataset's own reader would pass over links too, and take a damaged member for the end of the file.

    Raises:
        DataError: a member has no content of its own or no suffix, or the file ends early or goes on after its end.
    """
    from webdataset.tariterators import base_plus_ext

    stream = _Tail(file)
    with cast("Any", tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r|")) as tar:
        for member in tar:
            tar.members = []  # else all are kept
            name = member.name.removeprefix("./")  # as `tar -C FOLDER .` writes it
            hidden = any(part[:1] == "." and part != ".." for part in name.split("/"))
            if member.isdir() or hidden or (name.startswith("__") and name.endswith("__")):
                continue
            if not member.isreg():
                reason = f"the member {name} is a link or a device, without content of its own"
                raise DataError(f"{reason}; write the file again (tar --dereference --hard-dereference)", file=path)
            if base_plus_ext(name)[0] is None:
                reason = f"the member {name} has no suffix, so that it belongs to no sample"
                raise DataError(f"{reason}; name it KEY.npy or remove it", file=path)
            yield {"fname": name, "data": tar.extractfile(member).read(), "__url__": path}
        while block := tar.fileobj.read(1 << 20):
            if any(block):
                raise DataError("goes on after its end: is it damaged, or several tar files in one?", file=path)
    while stream.read(1 << 20):  # to the checksum of gzip
        pass
    if stream.last != bytes(tarfile.BLOCKSIZE):
        raise DataError("ends early: the mark of a tar file's end is missing; copy it again", file=path)


def _fields(sample: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the fields of a sample, decoded by the suffixes of its members."""
    fields: dict[str, Any] = {}
    for suffix, content in sample.items():
        if suffix.startswith("__"):
            continue
        name, _, kind = suffix.rpartition(".")
        if kind.lower() in _PICKLES:
            raise DataError(f"has a member .{suffix}, a pickle, which is never read; store .npy or .npz", file=place)
        kind = kind.lower()
        if kind in ("npy", "npz"):
            arrays = read_arrays(content, f"{place}.{suffix}")
            found: dict[str, Any] = {name or key if kind == "npy" else key: values for key, values in arrays.items()}
        elif kind == "json":
            found = parse_object(_text(content, suffix, place), place)
        elif suffix.lower() in _LABELS:
            found = {"labels": _text(content, suffix, place).strip()}
        else:
            found = {f".{suffix}": content}  # not read, but named where there is nothing else
        if twice := set(found) & set(fields):
            raise DataError(f"has {min(twice)!r} in two of its members; keep one", file=place)
        fields |= found
    return fields


def _text(content: bytes, suffix: str, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"its member .{suffix} is not UTF-8; write it as text", file=place) from error
