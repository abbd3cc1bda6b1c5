"""Decode video files to one picture and one second of sound for each second.

Second k of a video begins k seconds after its first frame. Its picture is the frame displayed at k + 0.5; its sound is
that of [k, k + 1). The length of a video is the number of seconds that have a picture at their middle, at least one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import UsageError, VideoError
from reeltag.core.storage import require_regular

if TYPE_CHECKING:
    from av.container import InputContainer

Picture = npt.NDArray[np.uint8]
Samples = npt.NDArray[np.float32]

MAX_SECONDS = 300  # longest part of a video that is read, as in YouTube-8M's frame-level records
MAX_PIXELS = 8192 * 8192  # largest frame that is decoded; 8K fits
STALLED_SECONDS = 10.0  # longest time to decode the next second
MAX_PACKETS = 1000 * MAX_SECONDS  # largest number of packets whose time stamps are kept
MAX_DAMAGED = 1000  # most damaged packets of a file
JUMP_SECONDS = 0.1  # gap between time stamps and samples from which on the time stamps are followed


@dataclass
class Damage:
    """Count of damaged data that decoding skipped.

    Attributes:
        packets: number of packets that could not be decoded.
    """

    packets: int = 0

    def count(self, path: Path) -> None:
        """Count one more damaged packet.

        Raises:
            VideoError: too many packets are damaged.
        """
        self.packets += 1
        if self.packets > MAX_DAMAGED:
            raise VideoError(f"{path}: more than {MAX_DAMAGED:,} of its packets are damaged; copy it again")


@dataclass(frozen=True)
class Media:
    """Streams and duration of a file.

    Attributes:
        path: the file.
        pictures: True if it has a video stream that can be decoded; a cover image does not count.
        sound: True if it has an audio stream that can be decoded.
        seconds: duration according to its header; None if the header has none.
    """

    path: Path
    pictures: bool
    sound: bool
    seconds: float | None


@dataclass
class _Watchdog:
    """Watchdog for files that yield no data for too long."""

    path: Path
    last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        self.last = time.monotonic()

    def check(self) -> None:
        if time.monotonic() - self.last > STALLED_SECONDS:
            raise VideoError(
                f"{self.path}: yielded nothing for {STALLED_SECONDS:g} seconds; convert it, or leave it out"
            )


def probe(path: Path) -> Media:
    """Read the streams and duration of a file.

    Raises:
        UsageError: PyAV is not installed.
        VideoError: the file is missing, is not a media file, or has neither pictures nor sound that can be decoded.
    """
    with _opened(path) as container:
        pictures, sound = _stream(container, "video") is not None, _stream(container, "audio") is not None
        seconds = container.duration / 1e6 if container.duration and container.duration > 0 else None
    if not pictures and not sound:
        raise VideoError(f"{path}: has neither pictures nor sound that can be decoded; leave it out")
    return Media(path, pictures, sound, seconds)


def pictures(
    path: Path, size: tuple[int, int] | int, damage: Damage, *, seconds: int = MAX_SECONDS, threads: int = 1
) -> Iterator[Picture]:
    """Decode the picture of each second, rotated upright and scaled.

    Args:
        path: the file.
        size: height and width, which ignores the aspect ratio; or the longer side alone, which keeps it.
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
            origin, shape = at, _shape(path, frame, size) if isinstance(size, int) else size
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


def sound(path: Path, rate: int, damage: Damage, *, seconds: int = MAX_SECONDS) -> Samples:
    """Decode the first audio stream of a file as mono, on the clock of its pictures; gaps are silent.

    Args:
        path: the file.
        rate: samples a second.
        damage: counts packets that cannot be decoded.
        seconds: largest number of seconds to decode.

    Returns:
        Samples [N] in [-1, 1], N ≤ rate · seconds.

    Raises:
        VideoError: decoding stalls for ten seconds.
    """
    samples = np.zeros(rate * seconds, np.float32)
    position, end = None, 0
    with _opened(path) as container:
        for at, values in _mono(container, rate, damage, _Watchdog(path)):
            ahead = 0 if at is None or position is None else at * rate - position
            if ahead < -JUMP_SECONDS * rate:
                continue  # a clock that runs backwards
            if position is None or ahead > JUMP_SECONDS * rate:
                position = round((at or 0) * rate)
            begin = max(position, 0)
            into = samples[begin : max(position + len(values), begin)]
            into[:] = np.nan_to_num(values[begin - position :][: len(into)]).clip(-1, 1)
            position += len(values)
            end = max(end, min(position, len(samples)))
            if position >= len(samples):
                break
    return samples[:end]


