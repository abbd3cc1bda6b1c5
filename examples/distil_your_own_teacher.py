"""Any program's predictions teach a small model: here ridge regression in NumPy stands for your own.

    python examples/distil_your_own_teacher.py [FOLDER]

Generates videos, fits the teacher to all of them, writes ids and probabilities to an .npz file, and trains a student on
a fifth of the videos beside the same model without a teacher. A file of Kaggle's CSV works as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import reeltag
from reeltag.core.storage import find_files
from reeltag.data.shards import read_examples
from reeltag.data.synthetic import SyntheticSettings, write_synthetic

DATA = SyntheticSettings(train_videos=3000, test_videos=300, shards=5, classes=20, noise=2.0)
RECIPE = """
name = "own-teacher"
budget_mb = 0.5

[data]
root = "{root}"
train = ["train-*.tfrecord"]
test = ["test-*.tfrecord"]
limit = {{ train = 600 }}

[data.schema]
features = [{{ name = "rgb", width = 64 }}, {{ name = "audio", width = 16 }}]
classes = 20
max_frames = 60

[training]
epochs = 40
batch_size = 32
frames = 20
learning_rate = 5e-3
schedule = "cosine"

[models.alone]
family = "mean"
bn_decay = 0.9

[distillation]
families = []
label_weight = 0.2
predictions = {{ mine = "{predictions}" }}

[students.taught]
family = "mean"
bn_decay = 0.9
teachers = ["mine"]
"""


def teach(folder: Path) -> Path:
    """A teacher's predictions of the videos that it was fitted to."""
    ids, means, labels = [], [], []
    for video in read_examples(find_files([str(folder / "train-*.tfrecord")]), DATA.record_schema):
        ids.append(video.id)
        means.append(video.frames().astype(np.float32).mean(0))
        labels.append(np.isin(np.arange(DATA.classes), video.labels))
    x, y = np.stack(means), np.stack(labels).astype(np.float32)
    x = (x - x.mean(0)) / x.std(0)
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))  # ridge regression
    path = folder / "teacher.npz"
    np.savez(path, ids=np.array(ids), probabilities=np.clip(x @ weights + y.mean(0), 0, 1))
    return path


def main(folder: Path) -> None:
    """Generate, teach, train, compare."""
    shards = folder / "shards"
    if not shards.exists():
        write_synthetic(shards, DATA)
    recipe = folder / "own-teacher.toml"
    recipe.write_text(RECIPE.format(root=shards.as_posix(), predictions=teach(shards).as_posix()))
    done = reeltag.run(recipe, out=folder / "run")
    for name, member in done.results["members"].items():
        print(f"{name:<8} test GAP {member['test']['float32']['gap']:.4f}")
    print(done.file)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-teacher"))
