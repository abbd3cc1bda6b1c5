"""Draft a first recipe for shards that were just written."""

from __future__ import annotations

import math
import re
from pathlib import Path

from reeltag.core.text import toml
from reeltag.data.schema import Schema

STEPS = 1500  # least number of training steps
BATCH = 64  # largest batch, in videos

_FRAME_MODEL = """\
[models.netvlad]
family = "netvlad"
clusters = 16
hidden = 128
dropout = 0.2
bn_decay = 0.99 # of batch norm's statistics; the published 0.999 needs thousands of steps
"""
_VIDEO_MODEL = """\
[models.mean]
family = "mean"
hidden = 256
dropout = 0.2
bn_decay = 0.99 # of batch norm's statistics; the published 0.999 needs thousands of steps
"""


def _name(folder: Path) -> str:
    """Return the name of a folder as a recipe's name may be."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", folder.resolve().name, flags=re.ASCII).strip("-_") or "own-videos"


def draft_recipe(
    schema: Schema, videos: int, folder: Path, *, command: str, label_names: str | None, tests: bool
) -> str:
    """Return the TOML of a recipe that trains one small model on the shards in its folder.

    Args:
        schema: schema of the records.
        videos: number of training videos.
        folder: of the shards, after which the recipe and the folder of its runs are named.
        command: the command that wrote the shards.
        label_names: name of the file that names the classes; None if they have numbers only.
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
    by_frame = schema.level == "frame"
    keys = schema.model_dump(mode="json", exclude_defaults=True, exclude={"features"})
    keys |= {"max_frames": schema.max_frames} if by_frame else {}
    others = "\n".join(f"{key} = {toml(value)}" for key, value in keys.items())
    names = f"\nlabel_names = {toml(label_names)}" if label_names else ""
    return f"""\
# Written by `{command}`: its shards lie in its own folder. See docs/recipes.md for all keys.
name = "{_name(folder)}"
seed = 1
budget_mb = 50

[data]
train = ["train-*.tfrecord"]
test = {test}{names}{pca}
holdout = {{ fraction = {min(held, 99) / 100} }}

[data.schema]
features = [
{features},
]
{others}

[training]
epochs = {max(1, STEPS * batch // max(videos, 1))}
batch_size = {batch}
{"frames = 60" + chr(10) if by_frame else ""}learning_rate = 1e-3

{_FRAME_MODEL if by_frame else _VIDEO_MODEL}"""
