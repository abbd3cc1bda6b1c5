"""Decode the picture of each second of a video."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import VideoError
from reeltag.data.video.decode.container import (
    MAX_REORDERED,
    Damage,
    Watchdog,
    best_stream,
    duration,
    open_media,
    packets,
    tells_times,
    timed_frames,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

Picture = npt.NDArray[np.uint8]

MAX_SECONDS = 300  # longest part of a video that is read, as in YouTube-8M's frame-level records
MAX_PACKETS = 1000 * MAX_SECONDS  # largest number of packets whose time stamps are kept
LENDING = ("mjpeg",)  # decoders whose frames may use tables of the frame before, although each is a key frame
UNFLAGGED = ("vp8",)  # decoders whose frames do not tell that they are damaged
HALF = Fraction(1, 2)
SKEW = 0.02  # of a display matrix, about one degree; FFmpeg takes less as a right angle


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
    wanted, done, before = _wanted(path, seconds), 0, replace(damage)
    shortcut = _Shortcut(wanted, threads)
    if wanted is not None or threads > 1:
        try:
            for picture in _verified(_by_second(path, size, damage, seconds, shortcut), shortcut):
                yield picture
                done += 1
            return
        except _InexactError:
            vars(damage).update(vars(before))
    yield from islice(_by_second(path, size, damage, seconds), done, None)


def _verified(pictures: Iterator[Picture], shortcut: _Shortcut) -> Iterator[Picture]:
    """Yield pictures once no later frame to which they may refer can turn out to be damaged."""
    waiting = deque[tuple[Picture, int]]()
    for picture in pictures:
        waiting.append((picture, shortcut.verified))
        while waiting[0][1] + MAX_REORDERED < shortcut.verified:
            yield waiting.popleft()[0]
    yield from (picture for picture, _ in waiting)


def _by_second(
    path: Path, size: tuple[int, int] | int | None, damage: Damage, seconds: int, shortcut: _Shortcut | None = None
) -> Iterator[Picture]:
    """Yield the picture of each second, from all frames in one thread or by a shortcut."""
    from av.video.reformatter import VideoReformatter

    shown: Any = None  # a frame and its time
    second, middle, orientation, watchdog = 0, Fraction(0), UPRIGHT, Watchdog(path)
    with open_media(path) as container:
        stream = best_stream(container, "video")
        if stream is None:
            raise VideoError(f"{path}: has no pictures")
        scaler = VideoReformatter()
        for at, frame in _frames(container, stream, damage, watchdog, shortcut):
            before, orientation = orientation, _orientation(frame, orientation, damage)
            if shown is None:
                middle = at + HALF
                shape = size if isinstance(size, tuple) else _shape(stream, frame, size, orientation)
            else:
                picture = None  # the frame displayed until `at`; scaled only if the middle of a second falls into it
                while second < seconds and middle < at:
                    picture = _scaled(path, scaler, shown[1], shape, before) if picture is None else picture
                    yield picture
                    watchdog.tick()  # an encoder may take its time
                    second, middle = second + 1, middle + 1
            if second == seconds:
                return
            shown = at, frame
        if shown is None:
            raise VideoError(f"{path}: no picture can be decoded; is it complete?")
        if second == 0 or middle < shown[0] + duration(shown[1], stream):
            yield _scaled(path, scaler, shown[1], shape, orientation)


def _frames(
    container: InputContainer, stream: Any, damage: Damage, watchdog: Watchdog, shortcut: _Shortcut | None
) -> Iterator[tuple[Fraction, Any]]:
    """Yield frames in the order of display with their times.

    Raises:
        _InexactError: decoding without the shortcut may give other frames.
    """
    due, damaged = None, damage.damaged
    stream.codec_context.thread_type = "AUTO"
    flagged = stream.codec_context.name not in UNFLAGGED
    stream.codec_context.thread_count = shortcut.threads if shortcut and flagged else 1
    if shortcut is not None:  # of several threads, one may hand out a frame before another meets its damage
        stream.codec_context.options = {"err_detect": "explode"}

    def is_needed(packet: Any) -> bool:
        if shortcut is None:
            return True
        if damage.damaged > damaged:  # before so many packets are refused that the file would be given up
            raise _InexactError
        return shortcut.select(stream.codec_context, packet)

    for at, frame in timed_frames(container, stream, damage, watchdog, is_needed):
        if due is None or at >= due:
            watchdog.tick()
            due = at + Fraction(1, 4)
        if shortcut is not None:
            shortcut.verify(frame)
        yield at, frame
    if shortcut is not None and (shortcut.missing or damage.damaged > damaged):
        raise _InexactError


class _InexactError(Exception):
    """Decoding without a shortcut may give other frames."""


class _Shortcut:
    """Decoding in several threads, and without frames that are neither wanted nor referred to by others.

    Whole files give the same frames as decoding everything in one thread. Damage, fields and missing references make a
    decoder depend on its threads and on what it was given before, so what it gives is verified.

    Args:
        wanted: time stamps of packets to decode, in ticks; None for all.
        threads: threads of the decoder.

    Attributes:
        verified: number of frames so far.
        missing: the wanted time stamps whose frames have not come yet, the next one last.
    """

    def __init__(self, wanted: frozenset[int] | None, threads: int) -> None:
        self.threads = threads
        self.verified = 0
        self.missing = sorted(wanted or (), reverse=True)
        self._wanted = wanted

    def select(self, context: Any, packet: Any) -> bool:
        """Prepare the decoder for a packet; return False if it is not to be decoded."""
        if self._wanted is None:
            return True
        wanted = not packet.size or packet.pts in self._wanted
        context.skip_frame = "DEFAULT" if wanted else "NONREF"
        return wanted or not context.codec.intra_only or context.name in LENDING

    def verify(self, frame: Any) -> None:
        """Verify that a frame is whole, and that all wanted frames have come in their order.

        Raises:
            _InexactError: it is damaged, one is missing, or frames consist of fields, which may be skipped apart.
        """
        self.verified += 1
        late = self.missing and (frame.pts is None or frame.pts > self.missing[-1])
        if frame.is_corrupt or late or (self._wanted is not None and frame.interlaced_frame):
            raise _InexactError
        if self.missing and frame.pts == self.missing[-1]:
            self.missing.pop()


def _wanted(path: Path, seconds: int) -> frozenset[int] | None:
    """Return time stamps of packets to decode: pictures of seconds, their successors, the first and the last.

    None if they cannot be told from the time stamps.
    """
    times: list[int] = []
    damage = Damage()
    with open_media(path) as container:
        stream = best_stream(container, "video")
        if stream is None or stream.time_base is None or not tells_times(container):
            return None
        base, watchdog, due = stream.time_base, Watchdog(path), -math.inf
        for packet in packets(container, stream, damage):
            watchdog.check()
            if not packet.size or packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt or len(times) == MAX_PACKETS:
                return None
            times.append(packet.pts)
            if packet.pts - times[0] > (seconds + 10) / base:
                break
            if packet.pts > due:
                watchdog.tick()
                due = packet.pts + int(1 / base)
    if not times or damage.restarts:
        return None
    order = np.array(sorted(set(times)))
    middles = [math.floor((second + HALF) / base) for second in range(seconds)]
    places = np.searchsorted(order, order[0] + np.array(middles), "right") - 1
    # The next frame ends the display of a picture, so it is decoded too.
    kept = np.unique(np.concatenate([[0, len(order) - 1], places, np.minimum(places + 1, len(order) - 1)]))
    return frozenset(order[kept].tolist())


def _scaled(
    path: Path, scaler: VideoReformatter, frame: Any, size: tuple[int, int], orientation: _Orientation
) -> Picture:
    import av
    from av.video.reformatter import Interpolation

    height, width = size[::-1] if orientation.transposed else size
    # Without the other flags each pair of columns gets one colour, whatever the size of the video.
    flags = (
        Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
    )
    try:
        # One scaler for all frames, in one thread: `frame.reformat` prepares itself and starts threads for each.
        small = scaler.reformat(frame, width, height, "rgb24", interpolation=flags, threads=1)
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(
            f"{path}: its pictures ({frame.format.name}) cannot be converted to RGB; convert it"
        ) from error
    picture: Any = small.to_ndarray()
    return orientation.applied(picture)


def _shape(stream: Any, frame: Any, longest: int | None, orientation: _Orientation) -> tuple[int, int]:
    """Return the height and width of an upright frame with square pixels, its height kept.

    With a longer side, the frame is scaled to it, and both sides are even.
    """
    height, width = float(frame.height), float(frame.width * (stream.sample_aspect_ratio or 1))
    if orientation.transposed:
        height, width = width, height
    if longest is None:
        return max(1, round(height)), max(1, round(width))
    scale = longest / max(height, width)
    return 2 * max(1, round(height * scale / 2)), 2 * max(1, round(width * scale / 2))


@dataclass(frozen=True)
class _Orientation:
    """Orientation of a frame: transposed, then flipped upside down, then left to right.

    Attributes:
        transposed: True if rows and columns are exchanged.
        vertical: True if it is flipped upside down.
        horizontal: True if it is flipped left to right.
    """

    transposed: bool
    vertical: bool
    horizontal: bool

    def applied(self, picture: Picture) -> Picture:
        """Return a picture [height, width, 3] as it is displayed."""
        turned = picture.swapaxes(0, 1) if self.transposed else picture
        return np.ascontiguousarray(turned[:: -1 if self.vertical else 1, :: -1 if self.horizontal else 1])


UPRIGHT = _Orientation(False, False, False)


def _orientation(frame: Any, before: _Orientation, damage: Damage) -> _Orientation:
    """Return the orientation that is nearest to the display matrix of a frame.

    In video streams a matrix comes with some frames, and holds until the next key frame.

    Args:
        frame: the frame.
        before: the orientation of the frame before.
        damage: notes orientations that are not exact.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV reads no side data of a frame that has some of a kind unknown to it
        damage.unmirrored = True
        turns = round(frame.rotation / 90) % 4  # counter-clockwise
        return _Orientation(turns % 2 == 1, turns in (1, 2), turns in (2, 3))
    if matrix is None:
        return UPRIGHT if frame.key_frame else before
    # A pixel at (x, y), counted to the right and downwards, is displayed at (a·x + c·y, b·x + d·y).
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    transposed = abs(b) + abs(c) > abs(a) + abs(d)
    if transposed:
        a, b, c, d = c, d, a, b
    damage.skewed |= bool(abs(b) + abs(c) > SKEW * (abs(a) + abs(d)))
    return _Orientation(bool(transposed), bool(d < 0), bool(a < 0))
