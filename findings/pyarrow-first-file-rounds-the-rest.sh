#!/usr/bin/env bash
# pyarrow 26.0.1, datasets 5.2.0, pandas 3.1.1, numpy 2.4.6
#
# Behaviour: several Parquet files read as one dataset are cast to the types of the first, value by value and without a
# word where Arrow deems that safe, which between floats is always so. Behind a file of float16 features those of
# float32 files are rounded to float16, and those beyond its range become infinite; behind float32, float64 features
# beyond its range become infinite. uint8 codes behind a file of floats become the floats 0 to 255, although they mean
# something else than these. Only a float with a fraction behind uint8 is refused. The order of the files decides, by
# name where a folder is given. datasets does the same.
#
# Guess before running: files whose features differ in type are refused, or read in a type that holds all of them.
#
# Output seen (the feature of the second file):
#   first     second    written      pyarrow           datasets
#   float16   float32   70000.1      inf               inf
#   float16   float32   0.1          0.09997558594     0.09997558594
#   float32   float64   1e+300       inf               inf
#   float32   uint8     200          200.0             200.0
#   uint8     float32   200.5        ArrowInvalid      ArrowInvalid
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pyarrow==26.0.1 datasets==5.2.0 pandas==3.1.1 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import logging
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
logging.disable(logging.ERROR)
cases = [
    ("float16", "float32", 70000.1),
    ("float16", "float32", 0.1),
    ("float32", "float64", 1e300),
    ("float32", "uint8", 200),
    ("uint8", "float32", 200.5),
]


def second(read):
    """Return the feature of the second file, or the name of the error."""
    try:
        return f"{read()[1][0]:.10}"
    except Exception as error:
        return type(error.__cause__ or error).__name__


seen = []
print("first     second    written      pyarrow           datasets")
for i, (first, other, value) in enumerate(cases):
    folder = Path(f"folder{i}")
    folder.mkdir()
    for name, dtype, x in (("a", first, 1), ("b", other, value)):
        column = pa.array([[x]], pa.list_(pa.type_for_alias(dtype)))
        pq.write_table(pa.table({"rgb": column}), folder / f"{name}.parquet")
    files = [str(path) for path in sorted(folder.iterdir())]
    by_pyarrow = second(lambda folder=folder: pq.read_table(folder)["rgb"].to_pylist())
    by_datasets = second(lambda files=files: load_dataset("parquet", data_files=files, split="train")["rgb"][:])
    seen.append((by_pyarrow, by_datasets))
    print(f"{first:<9} {other:<9} {value!s:<12} {by_pyarrow:<17} {by_datasets}")
expected = ["inf", "0.09997558594", "inf", "200.0", "ArrowInvalid"]
sys.exit(seen != [(value, value) for value in expected])
PYTHON
