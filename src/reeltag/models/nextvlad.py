"""NeXtVLAD (Lin et al. 2018, arXiv:1811.05014, section 3; published file `nextvlad.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reeltag.models.config import shares
from reeltag.models.families import NeXtVLADConfig, groups_of
from reeltag.models.frames import Frames
from reeltag.models.layers import Dropout, FrameNorm, PerFeature, batch_norm, l2_normalize, normal


class NeXtVLADFeature(nn.Module):
    """NeXtVLAD of one feature: VLAD of frames that are split into G groups, each with its own attention and assignment.

    x̃ = xW + b of width λD is split into G groups of width λD/G. Group g of frame t has attention
    α = sigmoid(x̃U + u)_g and assignments a = softmax(BN(x̃V))_gk. V_dk = Σ_tg α a (x̃_gd − c_dk); columns are scaled
    to norm 1, then follow batch norm and dropout.

    Args:
        features: D.
        clusters: K.
        expansion: λ.
        groups: G.
        dropout: fraction of the vector that is dropped in training.
    """

    def __init__(self, features: int, clusters: int, expansion: int, groups: int, dropout: float) -> None:
        super().__init__()
        wide, self.groups = expansion * features, groups
        self.outputs = wide // groups * clusters
        self.expand = nn.Linear(features, wide)
        self.attend = nn.Linear(wide, groups)
        self.assign = normal(wide, groups * clusters, scale=math.sqrt(2 / wide))
        self.norm = FrameNorm(groups * clusters)
        self.centres = normal(wide // groups, clusters, scale=math.sqrt(2 * groups / wide))
        self.out_norm = batch_norm(self.outputs)
        self.dropout = Dropout(dropout)
        for linear in (self.expand, self.attend):
            nn.init.normal_(linear.weight, std=math.sqrt(2 / linear.in_features))
            nn.init.zeros_(linear.bias)

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, (λD/G)·K], feature-major."""
        wide = self.expand(frames.x)
        attention_BTG = frames.weighted(torch.sigmoid(self.attend(wide)))
        logits = self.norm(wide @ self.assign, frames.weights)
        a_BTGK = logits.unflatten(2, (self.groups, -1)).softmax(3) * attention_BTG[..., None]
        v_BDK = torch.einsum("btgd,btgk->bdk", wide.unflatten(2, (self.groups, -1)), a_BTGK)
        v_BDK = v_BDK - a_BTGK.sum((1, 2))[:, None] * self.centres
        dropped: Tensor = self.dropout(self.out_norm(l2_normalize(v_BDK, 1).flatten(1)))
        return dropped


class NeXtVLAD(PerFeature):
    """NeXtVLAD of each feature; the first has K clusters and G groups, each further one half as many.

    Args:
        config: sizes.
        widths: D_f of each feature.
    """

    def __init__(self, config: NeXtVLADConfig, widths: Sequence[int]) -> None:
        sizes = zip(widths, shares(config.clusters, len(widths), 2), groups_of(config.groups, len(widths)), strict=True)
        parts = [NeXtVLADFeature(d, k, config.expansion, g, config.vlad_dropout) for d, k, g in sizes]
        super().__init__(widths, parts, scale=math.sqrt(2 / sum(part.outputs for part in parts)))
