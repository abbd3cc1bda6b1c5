"""Mean pooling: the frame-average baseline, and video-level models, whose records hold one mean frame.

With a logistic or mixture head this is `FrameLevelLogisticModel`, `LogisticModel` and `MoeModel` of the
challenge's starter code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from reeltag.models.config import GatingConfig, HiddenWidth, TaggerConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import Pooling


class MeanConfig(TaggerConfig):
    """Keys of the mean family; by default the head reads the mean itself."""

    family: Literal["mean"]
    input_norm: bool = False
    hidden: HiddenWidth = 0
    gating: GatingConfig = GatingConfig(kind="none")


class Mean(Pooling):
    """Mean over the real frames.

    Args:
        config: unused; the mean has no settings.
        widths: D_f of each feature.
    """

    def __init__(self, config: MeanConfig, widths: Sequence[int]) -> None:
        super().__init__()
        self.outputs = sum(widths)
        self.scale = 1 / math.sqrt(self.outputs)

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, D]."""
        return frames.mean(frames.x)
