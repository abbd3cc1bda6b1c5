"""Mean pooling: the frame-average baseline, and video-level models, whose records hold one mean frame.

With a logistic or mixture head this is `FrameLevelLogisticModel`, `LogisticModel` and `MoeModel` of the
challenge's starter code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from reeltag.models.families import MeanConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import Pooling


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
