"""NetVLAD (Arandjelović et al. 2016; paper section 2.1; golden `layer_netvlad`) and LightVLAD (`layer_lightvlad`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reeltag.models.config import shares
from reeltag.models.families import NetVLADConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import PerFeature, SoftAssignment, intra_normalize, normal


class NetVLADFeature(nn.Module):
    """NetVLAD of one feature: softly assigned residuals of its frames to K centres.

    V_dk = Σ_t a_tk (x_td − c_dk); each column, then the whole, is scaled to norm 1. LightVLAD leaves c out.

    Args:
        features: D.
        clusters: K.
        light: leave out the centres (LightVLAD).
    """

    def __init__(self, features: int, clusters: int, light: bool = False) -> None:
        super().__init__()
        self.outputs = features * clusters
        self.assign = SoftAssignment(features, clusters)
        self.centres = None if light else normal(features, clusters, scale=1 / math.sqrt(features))

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, D·K], D-major."""
        a_BTK = frames.counted(self.assign(frames))
        scale_D1, shift_D1 = frames.scale[:, None], frames.shift[:, None]
        c_DK = shift_D1 if self.centres is None else shift_D1 - self.centres
        v_BDK = torch.addcmul(frames.values.mT @ a_BTK * scale_D1, a_BTK.sum(1)[:, None], c_DK)
        return intra_normalize(v_BDK)


class NetVLAD(PerFeature):
    """NetVLAD of each feature; the first has K clusters, each further one K/2.

    Args:
        config: number of clusters, and kind of centres.
        widths: D_f of each feature.
    """

    def __init__(self, config: NetVLADConfig, widths: Sequence[int]) -> None:
        clusters = shares(config.clusters, len(widths), 2)
        light = config.centres == "none"
        parts = [NetVLADFeature(width, k, light) for width, k in zip(widths, clusters, strict=True)]
        super().__init__(widths, parts, scale=1 / math.sqrt(config.clusters))
