#!/usr/bin/env bash
# av 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6
#
# Behaviour: of H.264 with B-frames in AVI, frames come in the right order, but their presentation times are shuffled:
# AVI stores no such times, and FFmpeg derives them from the order of the packets as if it were that of display. Times
# of decoding (dts) ascend. Whoever seeks, samples or sorts by `frame.pts` gets the pictures of other moments, and each
# time is a whole number of frames, so nothing looks wrong. The same packets in Matroska have the right times.
#
# Guess before running: the times of decoded frames ascend, in any container.
#
# Output seen:
#   mkv pictures 0 1 2 3 4 5 6 7 8 9 10 11
#   mkv times    0 1 2 3 4 5 6 7 8 9 10 11
#   avi pictures 0 1 2 3 4 5 6 7 8 9 10 11
#   avi times    1 4 3 5 2 6 8 9 7 11 12 10
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
from fractions import Fraction

import av
import numpy as np

FRAMES, RATE = 12, 10


def write(path):
    """Write pictures whose grey tells their number."""
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options={"x264-params": "bframes=3:b-adapt=0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


seen = {}
for kind in ("mkv", "avi"):
    write(f"film.{kind}")
    with av.open(f"film.{kind}") as film:
        frames = [(frame.to_ndarray(format="rgb24").mean(), frame) for frame in film.decode(video=0)]
        seen[f"{kind} pictures"] = [round(float(grey) / 20) for grey, _ in frames]
        seen[f"{kind} times"] = [
            None if frame.pts is None else round(frame.pts * frame.time_base * RATE) for _, frame in frames
        ]
for name, numbers in seen.items():
    print(f"{name:<12}", *numbers)
order = list(range(FRAMES))
right = [seen[name] == order for name in ("mkv pictures", "mkv times", "avi pictures")]
sys.exit(not all(right) or sorted(seen["avi times"], key=lambda at: (at is None, at)) == seen["avi times"])
PYTHON
