"""Decode the sound of a video as mono samples."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from reeltag.data.video.decode.container import Damage, Watchdog, best_stream, decoded_frames, first_instant, open_media
from reeltag.data.video.decode.video_stream import MAX_SECONDS

if TYPE_CHECKING:
    from av.container import InputContainer

Samples = npt.NDArray[np.float32]

JUMP_SECONDS = 0.1  # gap between time stamps and samples from which on the time stamps are followed


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
    with open_media(path) as container:
        for at, values in _mono(container, rate, damage, Watchdog(path)):
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
    container: InputContainer, rate: int, damage: Damage, clock: Watchdog
) -> Iterator[tuple[Fraction | None, Samples]]:
    """Yield resampled mono samples, each piece with its time after the first picture if that is known."""
    import av

    stream = best_stream(container, "audio")
    if stream is None:
        return
    start, form, resampler = first_instant(clock.path), None, None
    for frame in decoded_frames(container, stream, damage, clock):
        if form != (
            form := (frame.format.name, frame.layout.name, frame.sample_rate)
        ):  # the format may change within a stream
            resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        assert resampler is not None
        at = None if frame.pts is None else frame.pts * (frame.time_base or stream.time_base) - start
        try:
            parts = resampler.resample(frame)
        except (av.FFmpegError, ValueError):
            damage.count(clock.path)
            continue
        for part in parts:
            clock.tick()
            yield at, part.to_ndarray()[0]
