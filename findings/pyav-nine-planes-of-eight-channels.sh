#!/usr/bin/env bash
# av 18.1.0 (FFmpeg 8.1.2)
#
# Behaviour: AudioFrame.planes of a planar frame with eight channels, such as 7.1 decoded from AAC or Opus, holds nine
# planes. PyAV counts pointers until one is null, but FFmpeg does not end its list of eight with one, so the ninth is
# the field behind it: a line size read as an address. Up to seven channels the number is right. A program that goes
# over all planes, as AudioFrame.to_ndarray does, reads memory that is no sound. To be safe it converts frames of eight
# and more channels to a packed format first, as AudioResampler(format="flt") does.
#
# Guess before running: as many planes as channels, whatever their number.
#
# Output seen:
#   stereo 2 channels: planar 2 planes, packed 1
#   5.1    6 channels: planar 6 planes, packed 1
#   6.1    7 channels: planar 7 planes, packed 1
#   7.1    8 channels: planar 9 planes, packed 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import av


def planes(form, layout):
    """Return the number of planes of a frame of 1024 samples."""
    return len(av.AudioFrame(format=form, layout=layout, samples=1024).planes)


seen = {}
for layout in ("stereo", "5.1", "6.1", "7.1"):
    channels = av.AudioLayout(layout).nb_channels
    seen[layout] = (channels, planes("fltp", layout), planes("flt", layout))
    print(f"{layout:<6} {channels} channels: planar {seen[layout][1]} planes, packed {seen[layout][2]}")
expected = {"stereo": (2, 2, 1), "5.1": (6, 6, 1), "6.1": (7, 7, 1), "7.1": (8, 9, 1)}
sys.exit(seen != expected)
PYTHON
