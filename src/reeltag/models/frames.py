"""Frames on their way from the input to a pooling.

Shapes: B videos, T frames, D features, K clusters, N real frames of all videos together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """[B, T] bool, true where a frame is real."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Frames:
    """The frames of a batch, x = scale ⊙ values + shift.

    Of the input norm only scale and shift are learned. Apart from the values, which then need no gradient, they join a
    pooling's own weights, and training computes two products for each that tagging does, not three.

    Attributes:
        values: [B, T, D] float32.
        scale: [D].
        shift: [D].
        mask: [B, T] bool, true where a frame is real; None where all are.
        counts: [B, T] float32, how often a frame was drawn, 0 for padding: sums over frames are then those over all
            draws. None where every real frame counts once.
        real: [N] int64, places of the real frames among all B·T; None where all are.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor
    mask: Tensor | None = None
    counts: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def plain(cls, values: Tensor, mask: Tensor | None = None, counts: Tensor | None = None) -> Frames:
        """Frames as they are."""
        width = values.shape[2]
        real = None if mask is None else mask.flatten().nonzero()[:, 0]
        return cls(values, values.new_ones(width), values.new_zeros(width), mask, counts, real)

    @property
    def x(self) -> Tensor:
        """[B, T, D]; what padded frames hold is arbitrary."""
        return torch.addcmul(self.shift, self.values, self.scale)

    @property
    def weights(self) -> Tensor | None:
        """[B, T] float32, how often each frame counts, 0 for padding; None where every frame counts once."""
        return self.mask.float() if self.counts is None and self.mask is not None else self.counts

    def weighted(self, x_BTK: Tensor) -> Tensor:
        """Each frame times how often it counts, so that padding is 0."""
        return x_BTK if self.weights is None else x_BTK * self.weights[..., None]

    def mean(self, x_BTK: Tensor) -> Tensor:
        """Mean over the frames, [B, K]."""
        frames = x_BTK.shape[1] if self.weights is None else self.weights.sum(1, keepdim=True)
        return self.weighted(x_BTK).sum(1) / frames

    def split(self, widths: Sequence[int]) -> list[Frames]:
        """Each feature's own."""
        pieces = [torch.split(each, list(widths), -1) for each in (self.values, self.scale, self.shift)]
        return [replace(self, values=v, scale=scale, shift=shift) for v, scale, shift in zip(*pieces, strict=True)]

    def product(self, weight_DK: Tensor, bias_K: Tensor | float = 0.0) -> Tensor:
        """xW + b of the real frames alone, [N, K], which is where most of the work is."""
        rows_ND = self.values.flatten(0, 1)
        if self.real is not None:
            rows_ND = rows_ND.index_select(0, self.real)
        return torch.addmm(self.shift @ weight_DK + bias_K, rows_ND, self.scale[:, None] * weight_DK)

    @property
    def row_weights(self) -> Tensor | None:
        """How often each row of `product` counts, [N]; None where each counts once."""
        if self.counts is None:
            return None
        return self.counts.flatten() if self.real is None else self.counts.flatten()[self.real]

    def spread(self, rows_NK: Tensor) -> Tensor:
        """Rows of the real frames, each at its place in [B, T, K]; padded frames have 0."""
        if self.real is not None:
            places = rows_NK.new_zeros(self.values[..., 0].numel(), rows_NK.shape[1])
            rows_NK = places.index_copy(0, self.real, rows_NK)
        return rows_NK.view(*self.values.shape[:2], -1)

    def counted(self, a_BTK: Tensor) -> Tensor:
        """What was spread, times how often each frame counts; cheaper than `weighted`, as its padding is 0 already."""
        return a_BTK if self.counts is None else a_BTK * self.counts[..., None]
