#!/usr/bin/env bash
# datasets 5.2.0, h5py 3.16.0, pyarrow 26.0.1, pandas 3.1.1
#
# Behaviour: load_dataset("hdf5", ...) takes the number of rows from the first dataset, in the order of names, that it
# finds in the file, and compares it with the datasets at the top of the file alone. Longer datasets within groups are
# cut to that number without a word: of a file with the groups test (4 videos) and train (9) the last 5 of train are
# lost, since test comes first; of a file with a group a video, whose rows are frames, every video is cut to the length
# of the first. The same lengths at the top of the file are refused, and so is a group that is shorter than the first.
#
# Guess before running: unequal lengths are refused at every depth.
#
# Output seen:
#   at the top: test 4, train 9            ValueError
#   in groups: test/x 4, train/x 9         4 rows, train/x 0.0 to 3.0
#   a group a video: a/x 3, b/x 5, c/x 8   3 rows, c/x 0.0 to 2.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 h5py==3.16.0 pyarrow==26.0.1 pandas==3.1.1
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import logging
import sys

import h5py
import numpy as np
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
logging.disable(logging.ERROR)


def loaded(name, lengths, shown):
    """Write datasets of such lengths that count their rows; return the rows of one as load_dataset gives them."""
    with h5py.File(f"{name}.h5", "w") as file:
        for path, length in lengths.items():
            file[path] = np.arange(length, dtype=np.float32)
    try:
        rows = load_dataset("hdf5", data_files=f"{name}.h5", split="train")
    except Exception as error:
        return type(error.__cause__ or error).__name__
    group, _, leaf = shown.partition("/")
    values = [row[group][leaf] for row in rows]
    return f"{len(values)} rows, {shown} {values[0]} to {values[-1]}"


seen = {
    "at the top: test 4, train 9": loaded("top", {"test": 4, "train": 9}, "train"),
    "in groups: test/x 4, train/x 9": loaded("groups", {"test/x": 4, "train/x": 9}, "train/x"),
    "a group a video: a/x 3, b/x 5, c/x 8": loaded("videos", {"a/x": 3, "b/x": 5, "c/x": 8}, "c/x"),
}
for name, value in seen.items():
    print(f"{name:<38} {value}")
expected = ["ValueError", "4 rows, train/x 0.0 to 3.0", "3 rows, c/x 0.0 to 2.0"]
sys.exit(list(seen.values()) != expected)
PYTHON
