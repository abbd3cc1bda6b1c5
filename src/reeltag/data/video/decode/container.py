"""Open a media file: its streams, their packets and decoded frames, and the damage met on the way."""

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

MAX_PIXELS = 8192 * 8192  # largest frame that is decoded; 8K fits
STALLED_SECONDS = 10.0  # longest time to decode the next second
MAX_DAMAGED = 1000  # most damaged packets of a file


@dataclass
class Damage:
    """Count of damaged data that decoding skipped.

    Attributes:
        packets: number of packets that could not be decoded.
        samples: number of samples of sound that are not finite, taken as silence.
        peak: largest sample of sound, relative to full scale.
    """

    packets: int = 0
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

    def hear(self, samples: npt.NDArray[np.float32]) -> None:
        """Note how loud samples [n] are and how many are not finite."""
        loudness = np.abs(samples)
        self.samples += int(np.count_nonzero(~np.isfinite(loudness)))
        self.peak = max(self.peak, float(loudness.max(initial=0, where=np.isfinite(loudness))))


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
    if not pictures and not sound:
        raise VideoError(f"{path}: has neither pictures nor sound that can be decoded; leave it out")
    return Media(path, pictures, sound, seconds)


def decoded_frames(
    container: InputContainer, stream: Any, damage: Damage, clock: Watchdog, wanted: frozenset[int] | None = None
) -> Iterator[Any]:
    """Yield the frames of a stream; with `wanted`, skip other packets' frames to which no frame refers."""
    import av

    path = clock.path
    for packet in packets(container, stream):
        clock.check()
        if wanted is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted or not packet.size else "NONREF"
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.FFmpegError, ValueError):
            refuse_large(path, stream.codec_context)
            damage.count(path)
            continue
        yield from frames


def refuse_large(path: Path, context: Any) -> None:
    """Refuse a stream whose frames are too large.

    Raises:
        VideoError: they are.
    """
    if context.type == "video" and context.width * context.height > MAX_PIXELS:
        what = f"frames of {context.width} x {context.height} are larger than {MAX_PIXELS:,} pixels"
        raise VideoError(f"{path}: its {what}; make them smaller")


def packets(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream; a truncated file ends where it is cut off."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.FFmpegError):
            return
        yield packet


def origin(container: InputContainer, stream: Any) -> Fraction:
    """Return the time of the first picture; of the first sound if there is no picture."""
    first = best_stream(container, "video") or stream
    return Fraction((first.start_time or 0) * (first.time_base or 0))


def best_stream(container: InputContainer, kind: str) -> Any:
    """Return the first stream of a kind that can be decoded, covers excluded; None if there is none."""
    for stream in container.streams:
        if stream.type == kind and stream.codec_context is not None and not _is_cover(stream):
            return stream
    return None


def tells_times(container: InputContainer) -> bool:
    """Return True if packets carry presentation times; AVI stores only their order, and FFmpeg's guesses err."""
    return container.format.name != "avi"


def _is_cover(stream: Any) -> bool:
    return stream.type == "video" and bool(stream.disposition & stream.disposition.attached_pic)


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
