"""Decode the picture of each second of a video."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import VideoError
from reeltag.data.video.decode.container import (
    MAX_PIXELS,
    Damage,
    Watchdog,
    best_stream,
    decoded_frames,
    open_media,
    packets,
    refuse_large,
    tells_times,
)

Picture = npt.NDArray[np.uint8]

MAX_SECONDS = 300  # longest part of a video that is read, as in YouTube-8M's frame-level records
MAX_PACKETS = 1000 * MAX_SECONDS  # largest number of packets whose time stamps are kept


def pictures(
    path: Path, size: tuple[int, int] | int | None, damage: Damage, *, seconds: int = MAX_SECONDS, threads: int = 1
) -> Iterator[Picture]:
    """Decode the picture of each second, rotated upright and scaled.

    Args:
        path: the file.
        size: height and width, which ignores the aspect ratio; or the longer side alone, which keeps it; or None for
            the size of the pictures themselves, with square pixels.
        damage: counts packets that cannot be decoded.
        seconds: largest number of seconds to decode.
        threads: threads of the decoder; they change no pixel.

    Yields:
        [height, width, 3] RGB.

    Raises:
        VideoError: no frame can be decoded, a frame is too large, or decoding stalls for ten seconds.
    """
    shown: Any = None
    origin, second = Fraction(0), 0
    for at, frame in _frames(path, damage, seconds, threads):
        if shown is None:
            origin, shape = at, size if isinstance(size, tuple) else _shape(path, frame, size)
        else:
            picture = None  # the frame displayed until `at`; scaled only if the middle of a second falls into it
            while second < seconds and origin + second + Fraction(1, 2) < at:
                picture = _scaled(path, shown[1], shape) if picture is None else picture
                yield picture
                second += 1
        if second == seconds:
            return
        shown = (at, frame)
    if shown is None:
        raise VideoError(f"{path}: no picture can be decoded; is it complete?")
    end = shown[0] + _duration(shown[1])
    if second == 0 or origin + second + Fraction(1, 2) < end:
        yield _scaled(path, shown[1], shape)


def _frames(path: Path, damage: Damage, seconds: int, threads: int) -> Iterator[tuple[Fraction, Any]]:
    """Yield frames in display order with their times; frames that no other frame refers to may be skipped."""
    wanted = _wanted(path, seconds)
    with open_media(path) as container:
        stream = best_stream(container, "video")
        if stream is None:
            raise VideoError(f"{path}: has no pictures")
        refuse_large(path, stream.codec_context)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # frames that grow later count as damage
        stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", threads
        clock, rate, latest = Watchdog(path), stream.average_rate or Fraction(25), None
        for frame in decoded_frames(container, stream, damage, clock, wanted):
            base = frame.time_base or stream.time_base
            ticks = frame.pts if tells_times(container) else frame.dts
            after = Fraction(0) if latest is None else latest + 1 / rate
            at = after if ticks is None else ticks * base
            if latest is not None and at <= latest:
                continue  # a clock that runs backwards
            if latest is None or at - latest >= Fraction(1, 4):
                clock.tick()
            latest = at
            yield at, frame


def _wanted(path: Path, seconds: int) -> frozenset[int] | None:
    """Return time stamps of packets to decode: pictures of seconds, the first and the last; None if unknown."""
    times: list[int] = []
    with open_media(path) as container:
        stream = best_stream(container, "video")
        if stream is None or stream.time_base is None or not tells_times(container):
            return None
        clock, latest = Watchdog(path), 0
        for packet in packets(container, stream):
            clock.check()
            if packet.size and not packet.is_discard:
                if packet.pts is None or len(times) == MAX_PACKETS:
                    return None
                times.append(packet.pts)
                if (packet.pts - times[0]) * stream.time_base > seconds + 10:
                    break
                if (packet.pts - latest) * stream.time_base > 1:
                    clock.tick()
                    latest = packet.pts
        base = stream.time_base
    if not times:
        return None
    order = np.array(sorted(times))
    middles = [int((Fraction(2 * second + 1, 2)) / base) for second in range(seconds)]
    places = np.searchsorted(order, order[0] + np.array(middles, np.int64), "right") - 1
    # The next frame ends the display of a picture, so it is decoded too.
    kept = np.unique(np.concatenate([[0, len(order) - 1], places, np.minimum(places + 1, len(order) - 1)]))
    return frozenset(order[kept].tolist())


def _scaled(path: Path, frame: Any, size: tuple[int, int]) -> Picture:
    import av

    turns = round(frame.rotation / 90) % 4  # counter-clockwise, as the display matrix says
    height, width = size if turns % 2 == 0 else size[::-1]
    try:
        small = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA")
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{path}: its pictures ({frame.format.name}) cannot be converted to RGB; convert it"
        ) from error
    picture: Picture = np.ascontiguousarray(np.rot90(small.to_ndarray(), turns))
    return picture


def _shape(path: Path, frame: Any, longest: int | None) -> tuple[int, int]:
    """Return the height and width of an upright frame with square pixels, its height kept.

    With a longer side, the frame is scaled to it, and both sides are even.
    """
    with open_media(path) as container:
        pixel = best_stream(container, "video").sample_aspect_ratio or 1
    height, width = float(frame.height), float(frame.width * pixel)
    if round(frame.rotation / 90) % 2:
        height, width = width, height
    if longest is None:
        return max(1, round(height)), max(1, round(width))
    scale = longest / max(height, width)
    return 2 * max(1, round(height * scale / 2)), 2 * max(1, round(width * scale / 2))


def _duration(frame: Any) -> Fraction:
    if frame.duration and frame.time_base:
        return Fraction(frame.duration * frame.time_base)
    return Fraction(1, 25)
