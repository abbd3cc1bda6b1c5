"""Find recordings behind the end of another in one file, as `cat` joins them, where FFmpeg stops at the first."""

from __future__ import annotations

from pathlib import Path

# Bytes that a file begins with, and where, in formats of which FFmpeg stops at the end that the header tells. Of Ogg it
# reads on, unless the channels change.
_BEGINNINGS = {
    "aiff": (0, b"FORM"),
    "asf": (0, bytes.fromhex("3026b2758e66cf11")),
    "caf": (0, b"caff"),
    "flv": (0, b"FLV\1"),
    "mov,mp4,m4a,3gp,3g2,mj2": (4, b"ftyp"),
    "nut": (0, b"nut/multimedia container\0"),
    "ogg": (0, b"OggS\0\2"),
    "tta": (0, b"TTA1"),
    "w64": (0, b"riff"),
    "wav": (0, b"RIFF"),
    "wv": (0, b"wvpk"),
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
    after, beginning = _BEGINNINGS[kind]
    with path.open("rb") as file:
        file.seek(end)
        place = file.read(_MAX_BETWEEN).find(beginning)
    return end + place - after if place >= after else None
