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


def weighted(x_BTK: Tensor, counts_BT: Tensor | None) -> Tensor:
    """Each frame times how often it counts, so that padding is 0."""
    return x_BTK if counts_BT is None else x_BTK * counts_BT[..., None]


def frame_mean(x_BTK: Tensor, counts_BT: Tensor | None) -> Tensor:
    """Mean over the frames, [B, K]."""
    frames = x_BTK.shape[1] if counts_BT is None else counts_BT.sum(1, keepdim=True)
    return weighted(x_BTK, counts_BT).sum(1) / frames


@dataclass(frozen=True)
class Frames:
    """The frames of a batch, x = scale ⊙ values + shift.

    Of the input norm only scale and shift are learned. Apart from the values, which then need no gradient, they join a
    pooling's own weights, and training computes two products for each that tagging does, not three.

    Attributes:
        values: [B, T, D] float32.
        scale: [D].
        shift: [D].
        counts: [B, T] float32, 0 for padding, above 1 where a frame was drawn several times: sums over frames are then
            those over all draws. None where every frame counts once.
        real: [N] int64, places of the real frames among all B·T; None where all are.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor
    counts: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def plain(cls, values: Tensor, counts: Tensor | None) -> Frames:
        """Frames as they are."""
        width = values.shape[2]
        real = None if counts is None else counts.flatten().nonzero()[:, 0]
        return cls(values, values.new_ones(width), values.new_zeros(width), counts, real)

    @property
    def x(self) -> Tensor:
        """[B, T, D]; what padded frames hold is arbitrary."""
        return torch.addcmul(self.shift, self.values, self.scale)

    def split(self, widths: Sequence[int]) -> list[Frames]:
        """Each feature's own."""
        pieces = zip(
            *(torch.split(each, list(widths), -1) for each in (self.values, self.scale, self.shift)), strict=True
        )
        return [replace(self, values=values, scale=scale, shift=shift) for values, scale, shift in pieces]

    def product(self, weight_DK: Tensor) -> Tensor:
        """xW of the real frames alone, [N, K], which is where most of the work is."""
        rows_ND = self.values.flatten(0, 1)
        if self.real is not None:
            rows_ND = rows_ND.index_select(0, self.real)
        return torch.addmm(self.shift @ weight_DK, rows_ND, self.scale[:, None] * weight_DK)

    @property
    def real_counts(self) -> Tensor | None:
        """How often each real frame counts, [N], or None."""
        return None if self.counts is None or self.real is None else self.counts.flatten()[self.real]

    def spread(self, rows_NK: Tensor) -> Tensor:
        """Rows of the real frames, each at its place in [B, T, K]; padded frames have 0."""
        if self.real is not None:
            places = rows_NK.new_zeros(self.values[..., 0].numel(), rows_NK.shape[1])
            rows_NK = places.index_copy(0, self.real, rows_NK)
        return torch.unflatten(rows_NK, 0, self.values.shape[:2])