def _mono(
    container: InputContainer, rate: int, damage: Damage, clock: _Watchdog
) -> Iterator[tuple[Fraction | None, Samples]]:
    """Yield resampled mono samples, each piece with its time after the first picture if that is known."""
    import av

    stream = _stream(container, "audio")
    if stream is None:
        return
    origin, form, resampler = _origin(container, stream), None, None
    for frame in _decoded(container, stream, damage, clock):
        if form != (
            form := (frame.format.name, frame.layout.name, frame.sample_rate)
        ):  # the format may change within a stream
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        assert resampler is not None
        at = None if frame.pts is None else frame.pts * (frame.time_base or stream.time_base) - origin
        try:
            parts = resampler.resample(frame)
        except (av.FFmpegError, ValueError):
            damage.count(clock.path)
            continue
        for part in parts:
            clock.tick()
            yield at, part.to_ndarray()[0]


def _frames(path: Path, damage: Damage, seconds: int, threads: int) -> Iterator[tuple[Fraction, Any]]:
    """Yield frames in display order with their times; frames that no other frame refers to may be skipped."""
    wanted = _wanted(path, seconds)
    with _opened(path) as container:
        stream = _stream(container, "video")
        if stream is None:
            raise VideoError(f"{path}: has no pictures")
        _refuse_large(path, stream.codec_context)
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # frames that grow later count as damage
        stream.codec_context.thread_type, stream.codec_context.thread_count = "AUTO", threads
        clock, rate, latest = _Watchdog(path), stream.average_rate or Fraction(25), None
        for frame in _decoded(container, stream, damage, clock, wanted):
            base = frame.time_base or stream.time_base
            ticks = frame.pts if _tells_times(container) else frame.dts
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
    with _opened(path) as container:
        stream = _stream(container, "video")
        if stream is None or stream.time_base is None or not _tells_times(container):
            return None
        clock, latest = _Watchdog(path), 0
        for packet in _packets(container, stream):
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


def _decoded(
    container: InputContainer, stream: Any, damage: Damage, clock: _Watchdog, wanted: frozenset[int] | None = None
) -> Iterator[Any]:
    """Yield the frames of a stream; with `wanted`, skip other packets' frames to which no frame refers."""
    import av

    path = clock.path
    for packet in _packets(container, stream):
        clock.check()
        if wanted is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.FFmpegError, ValueError):
            _refuse_large(path, stream.codec_context)
            damage.count(path)
            continue
        yield from frames


def _refuse_large(path: Path, context: Any) -> None:
    if context.type == "video" and context.width * context.height > MAX_PIXELS:
        what = f"frames of {context.width} x {context.height} are larger than {MAX_PIXELS:,} pixels"
        raise VideoError(f"{path}: its {what}; make them smaller")


def _packets(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream; a truncated file ends where it is cut off."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        yield packet


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


def _shape(path: Path, frame: Any, longest: int) -> tuple[int, int]:
    """Return the height and width, both even, of a frame scaled to a longer side; heeds non-square pixels."""
    with _opened(path) as container:
        pixel = _stream(container, "video").sample_aspect_ratio or 1
    height, width = float(frame.height), float(frame.width * pixel)
    if round(frame.rotation / 90) % 2:
        height, width = width, height
    scale = longest / max(height, width)
    return 2 * max(1, round(height * scale / 2)), 2 * max(1, round(width * scale / 2))


def _duration(frame: Any) -> Fraction:
    if frame.duration and frame.time_base:
        return Fraction(frame.duration * frame.time_base)
    return Fraction(1, 25)


def _origin(container: InputContainer, stream: Any) -> Fraction:
    """Return the time of the first picture; of the first sound if there is no picture."""
    first = _stream(container, "video") or stream
    return Fraction((first.start_time or 0) * (first.time_base or 0))


def _stream(container: InputContainer, kind: str) -> Any:
    """Return the first stream of a kind that can be decoded, covers excluded; None if there is none."""
    for stream in container.streams:
        if stream.type == kind and stream.codec_context is not None and not _is_cover(stream):
            return stream
    return None


def _tells_times(container: InputContainer) -> bool:
    """Return True if packets carry presentation times; AVI stores only their order, and FFmpeg's guesses err."""
    return container.format.name != "avi"


def _is_cover(stream: Any) -> bool:
    return stream.type == "video" and bool(stream.disposition & stream.disposition.attached_pic)


@contextmanager
def _opened(path: Path) -> Iterator[InputContainer]:
    try:
        import av
    except ImportError as error:
        raise UsageError("PyAV is not installed; `pip install 'reeltag[video]'`") from error
    av.logging.set_level(av.logging.PANIC)  # damage is reported in one line of our own
    try:
        if not require_regular(path).stat().st_size:
            raise VideoError(f"{path}: is empty; copy it again")
        container = av.open(
            str(path.absolute()),
            metadata_errors="replace",
            options={"protocol_whitelist": "file"},
            timeout=STALLED_SECONDS,
        )
    except av.FFmpegError as error:
        raise VideoError(f"{path}: is not a media file that can be read ({error.strerror}); is it complete?") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
    with container:
        yield container
