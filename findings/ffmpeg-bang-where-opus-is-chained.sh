#!/usr/bin/env bash
# av 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6
#
# Behaviour: two Ogg Opus recordings that were joined with cat are one valid file, a chain of two links. FFmpeg decodes
# the second link without resetting its decoder, so its first 57 ms are a bang of up to four times the tone that
# either recording holds, beyond full scale. Alone, the second recording begins as it was recorded. The packets
# also keep the clock of the first link for one packet more. Flushing the decoder at the first packet of the second
# link, which has the link's tags as side data, gives the samples of the recording alone.
#
# Guess before running: the second half of the chain has the samples of the second recording alone.
#
# Output seen:
#   first alone     peak 0.51
#   second alone    peak 0.52
#   chained         peak 1.98, above 0.6 from 0.0 to 57.1 ms after the joint
#   with a flush    peak 0.52
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet av==18.1.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys
from pathlib import Path

import av
import numpy as np

RATE = 48000


def recording(name, hertz):
    """Write two seconds of a tone of 0.5 in stereo."""
    tone = (0.5 * np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE)).astype(np.float32)
    with av.open(name, "w") as out:
        stream = out.add_stream("libopus", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.repeat(tone, 2)[None], format="flt", layout="stereo")
        frame.sample_rate, frame.pts = RATE, 0
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return Path(name).read_bytes()


def left(name, flush=False):
    """Decode the left channel; with `flush`, reset the decoder at packets with tags."""
    samples = []
    with av.open(name) as file:
        for packet in file.demux(audio=0):
            if flush and packet.has_sidedata("strings_metadata"):
                packet.stream.codec_context.flush_buffers()
            samples += [frame.to_ndarray()[0] for frame in packet.decode()]
    return np.concatenate(samples)


Path("chained.ogg").write_bytes(recording("first.ogg", 440) + recording("second.ogg", 880))
alone = [left("first.ogg"), left("second.ogg")]
chained, flushed = left("chained.ogg"), left("chained.ogg", flush=True)
peaks = [float(abs(samples).max()) for samples in (*alone, chained, flushed)]
loud = np.flatnonzero(abs(chained) > 0.6) - len(alone[0])
print(f"first alone     peak {peaks[0]:.2f}")
print(f"second alone    peak {peaks[1]:.2f}")
print(f"chained         peak {peaks[2]:.2f}, above 0.6 from {loud[0] / 48:.1f} to {loud[-1] / 48:.1f} ms after the joint")
print(f"with a flush    peak {peaks[3]:.2f}")
as_seen = peaks[2] > 1.5 and max(peaks[0], peaks[1]) < 0.6 and 0 <= loud[0] and loud[-1] < 4 * 960
sys.exit(not (as_seen and np.array_equal(flushed[-len(alone[1]) :], alone[1])))
PYTHON
