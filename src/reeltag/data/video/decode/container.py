"""Open a media file: its streams, their packets and decoded frames, and the damage met on the way."""

from __future__ import annotations

import time
import wave
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError, VideoError
from reeltag.core.storage import require_regular
from reeltag.core.text import counted
from reeltag.data.video.decode.clock import Clock
from reeltag.data.video.decode.joined import next_recording

if TYPE_CHECKING:
    from av.container import InputContainer

Kind = Literal["video", "audio"]

MAX_PIXELS = 8192 * 8192  # largest frame that is decoded; 8K fits
STALLED_SECONDS = 10.0  # longest time to decode the next second
MAX_DAMAGED = 1000  # most damaged packets of a file
MAX_SILENCE = 0.1  # seconds of gaps of sound without a remark: two recordings may be joined by less
NO_LENGTH = 2**31 - 2**16  # least number of bytes that programs give to WAV of unknown length
MAX_PROBED = 10_000  # most packets that are read to tell a film from a picture that stands still
LOUD = 4.0  # times full scale: lossy codecs exceed it by less, samples that were never divided by it by much more
MAX_REORDERED = 16  # most frames that are decoded before a frame and displayed after it
DEFAULT_RATE = 25  # pictures a second where nothing tells them, as in FFmpeg


@dataclass
class Damage:
    """Irregularities of a file that decoding dealt with.

    Attributes:
        packets: number of packets that could not be decoded.
        marked_packets: number of packets that FFmpeg marks as damaged, decoded as far as possible.
        marked_frames: the same of frames.
        gaps: number of gaps of sound.
        silence: duration of all gaps of sound, in seconds.
        restarts: number of times that the clock started anew; see `Clock`.
        unread_bytes: number of bytes of a recording with pictures that is joined to another, where FFmpeg ends.
        skewed: True if pictures are to be turned by an angle between right angles, and the nearest was taken.
        unmirrored: True if some of the pictures' side data cannot be read, so that only their angle is known.
        samples: number of samples of sound that are not finite, taken as silence.
        peak: largest sample of sound, relative to full scale.
    """

    packets: int = 0
    marked_packets: int = 0
    marked_frames: int = 0
    gaps: int = 0
    silence: float = 0.0
    restarts: int = 0
    unread_bytes: int = 0
    skewed: bool = False
    unmirrored: bool = False
    samples: int = 0
    peak: float = 0.0

    def count(self, path: Path) -> None:
        """Count one more damaged packet.

        Raises:
            VideoError: too many packets are damaged.
        """
        self.packets += 1
        if self.packets > MAX_DAMAGED:
            raise VideoError(f"{path}: more than {MAX_DAMAGED:,} of its packets are damaged; copy it again")

    @property
    def damaged(self) -> int:
        """Number of damaged packets and frames, decoded or not."""
        return self.packets + self.marked_packets + self.marked_frames

    def hear(self, samples: npt.NDArray[np.float32]) -> None:
        """Note how loud samples [n] are and how many are not finite."""
        loudness = np.abs(samples)
        self.samples += int(np.count_nonzero(~np.isfinite(loudness)))
        self.peak = max(self.peak, float(loudness.max(initial=0, where=np.isfinite(loudness))))

    def remarks(self) -> Iterator[str]:
        """Yield a remark, for people, about each kind of irregularity."""
        if self.samples:
            yield f"{counted(self.samples, 'sample')} of sound not finite, taken as silence"
        if self.peak > LOUD:
            yield f"sound of up to {self.peak:,.0f} times full scale"
        if self.packets:
            yield f"{counted(self.packets, 'damaged packet')} passed over"
        joints = 2 * self.restarts  # at which FFmpeg marks whole pictures and sound of MPEG-TS, too
        if (marked := max(self.marked_packets, self.marked_frames) - joints) > 0:  # most often the same ones
            yield f"{counted(marked, 'damaged packet')} decoded as far as possible"
        if self.silence > MAX_SILENCE:
            yield f"{counted(self.gaps, 'gap')} of sound, of {self.silence:.1f} seconds in all, taken as silence"
        if self.restarts:
            yield f"its clock starts anew {counted(self.restarts, 'time')}, and goes on at the end of what came before"
        if self.unread_bytes:
            yield f"its last {self.unread_bytes:,} bytes are another recording, which is not read; take them apart"
        if self.skewed:
            yield "its pictures are to be turned by an angle between right angles, taken as the nearest of these"
        if self.unmirrored:
            yield "its pictures have metadata that PyAV cannot read, so they are turned, but not mirrored"


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
class Watchdog:
    """Watchdog for files that yield no data for too long."""

    path: Path
    last: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """Note that the file yielded something."""
        self.last = time.monotonic()

    def check(self) -> None:
        """Give up a file that yielded nothing for too long.

        Raises:
            VideoError: it did.
        """
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
    with open_media(path) as container:
        pictures, sound = best_stream(container, "video") is not None, best_stream(container, "audio") is not None
        seconds = container.duration / 1e6 if container.duration and container.duration > 0 else None
        if seconds and container.format.name == "avi":  # FFmpeg's duration is of what is there
            promised = [each.frames / each.average_rate for each in container.streams.video if each.average_rate]
            seconds = max(seconds, *map(float, promised))
    if not pictures and not sound:
        raise VideoError(f"{path}: has neither pictures nor sound that can be decoded; leave it out")
    return Media(path, pictures, sound, seconds)


