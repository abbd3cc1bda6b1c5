"""Draft a first recipe for extracted shards."""

from __future__ import annotations

import math

from reeltag.core.text import toml
from reeltag.data.schema import Schema

STEPS = 1500  # least number of training steps
BATCH = 64  # largest batch, in videos


def draft_recipe(schema: Schema, videos: int, *, tests: bool) -> str:
    """Return the TOML of a recipe that trains one small NetVLAD on the shards in its folder.

    Args:
        schema: schema of the records.
        videos: number of training videos.
        tests: True if there are test shards.
    """
    held = max(10, math.ceil(200 / max(videos, 1)))  # per cent, two videos at least
    batch = max(2, min(BATCH, videos // 8))
    pca = (
        '\npca = "pca.safetensors"'
        if any(each.extractor and each.extractor.projection for each in schema.features)
        else ""
    )
    test = '["test-*.tfrecord"]' if tests else "[] # put in the shards to test on"
    features = ",\n".join(f"  {toml(feature.model_dump(exclude_none=True))}" for feature in schema.features)
    return f"""\
# Written by `reeltag extract`: run it in this folder, or with --set data.root=FOLDER. See docs/recipes.md for all keys.
name = "own-videos"
seed = 1
budget_mb = 50

[data]
train = ["train-*.tfrecord"]
test = {test}
label_names = "labels.csv"{pca}
holdout = {{ fraction = {min(held, 99) / 100} }}

[data.schema]
features = [
{features},
]
classes = {schema.classes}
max_frames = {schema.max_frames}

[training]
epochs = {max(1, STEPS * batch // max(videos, 1))}
batch_size = {batch}
frames = 60
learning_rate = 1e-3

[models.netvlad]
family = "netvlad"
clusters = 16
hidden = 128
dropout = 0.2
bn_decay = 0.99 # of batch norm's statistics; the published 0.999 needs thousands of steps
"""
