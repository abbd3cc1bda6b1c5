"""Samples for the report: videos with their tags over time, the effect of gates, training curves, the machine."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reeltag.core.environment import cpuinfo_value, default_device
from reeltag.data.formats.example import FrameArray, Video
from reeltag.data.shards import Shards
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.video_metrics import top_k
from reeltag.inference.predictor import Predictor
from reeltag.inference.timeline import segment_spans
from reeltag.models.heads import MixtureOfExperts
from reeltag.models.tagger import Tagger
from reeltag.pipeline.executor import Job
from reeltag.pipeline.report.gating import FREQUENT_CLASSES, CoOccurrence, gating_gain
from reeltag.pipeline.report.results import Gating
from reeltag.pipeline.stages.trained_model import TrainedModelStages
from reeltag.training.log import LOG, Row, read_rows

SAMPLES = 5  # best videos, and as many worst ones
CANDIDATES = 100  # videos from each end of the ranking, of which those with different labels are taken
TAGS = 8
CURVE_POINTS = 200


def margins(predictions: Predictions) -> Tensor:
    """Return [B] margins of the least probable label over the most probable other class; NaN without labels."""
    probabilities, labels = predictions.comparable, predictions.labels
    assert labels is not None
    least = probabilities.masked_fill(~labels, torch.inf).min(1).values
    other = probabilities.masked_fill(labels, -torch.inf).max(1).values
    margin = least - other
    return margin.masked_fill(~margin.isfinite(), torch.nan)


def sampled_videos(predictor: Predictor, shards: Shards, above: Tensor) -> dict[str, list[dict[str, Any]]]:
    """Return the videos with the highest and the lowest margin, with their tags over time.

    No two videos have the same labels.

    Args:
        predictor: tags the videos.
        shards: of the N videos.
        above: [N] margins.
    """
    ranked = above.argsort(descending=True, stable=True)
    order, seen, samples = ranked[~above[ranked].isnan()].tolist(), set[tuple[int, ...]](), {}
    for kind, indices in {"best": order[:CANDIDATES], "worst": order[::-1][:CANDIDATES]}.items():
        chosen = islice(_with_new_labels(shards, indices, seen), SAMPLES)
        samples[kind] = [_tagged(predictor, video, float(above[index])) for index, video in chosen]
    return samples


def _with_new_labels(shards: Shards, indices: Sequence[int], seen: set[tuple[int, ...]]) -> Iterator[tuple[int, Video]]:
    """Yield the videos whose labels no video before had."""
    for index in indices:
        video = shards.read(index)
        assert video.labels is not None
        labels = tuple(video.labels.tolist())
        if labels not in seen:
            seen.add(labels)
            yield index, video


def _tagged(predictor: Predictor, video: Video, margin: float) -> dict[str, Any]:
    """Return a video's labels and most probable other classes, at most eight, with their scores over time."""
    assert video.labels is not None
    frames = video.frames()
    spans = segment_spans(len(frames)) if len(frames) > 1 else []
    whole, *parts = predictor.predict_each([frames, *(frames[begin:end] for begin, end in spans)])
    labels = video.labels.tolist()[:TAGS]
    ranked = top_k(torch.from_numpy(whole)[None], TAGS)[1][0].tolist()
    others = [number for number in ranked if number not in labels][: TAGS - len(labels)]
    tags = [
        {
            "name": predictor.label_names[number],
            "score": round(float(whole[number]), 5),
            "label": number in labels,
            "segments": [round(float(part[number]), 3) for part in parts],
        }
        for number in sorted([*labels, *others], key=lambda number: -whole[number])
    ]
    return {"id": video.id, "frames": len(frames), "margin": round(margin, 5), "tags": tags}