def first_instant(path: Path) -> Fraction:
    """Return the time at which second 0 begins: that of the first picture that decodes; without pictures, of the sound.

    No header has this time, since a recording may begin with packets that cannot be decoded.

    Args:
        path: the file.

    Returns:
        Seconds on the common clock, which the time stamps of all packets and frames follow here.

    Raises:
        VideoError: the pictures are too large, or decoding stalls for ten seconds.
    """
    kinds: tuple[Kind, ...] = ("video", "audio")
    for kind in kinds:
        with open_media(path) as container:
            stream = best_stream(container, kind)
            for at, _ in timed_frames(container, stream, Damage(), Watchdog(path)) if stream else ():
                return at
    return Fraction(0)


def timed_frames(
    container: InputContainer,
    stream: Any,
    damage: Damage,
    watchdog: Watchdog,
    is_needed: Callable[[Any], bool] | None = None,
) -> Iterator[tuple[Fraction, Any]]:
    """Yield the frames of `decoded_frames` in the order of display, with their times in seconds."""
    before, latest, told = None, None, tells_times(container)
    for frame in decoded_frames(container, stream, damage, watchdog, is_needed):
        ticks = frame.pts if told else frame.dts
        if ticks is not None:
            at = Fraction(ticks * (frame.time_base or stream.time_base))
        else:
            at = before[0] + duration(before[1], stream) if before else _untimed_start(container, stream)
        before = at, frame
        if latest is None or at > latest:  # the first of several at one time
            latest = at
            yield at, frame


def _untimed_start(container: InputContainer, stream: Any) -> Fraction:
    """Return the time in seconds of the first frame of a stream whose first packets have no time; 0 if none has.

    FFmpeg reads times before zero in Matroska as none: packets without a time end where the times begin.
    """
    import av

    before, times = Fraction(0), list[Fraction]()
    with _open(container.name) as again, suppress(av.FFmpegError):
        same = again.streams[stream.index]
        for packet in islice(again.demux([same]), MAX_PROBED):
            if packet.pts is not None:
                times.append(packet.pts * Fraction(packet.time_base))
            elif packet.size and not times:
                before += duration(packet, same)
            if len(times) > MAX_REORDERED:
                break
    return min(times) - before if times else Fraction(0)


def duration(frame: Any, stream: Any) -> Fraction:
    """Return the duration of a frame or packet in seconds; where none is told, of a picture at the guessed rate.

    A stream's average rate is not used: without time stamps it is 25, whatever the stream says.
    """
    if frame.duration and frame.time_base:
        return Fraction(frame.duration * frame.time_base)
    return 1 / Fraction((stream.type == "video" and stream.guessed_rate) or DEFAULT_RATE)


def decoded_frames(
    container: InputContainer,
    stream: Any,
    damage: Damage,
    watchdog: Watchdog,
    is_needed: Callable[[Any], bool] | None = None,
) -> Iterator[Any]:
    """Yield the frames of a stream, with time stamps of the common clock.

    Args:
        container: the file, just opened.
        stream: a stream of `best_stream`.
        damage: counts what is irregular.
        watchdog: gives up a file that yields nothing for too long.
        is_needed: called with each packet; False if it is not to be decoded.

    Raises:
        VideoError: the pictures are too large, too many packets are damaged, or decoding stalls.
    """
    import av

    path, piped = watchdog.path, _is_piped(container)
    if stream.type == "video":
        refuse_large(path, stream.codec_context)
        limit = {"max_pixels": str(MAX_PIXELS)}  # frames that grow later count as damage
        stream.codec_context.options = {**stream.codec_context.options, **limit}
    for packet in packets(container, stream, damage):
        watchdog.check()
        if is_needed is not None and not is_needed(packet):
            continue
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.FFmpegError, ValueError):
            refuse_large(path, stream.codec_context)
            damage.count(path)
            continue
        damage.marked_packets += packet.is_corrupt and not piped
        for frame in frames:
            damage.marked_frames += frame.is_corrupt
            yield frame


def _is_piped(container: InputContainer) -> bool:
    """Return True for WAV written to a pipe, whose header has no length; FFmpeg marks the last packet, though whole."""
    if container.format.name == "wav":
        with suppress(wave.Error, EOFError), wave.open(container.name, "rb") as file:
            told = file.getnframes() * file.getnchannels() * file.getsampwidth()
            return not 0 < told < NO_LENGTH
    return False


