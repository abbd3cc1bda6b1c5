#!/usr/bin/env bash
# netCDF4 1.7.5.1, h5py 3.16.0, pyarrow 26.0.1, datasets 5.2.0, pandas 3.1.1, numpy 2.4.6
#
# Behaviour: netCDF4 gives a variable with frames that were never written as a masked array, whose data holds the fill
# value of the format in their place: 9.97e36 for float32, 255 for uint8.
# pyarrow respects such a mask for an array alone (null), and drops it without a word for the same array within a list,
# which is how the frames of a video get into a column. So do datasets and h5py. The features are finite and of the
# right type. h5py that reads the netCDF file itself (it is HDF5) shows the fill values as features as well.
#
# Guess before running: a library that respects the mask of an array does so within a list, or refuses it.
#
# Output seen (the second of two values was never written):
#   f4  netCDF4         [7.0 --]
#   f4  pa.array(x)     [7.0, None]
#   f4  pa.array([x])   [7.0, 9.969209968386869e+36]
#   f4  datasets        [7.0, 9.969209968386869e+36]
#   f4  h5py, written   [7.0, 9.969209968386869e+36]
#   f4  h5py, films.nc  [7.0, 9.969209968386869e+36]
#   u1  netCDF4         [7 --]
#   u1  pa.array(x)     [7, None]
#   u1  pa.array([x])   [7, 255]
#   u1  datasets        [7, 255]
#   u1  h5py, written   [7, 255]
#   u1  h5py, films.nc  [7, 255]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet netCDF4==1.7.5.1 h5py==3.16.0 pyarrow==26.0.1 datasets==5.2.0 \
  pandas==3.1.1 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys

import h5py
import netCDF4
import numpy as np
import pyarrow as pa
from datasets import Dataset

with netCDF4.Dataset("films.nc", "w") as file:
    file.createDimension("time", 2)
    for dtype in ("f4", "u1"):
        file.createVariable(dtype, dtype, ("time",))[0] = 7
seen = {}
for dtype in ("f4", "u1"):
    with netCDF4.Dataset("films.nc") as file:
        x = file[dtype][:]
    seen[dtype, "netCDF4"] = str(x)
    seen[dtype, "pa.array(x)"] = str(pa.array(x).to_pylist())
    seen[dtype, "pa.array([x])"] = str(pa.array([x]).to_pylist()[0])
    seen[dtype, "datasets"] = str(Dataset.from_dict({"x": [x]})[0]["x"])
    with h5py.File("copy.h5", "w") as file:
        seen[dtype, "h5py, written"] = str(file.create_dataset("x", data=x)[:].tolist())
    with h5py.File("films.nc") as file:
        seen[dtype, "h5py, films.nc"] = str(file[dtype][:].tolist())
for (dtype, name), value in seen.items():
    print(f"{dtype}  {name:<15} {value}")
lost = {"f4": "[7.0, 9.969209968386869e+36]", "u1": "[7, 255]"}
expected = [
    value
    for masked, null, filled in (("[7.0 --]", "[7.0, None]", lost["f4"]), ("[7 --]", "[7, None]", lost["u1"]))
    for value in (masked, null, *[filled] * 4)
]
sys.exit(list(seen.values()) != expected)
PYTHON
