"""Time and cost in GAP of the ways to compute a member, on generated videos."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reeltag.artifact.file import Member
from reeltag.core.errors import ReeltagError
from reeltag.data.schema import Schema
from reeltag.inference.engines.ways import Way, open_member
from reeltag.inference.metrics.video_metrics import TOP_K, top_k

COSTED = 16  # generated videos on which the cost in GAP is measured
SECONDS, CALLS = 0.03, 2  # a way is timed at least this long and this often, and the shortest call counts
LONGEST = 2.0  # seconds that a timed call of `exact` should take at most; else there are fewer videos, then frames
FEWEST_VIDEOS, FEWEST_FRAMES = 64, 32  # in fewer, what a call costs by itself hides how fast a way is
CENTRE, SPREAD, NOISE = 127.5, 40, 25  # of the codes: mean, deviation of a video's frames, and of each frame from it
STEPS = 64  # codes a unit of features in floating point

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """Measurements of one way to compute a member.

    Attributes:
        member: its name.
        way: engine and mode.
        milliseconds: of a call.
        gap_cost: expected loss of GAP@20 against `exact`.
    """

    member: str
    way: Way
    milliseconds: float
    gap_cost: float


@torch.inference_mode()
def measure(member: Member, schema: Schema, ways: Sequence[Way], videos: int) -> list[Measured]:
    """Measure some ways to compute a member, one after the other; those that fail on this machine are left out.

    Args:
        member: with its weights.
        schema: of the data that it reads.
        ways: the ways, `exact` first.
        videos: number of videos of a timed call.
    """
    rows: list[Measured] = []
    costed = timed = generated(schema, 1, 1)
    exact = torch.empty(0)
    for way in ways:
        try:
            module = open_member(member, schema, way)
            if way == "exact":
                timed_videos, frames = _affordable(module, schema, videos)
                costed, timed = generated(schema, COSTED, frames), generated(schema, timed_videos, frames)
            scores = module(*costed)
            milliseconds = 1000 * seconds(module, timed)
        except (ReeltagError, RuntimeError, MemoryError) as error:  # such as no kernel, or no ONNX form of the family
            if way == "exact":
                raise
            logger.info("%s: not computed in %s (%s)", member.name, way, error)
            continue
        exact = scores if way == "exact" else exact
        cost = 0.0 if way == "exact" else expected_gap(exact, exact) - expected_gap(exact, scores)
        if way != "exact" and not (math.isfinite(cost) and bool(scores.isfinite().all())):
            logger.warning("%s: not computed in %s, because its probabilities are not finite", member.name, way)
            continue
        rows.append(Measured(member.name, way, milliseconds, cost))
        del module  # before the next one takes its memory
    return rows


def seconds(module: nn.Module, inputs: tuple[Tensor, Tensor]) -> float:
    """Return the duration of the shortest of some calls."""
    # The CPU time of a single thread does not depend on what else the machine does.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: list[float] = []
    while len(times) < CALLS or sum(times) < SECONDS:
        begin = clock()
        module(*inputs)
        times.append(clock() - begin)
    return min(times)


def expected_gap(relevance: Tensor, scores: Tensor) -> float:
    """Return the GAP@20 of scores [B, C] where each class of each video is a label with a known probability.

    Args:
        relevance: [B, C], the probabilities; what the model itself predicts stands for labels that nobody knows.
        scores: [B, C], by which classes are ranked.
    """
    ranked, classes = top_k(scores, TOP_K)
    order = ranked.flatten().argsort(descending=True, stable=True)
    found = relevance.gather(1, classes).flatten()[order].double()
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)
    return float((precision * found).sum() / relevance.double().sum())


def generated(schema: Schema, videos: int, frames: int) -> tuple[Tensor, Tensor]:
    """Generate frames [B, T, D] in the schema's dtype, and lengths [B]; like real ones, a video's frames are similar.

    Half of them, and a single video, have all frames, as most real ones do; the other lengths are from 40 % of T, so
    that padding is part of the work.
    """
    generator = torch.Generator().manual_seed(0)
    centres = CENTRE + SPREAD * torch.randn(videos, 1, schema.width, generator=generator)
    codes = centres + NOISE * torch.randn(videos, frames, schema.width, generator=generator)
    lengths = torch.linspace(frames, 0.4 * frames, videos).round().long().clamp_min(1)
    lengths[::2] = frames
    if schema.dtype == "uint8":
        return codes.round().clamp(0, 255).byte(), lengths
    return (codes - CENTRE) / STEPS, lengths


def _frames_of(schema: Schema) -> int:
    return schema.example_frames if schema.level == "frame" else 1


def _affordable(module: nn.Module, schema: Schema, videos: int) -> tuple[int, int]:
    """Return the numbers of videos and frames with which a timed call takes at most about two seconds."""
    frames = _frames_of(schema)
    some = min(videos, COSTED)
    each = seconds(module, generated(schema, some, frames)) / some  # a single video alone may take five times as long
    videos = min(videos, max(FEWEST_VIDEOS, int(LONGEST / each)))
    return videos, min(frames, max(FEWEST_FRAMES, int(LONGEST / each / videos * frames)))
