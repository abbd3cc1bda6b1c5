#!/usr/bin/env bash
# datasets 5.2.0, webdataset 1.0.2, pyarrow 26.0.1, pandas 3.1.1, numpy 2.4.6
#
# Behaviour: load_dataset("webdataset", ...) decides by the first five samples of the first tar which members a sample
# has. A member that comes first in the sixth sample, or in the second tar, is dropped from all samples without a word:
# the sound of 4 videos of 10 is gone when the first 6 had none. Among the first five it is refused instead, with the
# word that all samples must have the same types. webdataset itself reads all members of the same file.
#
# Guess before running: a member unknown so far is refused, or becomes a column with None before it.
#
# Output seen (samples with sound):
#   sound from      webdataset      datasets
#   sample 1                10            10
#   sample 4                 7    ValueError
#   sample 6                 5             0
#   second tar               5             0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 webdataset==1.0.2 pyarrow==26.0.1 pandas==3.1.1 \
  numpy==2.4.6
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import webdataset
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()


def with_sound(name, first, tars):
    """Write 10 samples, those from the first given one on with sound; count those that have it when read back."""
    paths = [f"{name}-{tar}.tar" for tar in range(tars)]
    per_tar = 10 // tars
    for tar, path in enumerate(paths):
        with webdataset.TarWriter(path) as writer:
            for i in range(tar * per_tar, (tar + 1) * per_tar):
                sample = {"__key__": f"video{i}", "rgb.npy": np.full((3, 2), i, np.float32)}
                sound = {"sound.npy": np.full((3, 1), i, np.float32)} if i + 1 >= first else {}
                writer.write({**sample, **sound})
    read = sum("sound.npy" in sample for sample in webdataset.WebDataset(paths, shardshuffle=False))
    try:
        rows = load_dataset("webdataset", data_files=paths, split="train")
        return read, sum(row.get("sound.npy") is not None for row in rows)
    except ValueError as error:
        return read, type(error).__name__


seen = {
    "sample 1": with_sound("one", 1, 1),
    "sample 4": with_sound("four", 4, 1),
    "sample 6": with_sound("six", 6, 1),
    "second tar": with_sound("second", 6, 2),
}
print(f"{'sound from':<12} {'webdataset':>13} {'datasets':>13}")
for name, (read, kept) in seen.items():
    print(f"{name:<12} {read:>13} {kept:>13}")
sys.exit(list(seen.values()) != [(10, 10), (7, "ValueError"), (5, 0), (5, 0)])
PYTHON
