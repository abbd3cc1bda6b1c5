#!/usr/bin/env bash
# av 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6
#
# Behaviour: av.AudioResampler(layout="mono") mixes the same frame to another loudness if another sample format is asked
# for. Into integers the mixing matrix is scaled so that its weights add up to 1; into floats it is not, whatever the
# input. A sine of 0.9 in both channels of stereo comes out as 0.9 in s16 and as 1.27 in flt, in 5.1 as 0.9 and 3.07,
# and in 7.1 as 0.9 and 3.97, beyond the range [-1, 1] of float sound. So a program that changes from s16 to flt to save
# its own division gets sound that is 3 dB louder where it was stereo, as loud as before where it was mono.
#
# Guess before running: the format of the output changes rounding, not loudness.
#
# Output seen:
#   mono     s16 0.90  s32 0.90  flt 0.90  dbl 0.90
#   stereo   s16 0.90  s32 0.90  flt 1.27  dbl 1.27
#   5.1      s16 0.90  s32 0.90  flt 3.07  dbl 3.07
#   7.1      s16 0.90  s32 0.90  flt 3.97  dbl 3.97
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import av
import numpy as np

FULL = {"s16": 2**15, "s32": 2**31, "flt": 1, "dbl": 1}
wave = (0.9 * np.sin(np.arange(16000) / 5) * 2**15).astype(np.int16)


def peak(layout, form):
    """Return the largest sample of equal channels mixed to mono, relative to full scale."""
    channels = av.AudioLayout(layout).nb_channels
    frame = av.AudioFrame.from_ndarray(np.repeat(wave, channels)[None], format="s16", layout=layout)
    frame.sample_rate = 16000
    (mono,) = av.AudioResampler(format=form, layout="mono").resample(frame)
    return abs(mono.to_ndarray().astype(np.float64)).max() / FULL[form]


seen = {layout: [f"{peak(layout, form):.2f}" for form in FULL] for layout in ("mono", "stereo", "5.1", "7.1")}
for layout, peaks in seen.items():
    print(f"{layout:<8}", "  ".join(f"{form} {value}" for form, value in zip(FULL, peaks)))
expected = {"mono": "0.90", "stereo": "1.27", "5.1": "3.07", "7.1": "3.97"}
sys.exit(seen != {layout: ["0.90", "0.90", value, value] for layout, value in expected.items()})
PYTHON
