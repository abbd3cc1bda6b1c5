"""Mend time stamps that start anew, wrap or run backwards, so that playback goes on at the end of what came before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

BACK = 0.1  # seconds that a clock may go back without starting anew, as in FFmpeg
AHEAD = 10.0  # seconds that it may jump ahead, in formats whose clock may start anew, as in FFmpeg
WRAPS = (2**31 / 1000, 2**32 / 1000)  # seconds that a clock of 31 or 32 bits jumps as it wraps; 24 days are no gap


@dataclass
class _Stream:
    """State of one stream.

    Attributes:
        part: number of the part that it is in.
        latest: mended time of decoding of its last packet, in seconds.
        end: mended time at which all its packets have been shown.
    """

    part: int
    latest: float = -math.inf
    end: float = -math.inf


class Clock:
    """Common clock of the streams of a file.

    A file consists of parts with a clock each, such as recordings that were joined. The stream that jumps first begins
    a part, at the end of what it showed before. The others follow with the same offset, so that pictures and sound stay
    together; where one would overlap its own end, the whole part moves on.

    Args:
        joinable: True if a part of this format may begin with any jump ahead; otherwise that is a gap, unless the
            clock wraps.
    """

    def __init__(self, *, joinable: bool) -> None:
        self._joinable = joinable
        self._offsets = [0.0]  # of each part, in seconds
        self._streams: dict[int, _Stream] = {}

    @property
    def restarts(self) -> int:
        """Number of times that the clock started anew."""
        return len(self._offsets) - 1

    def mend(self, packet: Any) -> bool:
        """Replace the time stamps of the file's next packet by those of the common clock.

        Returns:
            True if its stream begins another part with it.
        """
        base, pts, dts = float(packet.time_base), packet.pts, packet.dts
        if pts is None and dts is None:
            return False
        shown = (dts if pts is None else pts) * base
        stream = self._streams.setdefault(packet.stream_index, _Stream(len(self._offsets) - 1))
        part = stream.part
        if dts is not None:  # times of display are not in order, and their jumps mean nothing
            self._follow(stream, dts * base, shown)
        offset = self._offsets[stream.part]
        if offset:
            packet.pts = None if pts is None else pts + round(offset / base)
            packet.dts = None if dts is None else dts + round(offset / base)
        if dts is not None:
            stream.latest = dts * base + offset
        stream.end = max(stream.end, shown + offset + (packet.duration or 0) * base)
        return stream.part != part

    def _follow(self, stream: _Stream, decoded: float, shown: float) -> None:
        """Move a stream on to another part if its next packet, from its times in the file, belongs there."""
        ahead = decoded + self._offsets[stream.part] - stream.latest
        wrap = next((wrap for wrap in WRAPS if abs(ahead - wrap) <= AHEAD), None)
        gap = ahead <= AHEAD or (wrap is None and not self._joinable)
        if stream.latest == -math.inf or (ahead >= -BACK and gap):
            return
        for part in range(stream.part + 1, len(self._offsets)):  # begun by another stream
            if abs(decoded + self._offsets[part] - stream.latest) <= AHEAD:
                self._offsets[part] += max(0.0, stream.end - (shown + self._offsets[part]))
                stream.part = part
                return
        self._offsets.append(stream.end - shown if wrap is None else self._offsets[stream.part] - wrap)
        stream.part = len(self._offsets) - 1
