"""Estimate the GPU time of a training by its floating-point operations, before it runs."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import Tagger, meta_tagger

FLOPS_A_SECOND = 1e13  # assumed throughput of a training
FORWARD_AND_BACKWARD = 3  # the backward pass takes twice the operations of the forward pass


def gpu_hours(config: TaggerConfig, widths: tuple[int, ...], classes: int, frames: int, videos: float) -> float:
    """Estimate the hours of training at 10 TFLOP/s, without reading the videos.

    Args:
        config: of the tagger.
        widths: D_f of each feature.
        classes: C.
        frames: T of a video.
        videos: number of videos trained on; a video counts each time it is seen.
    """
    return FORWARD_AND_BACKWARD * flops(config, widths, classes, frames) * videos / FLOPS_A_SECOND / 3600


def flops(config: TaggerConfig, widths: tuple[int, ...], classes: int, frames: int) -> int:
    """Count the floating-point operations of the matrix products that tag one video of T frames."""
    short, long = _flops_of_one_and_two_frames(config, widths, classes)
    return short + (long - short) * (frames - 1)  # every pooling is linear in its frames


@lru_cache  # a plan asks several times for each model, and counting takes 0.1 s
def _flops_of_one_and_two_frames(config: TaggerConfig, widths: tuple[int, ...], classes: int) -> tuple[int, int]:
    tagger = meta_tagger(config, widths, classes).eval()
    return _flops(tagger, sum(widths), 1), _flops(tagger, sum(widths), 2)


def _flops(tagger: Tagger, width: int, frames: int) -> int:
    with FlopCounterMode(display=False) as counter:
        tagger.tag(torch.empty(1, frames, width, device="meta"))
    total: int = counter.get_total_flops()
    return total
