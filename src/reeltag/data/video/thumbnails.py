"""Small pictures of a video, as JPEG."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

from reeltag.data.video import decode
from reeltag.data.video.decode import Damage, Picture

LONGEST = 160  # pixels of a side
QUALITY = 5  # of JPEG as FFmpeg counts it: 1 is the best, 31 the smallest


def thumbnails(path: Path, seconds: Collection[int], threads: int = 1) -> dict[int, bytes]:
    """The pictures of some of a video's seconds; none of a file of sound alone.

    Args:
        path: the file.
        seconds: which, from 0.
        threads: of the decoder.

    Returns:
        JPEG by second.

    Raises:
        VideoError: the pictures cannot be decoded.
    """
    if not decode.probe(path).pictures:
        return {}
    pictures = decode.pictures(path, LONGEST, Damage(), seconds=max(seconds) + 1, threads=threads)
    return {second: jpeg(picture) for second, picture in enumerate(pictures) if second in seconds}


def jpeg(picture: Picture) -> bytes:
    """Encode a picture, [height, width, 3] RGB, both even."""
    import av

    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = picture.shape[:2]
    encoder.pix_fmt, encoder.time_base = "yuvj420p", Fraction(1)
    encoder.qmin = encoder.qmax = QUALITY
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuvj420p")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
