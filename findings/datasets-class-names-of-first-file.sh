#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1
#
# Behaviour: files of one dataset whose classes are listed in different orders (each file written by
# Dataset.to_parquet, or save_to_disk, with names of its own, for example from class_encode_column of a part) are read
# with the class names of the first file and the class numbers of each. A video labelled dog in the second file is a cat
# then, without a word. This holds for load_dataset and Dataset.from_parquet, also where the lists differ in length.
# concatenate_datasets refuses the very same parts, since their features do not agree.
#
# Guess before running: the names are part of the schema of every file, so files that disagree are refused, or the
# numbers are mapped by name.
#
# Output seen:
#   written                         cat dog cat dog bird
#   concatenate_datasets            ValueError
#   load_dataset("parquet", ...)    cat dog bird cat dog
#   Dataset.from_parquet            cat dog bird cat dog
#   load_dataset("arrow", ...)      cat dog bird cat dog
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, concatenate_datasets, disable_progress_bars, load_dataset

disable_progress_bars()
labels = [["cat", "dog"], ["cat", "dog", "bird"]]
orders = [["dog", "cat", "bird"], ["bird", "dog", "cat"]]
parts = [
    Dataset.from_dict({"label": values}, features=Features(label=ClassLabel(names=names)))
    for values, names in zip(labels, orders, strict=True)
]
for i, part in enumerate(parts):
    part.to_parquet(f"{i}.parquet")
    part.save_to_disk(f"{i}")
parquet = ["0.parquet", "1.parquet"]
arrow = [str(path) for i in "01" for path in Path(i).glob("*.arrow")]
seen = {"written": " ".join(sum(labels, []))}
for name, read in {
    "concatenate_datasets": lambda: concatenate_datasets(parts),
    'load_dataset("parquet", ...)': lambda: load_dataset("parquet", data_files=parquet, split="train"),
    "Dataset.from_parquet": lambda: Dataset.from_parquet(parquet),
    'load_dataset("arrow", ...)': lambda: load_dataset("arrow", data_files=arrow, split="train"),
}.items():
    try:
        loaded = read()
        seen[name] = " ".join(loaded.features["label"].int2str(loaded["label"][:]))
    except ValueError as error:
        seen[name] = type(error).__name__
for name, value in seen.items():
    print(f"{name:<31} {value}")
wrong = "cat dog bird cat dog"
sys.exit(list(seen.values()) != ["cat dog cat dog bird", "ValueError", wrong, wrong, wrong])
PYTHON
