"""Decode the sound of a video as mono samples.

Channels are averaged before the sound is resampled, so equal channels sound as one of them. FFmpeg's own matrix adds
them up: into floats, a stereo sound is 3 dB louder than the same in mono, and may exceed full scale. A mean is also
what the encoders of sound were trained with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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

# Difference between time stamps and samples from which on the time stamps are followed: less than the 20 ms of a packet
# that may be lost, and more than time stamps are rounded by, which is a millisecond in most containers.
JUMP = 0.015
_LEVELS = {"u8": (128, 2**7), "s16": (0, 2**15), "s32": (0, 2**31), "flt": (0, 1), "dbl": (0, 1)}  # zero, full scale
_MAX_PLANES = 7  # that PyAV turns into arrays; more are packed first


class _Form(NamedTuple):
    kind: str  # packed sample format
    planar: bool
    channels: int
    rate: int  # samples a second


# Time in seconds after the first picture, None if unknown; form; values as PyAV gives them.
_Frame = tuple[float | None, _Form, npt.NDArray[Any]]
# Time in seconds, None if it continues the piece before; samples a second; samples [n].
_Piece = tuple[float | None, int, Samples]


def sound(path: Path, rate: int, damage: Damage, *, seconds: int = MAX_SECONDS) -> Samples:
    """Decode the sound of a file as mono, the mean of its channels, on the clock of its pictures.

    Gaps are silent. Where two sounds have the same time the first is kept; in a file without pictures, the second
    follows it. Samples are not clipped: those of lossy codecs and of floats may exceed full scale.

    Args:
        path: the file.
        rate: samples a second.
        damage: counts damaged packets, gaps, and samples that are not finite, which become silence.
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
        pieces = _pieces(_frames(path, container, damage), damage, alone=alone)
        for begin, values in _resampled(path, pieces, rate):
            if begin >= len(samples):
                break
            if filled and begin > filled:
                damage.gaps, damage.silence = damage.gaps + 1, damage.silence + (begin - filled) / rate
            place = max(begin, filled)  # sound before the first picture is dropped, too
            into = samples[place : max(begin + len(values), place)]
            into[:] = values[place - begin :][: len(into)]
            filled = place + len(into)
    return samples[:filled]


def _frames(path: Path, container: InputContainer, damage: Damage) -> Iterator[_Frame]:
    import av

    stream = best_stream(container, "audio")
    if stream is None:
        return
    start, form, packed = float(first_instant(path)), None, av.AudioResampler(format="flt")
    watchdog = Watchdog(path)
    for frame in decoded_frames(container, stream, damage, watchdog):
        at = None if frame.pts is None else frame.pts * float(frame.time_base or stream.time_base) - start
        if form != (form := _form(frame)):
            packed = av.AudioResampler(format="flt")  # the format may change within a stream
        try:
            if form.kind not in _LEVELS or (form.planar and form.channels > _MAX_PLANES):
                (frame,) = packed.resample(frame)
            values = frame.to_ndarray()
        except (av.FFmpegError, ValueError):
            damage.count(path)
            continue
        watchdog.tick()
        yield at, _form(frame), values


def _form(frame: AudioFrame) -> _Form:
    form = frame.format
    return _Form(form.packed.name, form.is_planar, frame.layout.nb_channels, frame.sample_rate)


def _pieces(frames: Iterable[_Frame], damage: Damage, *, alone: bool) -> Iterator[_Piece]:
    """Mix frames to mono, in pieces of about a second, which continue each other where there is no gap.

    Args:
        frames: decoded frames.
        damage: counts samples that are not finite.
        alone: True if frames that begin before the end of those before them are moved there, with all that follow.
    """
    form, waiting, length = None, list[npt.NDArray[Any]](), 0
    begin, end, moved = None, 0.0, 0.0
    for at, this, values in frames:
        time = end if at is None else at + moved
        if alone and time < end - BACK:
            time, moved = end, moved + end - time
        jumps = form is None or abs(time - end) > JUMP
        if form and (jumps or form != this or length >= form.rate):
            yield begin, form.rate, _mixed(waiting, form, damage)
            begin, waiting, length = None, [], 0
        if jumps:
            end = time
        if jumps or form != this:
            begin = end
        form, count = this, values.shape[1] // (1 if this.planar else this.channels)
        waiting.append(values)
        length, end = length + count, end + count / this.rate
    if form:
        yield begin, form.rate, _mixed(waiting, form, damage)


def _mixed(values: Sequence[npt.NDArray[Any]], form: _Form, damage: Damage) -> Samples:
    """Return the mean of the channels, [n]."""
    joined = np.concatenate(values, 1)
    zero, full = _LEVELS[form.kind]
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is counted
        mean = (joined if form.planar else joined.reshape(-1, form.channels).T).mean(0)
        mono: Samples = ((mean - zero) / full).astype(np.float32)
    damage.hear(mono)
    return np.nan_to_num(mono, copy=False, posinf=0, neginf=0)


def _resampled(path: Path, pieces: Iterable[_Piece], rate: int) -> Iterator[tuple[int, Samples]]:
    """Resample pieces of sound; yield samples with the index of the first.

    The resampler is flushed where a sound ends, so it neither delays nor shortens it.
    """
    import av

    resampler, position = None, 0
    for begin, own_rate, mono in pieces:
        if begin is not None:
            yield position, _converted(resampler, None)
            resampler, position = av.AudioResampler(format="flt", layout="mono", rate=rate), round(begin * rate)
        for cut in range(0, len(mono), own_rate):  # a second at a time, which bounds memory at the lowest rates
            frame = av.AudioFrame.from_ndarray(mono[None, cut : cut + own_rate], format="flt", layout="mono")
            frame.sample_rate = own_rate
            try:
                values = _converted(resampler, frame)
            except av.FFmpegError as error:
                what = f"its sound, of {own_rate:,} samples a second, cannot be resampled ({error.strerror})"
                raise VideoError(f"{path}: {what}; convert it") from error
            yield position, values
            position += len(values)
    yield position, _converted(resampler, None)


def _converted(resampler: AudioResampler | None, frame: AudioFrame | None) -> Samples:
    """Return the samples [n] of a frame that are complete; of no frame, those that remain."""
    parts = resampler.resample(frame) if resampler else []
    return np.concatenate([np.zeros(0, np.float32), *(part.to_ndarray()[0] for part in parts)])
