"""Deep bag of frames: classic (Abu-El-Haija et al. 2016), soft and gated (paper section 2.1; golden `layer_*dbof`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltag.models.config import shares
from reeltag.models.families import DBoFConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import (
    Clusters,
    PerFeature,
    Pooling,
    SoftAssignment,
    batch_norm,
    l2_normalize,
    normal,
)


class ClassicDBoF(Clusters, Pooling):
    """Classic DBoF: maximum or mean over frames of relu6(BN(xW)), on all features jointly (golden `model_dbof`).

    Args:
        features: D.
        clusters: K.
        mean: pool by the mean instead of the maximum.
    """

    def __init__(self, features: int, clusters: int, mean: bool) -> None:
        super().__init__(features, clusters)
        self.outputs, self.scale, self.mean = clusters, 1 / math.sqrt(clusters), mean

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, K]."""
        a_BTK = frames.spread(super().forward(frames))
        # The maximum comes before relu6, which is monotonic, and so has T times less to do. It is never negative, so
        # padded frames, which are 0, do not change the result.
        return frames.mean(F.relu6(a_BTK)) if self.mean else F.relu6(a_BTK.amax(1))


class SoftDBoF(nn.Module):
    """Soft DBoF: s = Σ_t softmax(BN(xW)), scaled to norm 1; optionally with the maximum over frames, scaled likewise.

    Args:
        features: D.
        clusters: K.
        maximum: append the maximum.
    """

    def __init__(self, features: int, clusters: int, maximum: bool = False) -> None:
        super().__init__()
        self.outputs, self.maximum = clusters * (1 + maximum), maximum
        self.assign = SoftAssignment(features, clusters)

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, K], or [B, 2·K] with the maximum."""
        a_BTK = self.assign(frames)
        total = l2_normalize(frames.counted(a_BTK).sum(1), 1)
        return torch.cat([total, l2_normalize(a_BTK.amax(1), 1)], 1) if self.maximum else total


class GatedDBoF(nn.Module):
    """Gated DBoF: sigmoid(BN(m R W₂)) ⊙ Σ_t a_t with a = softmax(BN(xW)), m = max_t a_t; both scaled to norm 1.

    Args:
        features: D, also the width of the bottleneck between R and W₂.
        clusters: K.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        scale = 1 / math.sqrt(features)
        self.outputs = clusters
        self.assign = SoftAssignment(features, clusters)
        self.reduce = normal(clusters, features, scale=scale)
        self.expand = normal(features, clusters, scale=scale)
        self.norm = batch_norm(clusters)

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, K]."""
        a_BTK = self.assign(frames)
        maximum_BK = l2_normalize(a_BTK.amax(1), 1)
        gates_BK = torch.sigmoid(self.norm(maximum_BK @ self.reduce @ self.expand))
        return l2_normalize(gates_BK * frames.counted(a_BTK).sum(1), 1)


def build_dbof(config: DBoFConfig, widths: Sequence[int]) -> Pooling:
    """Build the pooling that a configuration names; of `gated` only the first feature is gated, the others are soft.

    Args:
        config: kind of pooling, and number of clusters.
        widths: D_f of each feature.
    """
    if config.pooling in ("max", "mean"):
        return ClassicDBoF(sum(widths), config.clusters, config.pooling == "mean")
    clusters = shares(config.clusters, len(widths), 8)
    parts: list[nn.Module] = [
        SoftDBoF(width, k, config.pooling == "soft+max") for width, k in zip(widths, clusters, strict=True)
    ]
    if config.pooling == "gated":
        parts[0] = GatedDBoF(widths[0], clusters[0])
    return PerFeature(widths, parts, scale=1 / math.sqrt(config.clusters))