def refuse_large(path: Path, context: Any) -> None:
    """Refuse a stream whose frames are too large.

    Raises:
        VideoError: they are.
    """
    if context.type == "video" and context.width * context.height > MAX_PIXELS:
        what = f"frames of {context.width} x {context.height} are larger than {MAX_PIXELS:,} pixels"
        raise VideoError(f"{path}: its {what}; make them smaller")


def packets(container: InputContainer, stream: Any, damage: Damage) -> Iterator[Any]:
    """Yield the packets of a stream, with time stamps of the common clock; a truncated file ends where it is cut off.

    The clock is that of pictures and sound together, so the packets of both are read.

    Args:
        container: the file, just opened.
        stream: a stream of `best_stream`.
        damage: its `restarts` and `unread_bytes` are counted.
    """
    import av

    flags: Any = av.format.Flags
    clock = Clock(joinable=bool(container.format.flags & flags.ts_discont.value))
    with ExitStack() as opened:
        part, begin = container, 0
        while wanted := best_stream(part, stream.type):
            played = [best for best in (best_stream(part, "video"), best_stream(part, "audio")) if best]
            end = begin
            for packet in _until_damaged(part.demux(played)):
                end = max(end, begin + (packet.pos or 0) + packet.size)
                anew = clock.mend(packet)
                if part.format.name == "ogg":  # whose first packet has a time of the part before, but its own tags
                    anew = packet.has_sidedata("strings_metadata")
                if anew and packet.stream.type == "audio":
                    packet.stream.codec_context.flush_buffers()  # Opus would go on from the part before with a bang
                if packet.stream_index == wanted.index:
                    damage.restarts = max(damage.restarts, clock.restarts)
                    yield packet
            following = next_recording(Path(container.name), container.format.name, end) if end > begin else None
            if following is not None and [each.type for each in played] != ["audio"]:
                damage.unread_bytes = container.size - following
                return
            opened.close()
            if following is None:
                return
            try:
                part, begin = opened.enter_context(_open(container.name, following)), following
            except av.FFmpegError:
                return


def _until_damaged(packets: Iterator[Any]) -> Iterator[Any]:
    import av

    with suppress(av.FFmpegError):
        yield from packets


def best_stream(container: InputContainer, kind: Kind) -> Any:
    """Return the stream of a kind that FFmpeg plays, sound of the pictures' programme; None if none can be decoded.

    Covers are no films. A picture that stands still, even if it is the default, is passed over for a stream that moves.
    """
    related = best_stream(container, "video") if kind == "audio" else None
    streams = [stream for stream in container.streams if stream.type == kind and _is_playable(stream)]
    best = container.streams.best(kind, related)
    streams.sort(key=lambda stream: best is None or stream.index != best.index)
    if kind == "video" and len(streams) > 1:
        counts = _count_packets(container.name, [stream.index for stream in streams])
        streams.sort(key=lambda stream: counts[stream.index] < 2)
    return streams[0] if streams else None


def _is_playable(stream: Any) -> bool:
    no_film = stream.disposition.attached_pic | stream.disposition.timed_thumbnails | stream.disposition.still_image
    return stream.codec_context is not None and not (stream.type == "video" and stream.disposition & no_film)


def _count_packets(name: str, indices: list[int]) -> Counter[int]:
    """Count the packets of streams, up to the second one of the first stream."""
    import av

    counts: Counter[int] = Counter()
    with _open(name) as container, suppress(av.FFmpegError):
        for packet in islice(container.demux([container.streams[index] for index in indices]), MAX_PROBED):
            counts[packet.stream_index] += packet.size > 0
            if counts[indices[0]] > 1:
                break
    return counts


def tells_times(container: InputContainer) -> bool:
    """Return True if packets carry presentation times; AVI stores only their order, and FFmpeg's guesses err."""
    return container.format.name != "avi"


@contextmanager
def open_media(path: Path) -> Iterator[InputContainer]:
    """Open a local media file.

    Raises:
        UsageError: PyAV is not installed.
        VideoError: the file is missing or is not a media file.
    """
    try:
        import av
    except ImportError as error:
        raise UsageError(f"PyAV is not installed; `{install_command('video')}`") from error
    # At any other level threads of a decoder wait for the interpreter's lock, perhaps forever.
    av.logging.set_level(None)
    try:
        if not require_regular(path).stat().st_size:
            raise VideoError(f"{path}: is empty; copy it again")
        container = _open(str(path.absolute()))
    except av.FFmpegError as error:
        raise VideoError(f"{path}: is not a media file that can be read ({error.strerror}); is it complete?") from error
    except OSError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror})") from error
    with container:
        yield container


def _open(name: str, begin: int = 0) -> InputContainer:
    """Open a file, or what begins at a place in it."""
    import av

    part = f"subfile,,start,{begin},end,0,,:{name}" if begin else name
    options = {"protocol_whitelist": "file,subfile"}
    return av.open(part, metadata_errors="replace", options=options, timeout=STALLED_SECONDS)
