"""Attention pooling: learned queries attend to all frames (Lee et al. 2019, pooling by multihead attention).

It is the usual attentive probe on frozen features: a projection, layer norm, multihead attention of learned queries,
and a gated residual layer on each query's output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltag.models.families import AttentionConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import Pooling, normal


class AttentionPooling(Pooling):
    """Pooling by Q learned queries that attend to the frames of all features.

    Args:
        config: sizes.
        widths: D_f of each feature.
    """

    def __init__(self, config: AttentionConfig, widths: Sequence[int]) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.outputs = config.queries * width
        self.scale = 1 / math.sqrt(self.outputs)
        self.project = nn.Linear(sum(widths), width)
        self.frame_norm = nn.LayerNorm(width)
        self.queries = normal(config.queries, width, scale=1.0)
        # No biases: one on the keys would change nothing.
        self.keys = nn.Linear(width, width, bias=False)
        self.values = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(width, width)
        self.answer_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.reduce = nn.Linear(2 * width, width)

    def forward(self, frames: Frames) -> Tensor:
        """Pool frames to [B, Q·W]."""
        x_BTW = self.frame_norm(self.project(frames.x))
        queries = self.queries.to(x_BTW.dtype).expand(len(x_BTW), -1, -1)
        # A frame that counts n times gets n times the weight in the softmax; padding, with log 0, gets none.
        bias_B11T = None if frames.weights is None else frames.weights.log()[:, None, None].to(x_BTW.dtype)
        answers = F.scaled_dot_product_attention(
            self._by_head(queries),
            self._by_head(self.keys(x_BTW)),
            self._by_head(self.values(x_BTW)),
            attn_mask=bias_B11T,
        )
        y_BQW = self.mix(answers.transpose(1, 2).flatten(2))
        gate, value = self.expand(self.answer_norm(y_BQW)).chunk(2, 2)
        return torch.flatten(y_BQW + self.reduce(F.silu(gate) * value), 1)

    def _by_head(self, x: Tensor) -> Tensor:
        """Reshape [B, N, W] to [B, heads, N, W/heads]."""
        return torch.unflatten(x, 2, (self.heads, -1)).transpose(1, 2)
