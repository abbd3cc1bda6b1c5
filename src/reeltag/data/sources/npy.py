"""NumPy's `.npy` and `.npz` files."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np

from reeltag.core.errors import DataError
from reeltag.data.sources.rows import is_table, read_rows, row_count
from reeltag.data.sources.videos import FEATURES, Files, SourceVideo, video_from, without_suffix

# What NumPy and zipfile raise for damaged headers, beside ValueError and OSError.
_DAMAGED = (EOFError, SyntaxError, TokenError, TypeError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class NumpyFiles(Files):
    """Files of one video each: an array of its only feature, or an archive of arrays by feature name.

    An archive that has ids [N], or an array [N, T, D], is a table of videos.
    """

    wanted: tuple[str, ...] = ()
    kind = "NumPy"

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the video of a file, or the videos of a table.

        Raises:
            DataError: the file is damaged, holds objects, or holds no features of one video.
        """
        place, name = str(self.root / part), without_suffix(part)
        with self.opened(part) as file:
            arrays = read_arrays(file, place)
        if is_table(arrays, self.wanted):
            yield from read_rows(arrays, range(row_count(arrays, place)), name, place, self.wanted)
        else:
            yield video_from(arrays, name, place, self.wanted)


def read_arrays(file: Any, place: str) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of a `.npy` or `.npz` file by name; the array of a `.npy` file is called "features".

    Args:
        file: opened for reading bytes, or the bytes themselves.
        place: for messages.

    Raises:
        DataError: the file is damaged, has more than NumPy reads, or holds objects, which only a pickle can.
    """
    file = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        content = np.load(file, allow_pickle=False)
        if isinstance(content, np.ndarray):
            if file.read(1):
                raise DataError("has more behind its array, which NumPy passes over; save one array", file=place)
            return {FEATURES: content}
        with content:
            members = [name for name in content.zip.namelist() if name.endswith(".npy")]
            if len({*members}) < len(members):
                raise DataError("has two arrays of one name; write it again", file=place)
            # By the names of members: for an array "x.npy", NumPy would give the array "x".
            return {name.removesuffix(".npy"): content[name] for name in members}
    except (*_DAMAGED, ValueError, OSError) as error:
        if "allow_pickle" in str(error):
            reason = "holds Python objects, which are never unpickled; save an array [T, D] of numbers a video"
        else:
            reason = f"cannot be read ({' '.join(str(error).split())}); write it again"
        raise DataError(reason, file=place) from error
