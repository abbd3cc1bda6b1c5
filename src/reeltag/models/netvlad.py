"""NetVLAD (Arandjelović et al. 2016; paper section 2.1; golden `layer_netvlad`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from reeltag.models.config import TaggerConfig
from reeltag.models.layers import FrameNorm, l2_normalize, normal


class NetVLADConfig(TaggerConfig):
    """Keys of the NetVLAD family."""

    family: Literal["netvlad"]
    clusters: int = Field(64, gt=1, description="K of the first feature; each further one gets K/2")


class NetVLADFeature(nn.Module):
    """Residuals of one feature's frames to K centres, softly assigned.

    a = softmax(BN(xW)); V_dk = Σ_t a_tk (x_td − c_dk); each column and then the whole has norm 1.

    Args:
        features: D.
        clusters: K.
    """

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        scale = 1 / math.sqrt(features)
        self.assign = normal(features, clusters, scale=scale)
        self.norm = FrameNorm(clusters)
        self.centres = normal(features, clusters, scale=scale)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Pool frames to [B, D·K], D-major."""
        a_BTK = self.norm(x_BTD @ self.assign, mask_BT).softmax(2)
        if mask_BT is not None:
            a_BTK = a_BTK * mask_BT[..., None]
        v_BDK = torch.einsum("btd,btk->bdk", x_BTD, a_BTK) - a_BTK.sum(1)[:, None] * self.centres
        return l2_normalize(l2_normalize(v_BDK, 1).flatten(1), 1)


class NetVLAD(nn.Module):
    """Pools each feature apart and concatenates.

    Args:
        config: sizes.
        widths: D_f of each feature.

    Attributes:
        outputs: width of the pooled vector.
        scale: standard deviation of the hidden layer's initial weights, 1/√K.
    """

    def __init__(self, config: NetVLADConfig, widths: Sequence[int]) -> None:
        super().__init__()
        clusters = [config.clusters, *[config.clusters // 2] * (len(widths) - 1)]
        self.widths = list(widths)
        self.parts = nn.ModuleList(map(NetVLADFeature, widths, clusters))
        self.outputs = sum(width * k for width, k in zip(widths, clusters, strict=True))
        self.scale = 1 / math.sqrt(config.clusters)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Pool normalised frames to [B, outputs]; the mask is None where every frame is real."""
        pieces = torch.split(x_BTD, self.widths, 2)
        return torch.cat([part(piece, mask_BT) for part, piece in zip(self.parts, pieces, strict=True)], 1)
