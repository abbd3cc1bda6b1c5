#!/usr/bin/env bash
# datasets 5.2.0, pyarrow 26.0.1, pandas 3.1.1
#
# Behaviour: class_encode_column of a column that holds class numbers gives the classes other numbers: it takes the
# numbers as text, sorts the text and counts anew, so that from ten classes on 2 becomes 4 and 10 becomes 2; classes
# that no video has vanish and shift those behind them. A DatasetDict does this in every split by itself: the same
# class has different numbers in train and test, where one of them lacks a class. Both are integers of the right range,
# so a model trained on one and tested on the other merely looks bad.
#
# Guess before running: integers are class numbers already and stay as they are; the splits of one DatasetDict share
# their classes.
#
# Output seen:
#   0 to 11 become         0 1 4 5 6 7 8 9 10 11 2 3
#   0 2 5 become           0 1 2
#   cat dog owl in train   0 1 2
#   dog owl in test        0 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$folder"
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import sys

from datasets import Dataset, DatasetDict, disable_progress_bars

disable_progress_bars()


def encoded(parts):
    """Return the class numbers of each split."""
    splits = DatasetDict({name: Dataset.from_dict({"label": labels}) for name, labels in parts.items()})
    return {name: split["label"][:] for name, split in splits.class_encode_column("label").items()}


animals = encoded({"train": ["cat", "dog", "owl"], "test": ["dog", "owl"]})
seen = {
    "0 to 11 become": encoded({"train": list(range(12))})["train"],
    "0 2 5 become": encoded({"train": [0, 2, 5]})["train"],
    "cat dog owl in train": animals["train"],
    "dog owl in test": animals["test"],
}
for name, numbers in seen.items():
    print(f"{name:<22}", *numbers)
sys.exit(list(seen.values()) != [[0, 1, 4, 5, 6, 7, 8, 9, 10, 11, 2, 3], [0, 1, 2], [0, 1, 2], [0, 1]])
PYTHON
