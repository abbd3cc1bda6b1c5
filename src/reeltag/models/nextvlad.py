"""NeXtVLAD (Lin et al. 2018, arXiv:1811.05014, section 3; published file `nextvlad.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from reeltag.models.config import (
    Activation,
    GatingConfig,
    TaggerConfig,
    at_least_for_further_features,
    feature_widths,
)
from reeltag.models.frames import Frames
from reeltag.models.layers import Dropout, FrameNorm, PerFeature, batch_norm, l2_normalize, normal, shares


class NeXtVLADConfig(TaggerConfig):
    """Keys of the NeXtVLAD family."""

    family: Literal["nextvlad"]
    clusters: int = Field(64, gt=1, description="K of the first feature; each further one gets K/2")
    expansion: int = Field(2, gt=0, description="λ, a frame is projected from D to λ·D first")
    groups: int = Field(8, gt=0, description="G of the first feature; each further one gets G/2")
    vlad_dropout: float = Field(0.5, ge=0, lt=1, description="fraction of the pooled vector dropped in training")
    input_norm: bool = False
    activation: Activation = "norm"
    gating: GatingConfig = GatingConfig(kind="se")

    @field_validator("clusters")
    @classmethod
    def _clusters_for_all(cls, value: int, info: ValidationInfo) -> int:
        return at_least_for_further_features(value, info, 2)

    @field_validator("groups")
    @classmethod
    def _divides_every_feature(cls, value: int, info: ValidationInfo) -> int:
        widths, expansion = feature_widths(info), info.data.get("expansion")
        if expansion is None or not widths:
            return value
        for width, groups in zip(widths, groups_of(value, len(widths)), strict=True):
            if expansion * width % groups:
                allowed = [str(g) for g in range(1, 65) if _fits(g, widths, expansion)]
                raise ValueError(
                    f"{value} must divide expansion·D for every feature, here {expansion}·{width} by {groups}; "
                    f"allowed: {', '.join(allowed)}"
                )
        return value


def groups_of(count: int, features: int) -> list[int]:
    """Return the number of groups of each feature: G for the first, max(1, G/2) for each further one."""
    return [max(1, groups) for groups in shares(count, features, 2)]


def _fits(count: int, widths: Sequence[int], expansion: int) -> bool:
    return all(expansion * width % g == 0 for width, g in zip(widths, groups_of(count, len(widths)), strict=True))


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
