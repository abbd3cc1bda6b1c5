"""How long a training will take on a GPU, as far as its arithmetic tells before anything ran."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import Tagger, meta_tagger

# What a training is taken to sustain, over its products and everything else.
FLOPS_A_SECOND = 1e13
# A step computes the products of the forward pass, and twice as many for the gradients.
FORWARD_AND_BACKWARD = 3


def gpu_hours(config: TaggerConfig, widths: tuple[int, ...], classes: int, frames: int, videos: float) -> float:
    """Hours of training at 10 TFLOP/s; reading the videos is not counted.

    Args:
        config: of the tagger.
        widths: D_f of each feature.
        classes: C.
        frames: T of a video.
        videos: how many are trained on, each as often as it is seen.
    """
    return FORWARD_AND_BACKWARD * flops(config, widths, classes, frames) * videos / FLOPS_A_SECOND / 3600


def flops(config: TaggerConfig, widths: tuple[int, ...], classes: int, frames: int) -> int:
    """Floating-point operations of the products that tag one video of T frames."""
    short, long = _flops_of_one_and_two_frames(config, widths, classes)
    return short + (long - short) * (frames - 1)  # every pooling is linear in its frames


@lru_cache  # a plan asks for each model several times, and counting takes a tenth of a second
def _flops_of_one_and_two_frames(config: TaggerConfig, widths: tuple[int, ...], classes: int) -> tuple[int, int]:
    tagger = meta_tagger(config, widths, classes).eval()
    return _flops(tagger, sum(widths), 1), _flops(tagger, sum(widths), 2)


def _flops(tagger: Tagger, width: int, frames: int) -> int:
    with FlopCounterMode(display=False) as counter:
        tagger.tag(torch.empty(1, frames, width, device="meta"))
    total: int = counter.get_total_flops()
    return total
