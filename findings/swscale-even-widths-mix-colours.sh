#!/usr/bin/env bash
# av 18.1.0 (FFmpeg 8.1.2, swscale 9.5), numpy 2.4.6 (CPU)
#
# Behaviour: a 4:2:0 picture with more than enough columns of colour is scaled down to RGB by area. Each output pixel
# covers red columns only or blue columns only. At an odd output width swscale gives red and blue; at an even width it
# computes one colour for two pixels, so that both become purple, however large the source is. A 4:4:4 source gives red
# and blue at both widths. FULL_CHR_H_INP, "full chroma input", changes nothing; FULL_CHR_H_INT, "full chroma
# interpolation", gives every pixel its colour. Real clips of 320 to 1280 columns, scaled to 224, come 8 to 14 dB nearer
# to the exact mean with it and ACCURATE_RND.
#
# Guess before running: 4:4:4 sources mix as 4:2:0 ones do. That odd widths do not mix was known from swscale's source.
#
# Output seen (first two pixels of a row):
#   4:2:0 to 224 columns                     [148, 22, 148] [102, 0, 102]
#   4:2:0 to 223 columns                     [254, 0, 0] [0, 0, 255]
#   4:4:4 to 224 columns                     [254, 0, 0] [0, 0, 255]
#   4:2:0 to 224 columns, FULL_CHR_H_INP     [148, 22, 148] [102, 0, 102]
#   4:2:0 to 224 columns, FULL_CHR_H_INT     [254, 0, 0] [0, 0, 255]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import av
import numpy as np
from av.video.reformatter import Interpolation

RED, BLUE = (81, 90, 240), (41, 240, 110)  # Y, U and V of BT.601
COLUMNS = 4  # of the source for each of the output


def stripes(form, width):
    """Return a picture of red and blue stripes, one output pixel wide."""
    planes = []
    for channel, (red, blue) in enumerate(zip(RED, BLUE, strict=True)):
        halved = form == "yuv420p" and channel > 0
        row = np.where(np.arange(width) % 2, blue, red).astype(np.uint8).repeat(COLUMNS // (1 + halved))
        planes.append(np.tile(row, (224 // (1 + halved), 1)))
    if form == "yuv444p":
        return av.VideoFrame.from_ndarray(np.stack(planes), format=form)
    flat = np.concatenate([plane.ravel() for plane in planes])
    return av.VideoFrame.from_ndarray(flat.reshape(-1, width * COLUMNS), format=form)


def scaled(form, width, flags=Interpolation.AREA):
    """Return the first two pixels of the picture, scaled to RGB."""
    frame = stripes(form, width).reformat(width, 56, "rgb24", interpolation=flags)
    return frame.to_ndarray()[28, :2].tolist()


cases = {
    "4:2:0 to 224 columns": scaled("yuv420p", 224),
    "4:2:0 to 223 columns": scaled("yuv420p", 223),
    "4:4:4 to 224 columns": scaled("yuv444p", 224),
    "4:2:0 to 224 columns, FULL_CHR_H_INP": scaled("yuv420p", 224, Interpolation.AREA | Interpolation.FULL_CHR_H_INP),
    "4:2:0 to 224 columns, FULL_CHR_H_INT": scaled("yuv420p", 224, Interpolation.AREA | Interpolation.FULL_CHR_H_INT),
}
for name, pixels in cases.items():
    print(f"{name:<40}", *pixels)
pure, mixed = [[254, 0, 0], [0, 0, 255]], [[148, 22, 148], [102, 0, 102]]
sys.exit(list(cases.values()) != [mixed, pure, pure, mixed, pure])
PYTHON