def class_courses(
    predictor: Predictor, shards: Shards, videos: Sequence[int], classes: Sequence[int]
) -> list[tuple[int, list[float]]]:
    """Return of each of R videos its frames, and the probability of a class over time, in at most 40 stretches.

    A video is read and tagged once for all its classes. One of a single frame has none.

    Args:
        predictor: tags the stretches, each as a video of its own.
        shards: hold the videos.
        videos: [R], indices of the videos; an index may occur several times.
        classes: [R], the class in each.
    """
    order = sorted(range(len(videos)), key=videos.__getitem__)
    lengths, strips = [0] * len(videos), [list[float]() for _ in videos]
    waiting: deque[list[int]] = deque()  # rows of each stretch that is not tagged yet

    def stretches() -> Iterator[FrameArray]:
        for video, rows in groupby(order, key=videos.__getitem__):
            frames, listed = shards.read(video).frames(), list(rows)
            for row in listed:
                lengths[row] = len(frames)
            for begin, end in segment_spans(len(frames)) if len(frames) > 1 else []:
                waiting.append(listed)
                yield frames[begin:end]

    for scores in predictor.predict_each(stretches()):
        for row in waiting.popleft():
            strips[row].append(round(float(scores[classes[row]]), 3))
    return list(zip(lengths, strips, strict=True))


class GateProbe:
    """Statistics of the inputs and outputs of a member's gate on the probabilities, for the most frequent classes.

    Args:
        gate: on the probabilities.
        counts: [C], videos of each class.
    """

    def __init__(self, gate: torch.nn.Module, counts: Tensor) -> None:
        frequent = counts.argsort(descending=True, stable=True)[:FREQUENT_CLASSES]
        self.classes, self.gate = frequent.sort().values, gate
        self._labels = self._without = self._gated = CoOccurrence.zeros(len(self.classes))

    def observe(self, predictions: Iterator[Predictions]) -> Iterator[Predictions]:
        """Yield labelled predictions unchanged, and add them to the statistics."""
        ungated: list[Tensor] = []
        hook = self.gate.register_forward_pre_hook(lambda _, inputs: ungated.append(inputs[0]))
        try:
            for part in predictions:
                assert part.labels is not None
                self._labels += self._of(part.labels)
                self._without += self._of(ungated.pop())
                self._gated += self._of(part.probabilities)
                yield part
        finally:
            hook.remove()

    def gain(self) -> Gating | None:
        """Return the gate's effect on pairs of classes, which are named by their indices in the data."""
        found = gating_gain(self._labels, self._without, self._gated)
        for pair in found["changed"] if found else ():
            first, second = self.classes[list(pair["classes"])].tolist()
            pair["classes"] = (first, second)
        return found

    def _of(self, values: Tensor) -> CoOccurrence:
        return CoOccurrence.of(values.cpu().float()[:, self.classes].numpy())


def gate_of(model: torch.nn.Module) -> torch.nn.Module | None:
    """Return the gate on a single member's probabilities, or None."""
    (tagger,) = (module for module in model.modules() if isinstance(module, Tagger))
    return tagger.head.prob_gate if isinstance(tagger.head, MixtureOfExperts) else None


def curve(member: TrainedModelStages, job: Job) -> dict[str, list[float | None]]:
    """Return the logs of a model's training and averaging as columns, in at most 200 bins of equally many steps."""
    folders = dict.fromkeys((member.training.stage_name, member.last_training))
    rows = [row for stage in folders for row in read_rows(job.inputs[stage] / LOG)]
    steps = np.diff([row.step for row in rows], prepend=0)
    bins = ((np.array([row.step for row in rows]) - 1) * CURVE_POINTS // rows[-1].step).tolist()
    binned = zip(bins, rows, steps.tolist(), strict=True)
    thin = [_mean_row([each[1:] for each in group]) for _, group in groupby(binned, key=itemgetter(0))]
    return {
        "epoch": [row.epoch for row in thin],
        "loss": [row.loss for row in thin],
        "holdout_gap": [row.holdout_gap for row in thin],
    }


def _mean_row(rows: Sequence[tuple[Row, int]]) -> Row:
    """Merge rows: the end of the last one, the mean loss of all steps, and the last measured GAP."""
    gaps = [row.holdout_gap for row, _ in rows if row.holdout_gap is not None]
    loss = sum(row.loss * steps for row, steps in rows) / sum(steps for _, steps in rows)
    return rows[-1][0]._replace(loss=float(f"{loss:.5g}"), holdout_gap=gaps[-1] if gaps else None)


def machine() -> dict[str, str]:
    """Describe the machine and its threads, on which the last bits of a sum depend."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpuinfo_value("model name") or platform.processor() or "unknown",
        "cpus": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name() if default_device() == "cuda" else "cpu",
    }
