"""Batches of frames as poolings see them: values, mask, counts, and the input norm's scale and shift.

Shapes: B videos, T frames, D features, K clusters, N real frames of all videos together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return a mask [B, T] bool that is true for real frames and false for padding.

    Args:
        lengths: [B] int64, number of real frames of each video.
        frames: T.
    """
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


@dataclass(frozen=True)
class Frames:
    """A batch of frames, kept as x = scale ⊙ values + shift.

    The input norm learns only its scale and shift. Kept apart from the values, they multiply a pooling's weights
    instead of the frames. The values then need no gradient, so training takes two matrix products instead of three.

    Attributes:
        values: [B, T, D] float32.
        scale: [D].
        shift: [D].
        mask: [B, T] bool, true for real frames; None if all frames are real.
        counts: [B, T] float32, number of times that a frame was sampled, 0 for padding, by which sums over frames
            weigh it. None if every real frame counts once.
        real: [N] int64, indices of the real frames among all B·T; None if all frames are real.
    """

    values: Tensor
    scale: Tensor
    shift: Tensor
    mask: Tensor | None = None
    counts: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def plain(cls, values: Tensor, mask: Tensor | None = None, counts: Tensor | None = None) -> Frames:
        """Return frames with scale 1 and shift 0."""
        width = values.shape[2]
        real = None if mask is None else mask.flatten().nonzero()[:, 0]
        return cls(values, values.new_ones(width), values.new_zeros(width), mask, counts, real)

    @property
    def x(self) -> Tensor:
        """Frames [B, T, D]; the values of padded frames are arbitrary."""
        return torch.addcmul(self.shift, self.values, self.scale)

    @property
    def weights(self) -> Tensor | None:
        """Weight of each frame [B, T] float32: its count, 0 for padding; None if every frame counts once."""
        return self.mask.float() if self.counts is None and self.mask is not None else self.counts

    def weighted(self, x_BTK: Tensor) -> Tensor:
        """Multiply each frame by its weight, which sets padding to 0."""
        return x_BTK if self.weights is None else x_BTK * self.weights[..., None]

    def mean(self, x_BTK: Tensor) -> Tensor:
        """Return the weighted mean over the frames, [B, K]."""
        frames = x_BTK.shape[1] if self.weights is None else self.weights.sum(1, keepdim=True)
        return self.weighted(x_BTK).sum(1) / frames

    def split(self, widths: Sequence[int]) -> list[Frames]:
        """Split the frames by feature.

        Args:
            widths: D_f of each feature, in order.
        """
        pieces = [torch.split(each, list(widths), -1) for each in (self.values, self.scale, self.shift)]
        return [replace(self, values=v, scale=scale, shift=shift) for v, scale, shift in zip(*pieces, strict=True)]

    def product(self, weight_DK: Tensor, bias_K: Tensor | float = 0.0) -> Tensor:
        """Return xW + b [N, K] for the real frames only; most of a pooling's work is this product."""
        rows_ND = self.values.flatten(0, 1)
        if self.real is not None:
            rows_ND = rows_ND.index_select(0, self.real)
        return torch.addmm(self.shift @ weight_DK + bias_K, rows_ND, self.scale[:, None] * weight_DK)

    @property
    def row_weights(self) -> Tensor | None:
        """Weight of each row of `product`, [N]; None if each counts once."""
        if self.counts is None:
            return None
        return self.counts.flatten() if self.real is None else self.counts.flatten()[self.real]

    def spread(self, rows_NK: Tensor) -> Tensor:
        """Scatter rows of the real frames [N, K] to [B, T, K]; padded frames get 0."""
        if self.real is not None:
            padded = rows_NK.new_zeros(self.values[..., 0].numel(), rows_NK.shape[1])
            rows_NK = padded.index_copy(0, self.real, rows_NK)
        return rows_NK.view(*self.values.shape[:2], -1)

    def counted(self, a_BTK: Tensor) -> Tensor:
        """Multiply the output of `spread` by the counts; cheaper than `weighted`, because padding is 0 already."""
        return a_BTK if self.counts is None else a_BTK * self.counts[..., None]
