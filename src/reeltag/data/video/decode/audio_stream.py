"""Decode the sound of a video as mono samples.

Channels are averaged before the sound is resampled, so equal channels sound as one of them. FFmpeg's own matrix adds
them up: into floats, a stereo sound is 3 dB louder than the same in mono, and may exceed full scale. A mean is also
what the encoders of sound were trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import VideoError
from reeltag.data.video.decode.clock import BACK
from reeltag.data.video.decode.container import Damage, Watchdog, best_stream, decoded_frames, first_instant, open_media
from reeltag.data.video.decode.video_stream import MAX_SECONDS

if TYPE_CHECKING:
    from av import AudioFrame, AudioResampler
    from av.container import InputContainer

Samples = npt.NDArray[np.float32]
# Seconds after the first picture, or None for what follows the piece before; samples a second; samples [n].
_Piece = tuple[Fraction | None, int, Samples]

# Difference between time stamps and samples from which on the time stamps are followed: less than the 20 ms of a packet
# that may be lost, and more than time stamps are rounded by, which is a millisecond in most containers.
JUMP_SECONDS = Fraction(15, 1000)
_LEVELS = {"u8": (128, 2**7), "s16": (0, 2**15), "s32": (0, 2**31), "flt": (0, 1), "dbl": (0, 1)}  # zero, full scale
_MAX_PLANES = 7  # of 8 and more planes PyAV reads past the end of their list


def sound(path: Path, rate: int, damage: Damage, *, seconds: int = MAX_SECONDS) -> Samples:
    """Decode the sound of a file as mono, the mean of its channels, on the clock of its pictures.

    Gaps are silent. Where two pieces of sound have the same time the first is kept, or, in a file without pictures, the
    second follows it. Samples are not clipped: those
    of lossy codecs and of floats may exceed full scale.

    Args:
        path: the file.
        rate: samples a second.
        damage: counts packets that cannot be decoded and samples that are not finite, which become silence.
        seconds: largest number of seconds to decode.

    Returns:
        Samples [N], N ≤ rate · seconds; full scale is [-1, 1].

    Raises:
        VideoError: decoding stalls for ten seconds, or the sound cannot be resampled.
    """
    samples = np.zeros(rate * seconds, np.float32)
    filled = 0
    with open_media(path) as container:
        alone = best_stream(container, "video") is None
        pieces = _pieces(container, damage, Watchdog(path))
        for begin, values in _resampled(path, _in_line(pieces) if alone else pieces, rate):
            if begin >= len(samples):
                break
            place = max(begin, filled)  # sound before the first picture is dropped, too
            into = samples[place : max(begin + len(values), place)]
            into[:] = values[place - begin :][: len(into)]
            filled = place + len(into)
    return samples[:filled]


def _in_line(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """Move pieces of sound that would begin before the end of those before them, and all that follow."""
    moved = due = Fraction(0)
    for at, rate, mono in pieces:
        begin = due if at is None else at + moved
        if begin < due - BACK:
            moved += due - begin
            begin = due
        due = begin + Fraction(len(mono), rate)
        yield begin, rate, mono


def _resampled(path: Path, pieces: Iterable[_Piece], rate: int) -> Iterator[tuple[int, Samples]]:
    """Resample pieces of sound; yield sounds with the index of their first sample.

    Args:
        path: the file.
        pieces: pieces of sound.
        rate: samples a second to yield.
    """
    stretch = None
    for at, own_rate, mono in pieces:
        due = Fraction(0) if stretch is None else stretch.end
        jumps = at is not None and abs(at - due) > JUMP_SECONDS
        if stretch is None or own_rate != stretch.own_rate or jumps:
            if stretch is not None:
                yield from stretch.flush()
            stretch = _Stretch(path, due if at is None else at, own_rate, rate)
        yield from stretch.add(mono)
    if stretch is not None:
        yield from stretch.flush()


class _Stretch:
    """Resampler of sound without a gap; flushed at its end, it neither delays nor shortens the sound.

    Args:
        path: the file.
        begin: time of the first sample, in seconds.
        own_rate: samples a second to resample.
        rate: samples a second to yield.
    """

    def __init__(self, path: Path, begin: Fraction, own_rate: int, rate: int) -> None:
        import av

        self.path, self.own_rate, self.end = path, own_rate, begin
        self._position = round(begin * rate)
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        self._waiting = np.zeros(0, np.float32)

    def add(self, mono: Samples) -> Iterator[tuple[int, Samples]]:
        """Resample samples [n], in pieces of a second; the last stay until `flush`."""
        self.end += Fraction(len(mono), self.own_rate)
        self._waiting = np.concatenate([self._waiting, mono])
        while len(self._waiting) >= self.own_rate:
            second, self._waiting = np.split(self._waiting, [self.own_rate])
            yield from self._resample(second)

    def flush(self) -> Iterator[tuple[int, Samples]]:
        """Yield what remains of the sound."""
        if len(self._waiting):
            yield from self._resample(self._waiting)
        yield from self._placed(self._resampler.resample(None))

    def _resample(self, mono: Samples) -> Iterator[tuple[int, Samples]]:
        import av

        frame = av.AudioFrame.from_ndarray(mono[None], format="flt", layout="mono")
        frame.sample_rate = self.own_rate
        try:
            resampled = self._resampler.resample(frame)
        except av.FFmpegError as error:
            what = f"its sound, of {self.own_rate:,} samples a second, cannot be resampled ({error.strerror})"
            raise VideoError(f"{self.path}: {what}; convert it") from error
        yield from self._placed(resampled)

    def _placed(self, frames: list[AudioFrame]) -> Iterator[tuple[int, Samples]]:
        for frame in frames:
            values = frame.to_ndarray()[0]
            yield self._position, values
            self._position += len(values)


def _pieces(container: InputContainer, damage: Damage, clock: Watchdog) -> Iterator[_Piece]:
    """Yield decoded sound as mono."""
    import av

    stream = best_stream(container, "audio")
    if stream is None:
        return
    start, form, packed = first_instant(clock.path), None, av.AudioResampler(format="flt")
    for frame in decoded_frames(container, stream, damage, clock):
        if form != (form := (frame.format.name, frame.layout.name, frame.sample_rate)):
            packed = av.AudioResampler(format="flt")  # the format may change within a stream
        at = None if frame.pts is None else frame.pts * (frame.time_base or stream.time_base) - start
        try:
            mono = _mixed(frame, packed)
        except (av.FFmpegError, ValueError):
            damage.count(clock.path)
            continue
        clock.tick()
        damage.hear(mono)
        yield at, frame.sample_rate, np.nan_to_num(mono, copy=False, posinf=0, neginf=0)


def _mixed(frame: AudioFrame, packed: AudioResampler) -> Samples:
    """Return the mean of a frame's channels, [n]."""
    kind, channels = frame.format.packed.name, frame.layout.nb_channels
    if kind not in _LEVELS or (frame.format.is_planar and channels > _MAX_PLANES):
        (frame,) = packed.resample(frame)
        kind = frame.format.name
    zero, full = _LEVELS[kind]
    values = frame.to_ndarray()
    values = values if frame.format.is_planar else values.reshape(-1, channels).T
    mono: Samples = ((values.mean(0) - zero) / full).astype(np.float32)
    return mono
