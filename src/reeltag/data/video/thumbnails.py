"""Thumbnails of a video as JPEG."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

from reeltag.data.video.decode import Damage, Picture
from reeltag.data.video.engine import IN_PROCESS, Engine

MAX_SIDE = 160  # pixels of the longer side
QUALITY = 5  # FFmpeg's scale for JPEG: 1 is the best, 31 the smallest


def thumbnails(path: Path, seconds: Collection[int], engine: Engine = IN_PROCESS) -> dict[int, bytes]:
    """Encode thumbnails of some seconds of a video; an audio file has none.

    Args:
        path: the file.
        seconds: numbers of the seconds, from 0.
        engine: its decoder reads the file; by default this process does.

    Returns:
        JPEG data by second.

    Raises:
        VideoError: the pictures cannot be decoded.
    """
    if not engine.decoder.probe(path).pictures:
        return {}
    pictures = engine.decoder.pictures(path, MAX_SIDE, Damage(), seconds=max(seconds) + 1, threads=engine.threads)
    return {second: jpeg(picture) for second, picture in enumerate(pictures) if second in seconds}


def jpeg(picture: Picture) -> bytes:
    """Encode a picture [height, width, 3] RGB as JPEG; height and width have to be even."""
    import av

    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1)
    encoder.qmin = encoder.qmax = QUALITY
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
