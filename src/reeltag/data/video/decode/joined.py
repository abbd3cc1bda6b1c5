"""Find recordings behind the end of another in one file, as `cat` joins them, where FFmpeg stops at the first."""

from __future__ import annotations

import re
from pathlib import Path

# How files begin, as regular expressions, that say where they end. Ogg continues by itself, unless its channels change.
_BEGINNINGS = {
    "aiff": b"FORM",
    "asf": re.escape(bytes.fromhex("3026b2758e66cf11")),
    "caf": b"caff",
    "flv": rb"FLV\x01",
    "matroska,webm": rb"\x1aE\xdf\xa3",
    "mov,mp4,m4a,3gp,3g2,mj2": b"....ftyp",
    "ogg": rb"OggS\0\x02",
    "tta": b"TTA1",
    "w64": b"riff",
    "wav": b"RIFF",
    "wv": b"wvpk",
}
_MAX_BETWEEN = 1 << 20  # most bytes between two recordings, such as tags or an index


def next_recording(path: Path, kind: str, end: int) -> int | None:
    """Return the place in a file where another recording of its format begins; None if none does.

    Args:
        path: the file.
        kind: FFmpeg's name of the format.
        end: number of bytes that have been read.
    """
    if kind not in _BEGINNINGS:
        return None
    with path.open("rb") as file:
        file.seek(end)
        found = re.search(_BEGINNINGS[kind], file.read(_MAX_BETWEEN), re.DOTALL)
    return end + found.start() if found else None
