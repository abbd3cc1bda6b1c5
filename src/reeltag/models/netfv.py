"""NetFV, Fisher vectors of soft assignments (Miech et al. 2017; paper section 2.1; golden `layer_netfv_*`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reeltag.models.config import shares
from reeltag.models.families import NetFVConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import PerFeature, SoftAssignment, intra_normalize, l2_normalize, normal

VARIANCE_FLOOR = 1e-6


class NetFVFeature(nn.Module):
    """NetFV of one feature: first and second order statistics of its frames around K centres c with variances σ².

    With a = Σ_t a_tk: first order (Σ a_t x − a·c)/σ², second order (a·c² + Σ a_t x² − 2c Σ a_t x)/σ⁴ − a.
    The first order is scaled to norm 1 by column, then as a whole; the second order only as a whole.

    Args:
        features: D.
        clusters: K.
        coupling: ties the centres to the assignment's weights, c = coupling·W; None for free centres.
    """

    def __init__(self, features: int, clusters: int, coupling: float | None) -> None:
        super().__init__()
        scale = 1 / math.sqrt(features)
        self.outputs, self.coupling = 2 * features * clusters, coupling or 0.0
        self.assign = SoftAssignment(features, clusters)
        self.centres = normal(features, clusters, scale=scale) if coupling is None else None
        self.deviation = normal(features, clusters, scale=scale, mean=1.0)

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, 2·D·K]: first order, second order, each D-major."""
        a_BTK = frames.counted(self.assign(frames))
        a_B1K = a_BTK.sum(1)[:, None]
        x_BDK, square_BDK = frames.values.mT @ a_BTK, frames.values.square().mT @ a_BTK
        c_DK = self.assign.weight * self.coupling if self.centres is None else self.centres
        # x − c = scale ⊙ (values − c'), so this is in terms of values. Factors without B are multiplied first, because
        # passes over [B, D, K] take the time.
        scale_D1, c_DK = frames.scale[:, None], c_DK - frames.shift[:, None]
        precision_DK = 1 / (self.deviation.square() + VARIANCE_FLOOR)
        first = torch.addcmul(x_BDK * (scale_D1 * precision_DK), a_B1K, -c_DK * precision_DK)
        precision_DK = precision_DK.square()
        second = torch.addcmul(
            square_BDK * (scale_D1.square() * precision_DK), x_BDK, -2 * scale_D1 * c_DK * precision_DK
        )
        second = torch.addcmul(second, a_B1K, c_DK.square() * precision_DK - 1)
        return torch.cat([intra_normalize(first), l2_normalize(second.flatten(1), 1)], 1)


class NetFV(PerFeature):
    """NetFV of each feature; the first has K clusters, each further one K/2.

    Args:
        config: number of clusters, and coupling of the centres.
        widths: D_f of each feature.
    """

    def __init__(self, config: NetFVConfig, widths: Sequence[int]) -> None:
        clusters = shares(config.clusters, len(widths), 2)
        coupling = config.coupling if config.centres == "coupled" else None
        parts = [NetFVFeature(width, k, coupling) for width, k in zip(widths, clusters, strict=True)]
        super().__init__(widths, parts, scale=1 / math.sqrt(config.clusters))
