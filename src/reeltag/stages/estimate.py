"""How long a training will take on a GPU, as far as its arithmetic tells before anything ran."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from reeltag.models.tagger import Tagger

# What a training is taken to sustain, over its products and everything else.
FLOPS_A_SECOND = 1e13
# A step computes the products of the forward pass, and twice as many for the gradients.
FORWARD_AND_BACKWARD = 3


def gpu_hours(tagger: Tagger, widths: Sequence[int], frames: int, videos: float) -> float:
    """Hours of training at 10 TFLOP/s; reading the videos is not counted.

    Args:
        tagger: on the meta device.
        widths: D_f of each feature.
        frames: T of a video.
        videos: how many are trained on, each as often as it is seen.
    """
    return FORWARD_AND_BACKWARD * flops(tagger, widths, frames) * videos / FLOPS_A_SECOND / 3600


def flops(tagger: Tagger, widths: Sequence[int], frames: int) -> int:
    """Floating-point operations of the products that tag one video of T frames; the tagger is on the meta device."""
    short, long = (_flops(tagger, sum(widths), count) for count in (1, 2))
    return short + (long - short) * (frames - 1)  # every pooling is linear in its frames


def _flops(tagger: Tagger, width: int, frames: int) -> int:
    with FlopCounterMode(display=False) as counter:
        tagger.eval().tag(torch.empty(1, frames, width, device="meta"))
    total: int = counter.get_total_flops()
    return total
