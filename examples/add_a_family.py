"""A family of your own, trained beside one that comes with reeltag: the maximum over the frames.

    python examples/add_a_family.py [FOLDER]

Generates videos, trains both for a few seconds, and prints their hold-out GAP. The configuration names the family's
keys, which a recipe may set; everything else (hidden layer, gating, dropout, head) every family has.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor

import reeltag
from reeltag.models.config import TaggerConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import Pooling

RECIPE = """
name = "with-maximum"
budget_mb = 0.5

[data.synthetic]
train_videos = 800
test_videos = 200
classes = 20

[training]
epochs = 5
batch_size = 32
frames = 20
learning_rate = 5e-3
schedule = "cosine"

[models.maximum]
family = "maximum"
sharpness = 4.0
hidden = 64
bn_decay = 0.9

[models.mean]
family = "mean"
"""


class MaximumConfig(TaggerConfig):
    """Keys of the maximum family."""

    family: Literal["maximum"]
    sharpness: float = Field(8.0, gt=0, description="how near the soft maximum is to the largest value")


class Maximum(Pooling):
    """Soft maximum over the real frames, log(mean(exp(s·x))) / s."""

    def __init__(self, config: MaximumConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.outputs = sum(widths)
        self.scale = 1 / math.sqrt(self.outputs)  # of the hidden layer's initial weights
        self.sharpness = config.sharpness

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, D]."""
        return frames.mean((self.sharpness * frames.x).exp()).log() / self.sharpness


reeltag.register_family("maximum", MaximumConfig, Maximum)


def main(folder: Path) -> None:
    """Train, and compare."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = folder / "with-maximum.toml"
    recipe.write_text(RECIPE)
    done = reeltag.run(recipe, out=folder / "run")
    for name, member in done.results["members"].items():
        print(f"{name:<8} hold-out GAP {member['holdout']['float32']['gap']:.4f}")
    print(f"{done.file}: test GAP {done.results['test']['file']['gap']:.4f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/add-a-family"))
