#!/usr/bin/env bash
# h5py 3.16.0 (HDF5 2.0.0), numpy 2.4.6
#
# Behaviour: float32 features written with the filter scaleoffset (here three decimals kept). A NaN comes back as the
# least value of its chunk: an ordinary feature, so that a check for NaN finds nothing. Where the first value of a chunk
# is NaN, the whole chunk is lost instead: it is written without an error and can never be read. An infinity is
# respected in any place. Within the process that wrote it, all looks right as long as the file is open, since reading
# is answered from the cache of chunks that were not filtered yet.
#
# Guess before running: NaN is kept as infinity is, or refused when it is written.
#
# Output seen (a chunk of 1,000 values of a standard normal distribution):
#   value       place   before closing   after opening again
#   infinity        0              inf                   inf
#   infinity      500              inf                   inf
#   NaN           500              nan   -3.899422, the least
#   NaN             0              nan   OSError for the chunk
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet h5py==3.16.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import h5py
import numpy as np

x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
cases = [("infinity", np.inf, 0), ("infinity", np.inf, 500), ("NaN", np.nan, 500), ("NaN", np.nan, 0)]
before, after = [], []
with h5py.File("x.h5", "w") as file:
    for name, value, place in cases:
        x_with = x.copy()
        x_with[place] = value
        written = file.create_dataset(f"{name} {place}", data=x_with, chunks=x.shape, scaleoffset=3)
        before.append(str(written[place]))
with h5py.File("x.h5") as file:
    for name, _, place in cases:
        try:
            read = file[f"{name} {place}"][:]
            least = ", the least" if read[place] == x.min() else ""
            after.append(f"{read[place]:.6f}{least}")
        except OSError:
            after.append("OSError for the chunk")
print("value       place   before closing   after opening again")
for (name, _, place), first, second in zip(cases, before, after, strict=True):
    print(f"{name:<12}{place:>5}{first:>17}{second:>24}")
sys.exit(before[2:] != ["nan", "nan"] or after != ["inf", "inf", "-3.899422, the least", "OSError for the chunk"])
PYTHON
