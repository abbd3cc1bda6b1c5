"""Features of your own, from arrays to tags: shards are written, a model is trained, new videos are tagged.

    python examples/tag_your_own_features.py [FOLDER]

Random vectors around one prototype a class stand for what your extractor gives: a video is an array [T, D] of uint8
(codes of values from -2 to 2) or float32, with any number of labels.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

import reeltag
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.schema import Feature, Schema

NAMES = ["cat", "dog", "guitar", "rain", "speech", "train"]
SCHEMA = Schema(features=(Feature(name="mine", width=32),), dtype="float32", classes=len(NAMES), max_frames=40)
RECIPE = """
name = "mine"
budget_mb = 0.5

[data]
root = "{root}"
train = ["train-*.tfrecord"]
test = ["test-*.tfrecord"]
label_names = "labels.csv"

[data.schema]
features = [{{ name = "mine", width = 32 }}]
dtype = "float32"
classes = 6
max_frames = 40

[training]
epochs = 6
batch_size = 16
frames = 10
learning_rate = 5e-3
schedule = "cosine"

[models.netvlad]
family = "netvlad"
clusters = 4
hidden = 32
bn_decay = 0.9
"""
PROTOTYPES = np.random.default_rng(0).normal(size=(len(NAMES), 32))


def features(labels: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Your extractor: frames [T, D], each near the prototype of one of the video's labels."""
    shown = rng.choice(labels, size=rng.integers(8, 40))
    return (PROTOTYPES[shown] + rng.normal(size=(len(shown), 32))).astype(np.float32)


def write(folder: Path, split: str, videos: int, rng: np.random.Generator) -> None:
    """A shard of videos, each with one to three labels."""
    records = []
    for number in range(videos):
        labels = rng.choice(len(NAMES), size=rng.integers(1, 4), replace=False)
        video = Video(f"{split}-{number}", np.sort(labels), (features(labels, rng),))
        records.append(encode(video, SCHEMA))
    write_shard(folder / f"{split}-0.tfrecord", records)


def main(folder: Path) -> None:
    """Write, train, tag."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for split, videos in (("train", 500), ("test", 100)):
        write(folder, split, videos, rng)
    (folder / "labels.csv").write_text("index,name\n" + "".join(f"{i},{name}\n" for i, name in enumerate(NAMES)))
    recipe = folder / "mine.toml"
    recipe.write_text(RECIPE.format(root=folder.as_posix()))
    tagger = reeltag.load(reeltag.run(recipe, out=folder / "run").file)
    print(tagger)
    for labels in ([0], [2, 4]):
        tags = tagger.tags(features(np.array(labels), rng), top=3)
        print(f"{' and '.join(NAMES[label] for label in labels)}: {', '.join(f'{n} {p:.2f}' for n, p in tags)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/your-own-features"))
