"""Find recordings behind the end of another in one file, as `cat` joins them, where FFmpeg stops at the first."""

from __future__ import annotations

from pathlib import Path

# How files of sound begin whose header says where they end. Ogg continues by itself, unless the channels change.
_BEGINNINGS = {
    "aiff": b"FORM",
    "caf": b"caff",
    "ogg": b"OggS\0\2",
    "tta": b"TTA1",
    "w64": b"riff",
    "wav": b"RIFF",
    "wv": b"wvpk",
}
_MAX_BETWEEN = 1 << 20  # most bytes between them, such as tags


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
        place = file.read(_MAX_BETWEEN).find(_BEGINNINGS[kind])
    return end + place if place >= 0 else None
