"""Evaluate a model file on labelled shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from reeltag.artifact.file import Artifact
from reeltag.core.storage import DataFile, Patterns
from reeltag.core.text import counted
from reeltag.data.bad_records import BadRecords
from reeltag.data.labels import Encoding
from reeltag.data.loader import Batch
from reeltag.inference.ensemble import predict_batches
from reeltag.inference.metrics.evaluation import Evaluation, evaluate_predictions
from reeltag.inference.metrics.outcomes import THRESHOLD, AtThreshold, Outcomes, check_threshold
from reeltag.inference.metrics.video_metrics import Scores
from reeltag.inference.predictor import AnyMode, Predictor, load


def evaluate(  # noqa: PLR0913 (each is an option of `reeltag evaluate`)
    model: str | Path | Predictor,
    shards: Patterns,
    *,
    labels: str | Path | None = None,
    label_encoding: Encoding | None = None,
    all_scores: bool = False,
    mode: AnyMode = "auto",
    frames: int | None = None,
    seed: int | None = None,
    max_bad_records: int = 0,
) -> Scores:
    """Measure a model on labelled shards or other labelled features, as `reeltag evaluate` does.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a loaded `Predictor` (its mode counts).
        shards: paths, URLs or glob patterns, one or several.
        labels: file of labels for features that are not shards; by default they are found beside the features.
        label_encoding: form of these labels, `index`, `n-hot` or `name`; by default it is found, if only one fits.
        all_scores: also compute mAP over all scores.
        mode: how the model is computed; see `load`.
        frames: number of frames to tag each video from, drawn uniformly with replacement; all by default.
        seed: of the drawn frames, 0 by default; the draw depends on it and on the video's id alone.
        max_bad_records: largest number of bad records to leave out.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    bad = BadRecords(max_bad_records)
    predictor = model if isinstance(model, Predictor) else load(model, mode)
    return predictor.evaluate_shards(
        shards,
        bad,
        labels=labels,
        label_encoding=label_encoding,
        all_scores=all_scores,
        frames=frames,
        seed=seed,
    )


@dataclass(frozen=True)
class Judgement:
    """Metrics of a model, those at a threshold, and its labels and predictions one by one, if they were kept."""

    scores: Scores
    at_threshold: AtThreshold
    outcomes: Outcomes | None


def judge(  # noqa: PLR0913 (each is an option of `reeltag evaluate`)
    predictor: Predictor,
    shards: Patterns,
    bad: BadRecords,
    *,
    threshold: float = THRESHOLD,
    rows: bool = False,
    all_scores: bool = False,
    labels: str | Path | None = None,
    label_encoding: Encoding | None = None,
    frames: int | None = None,
    seed: int | None = None,
) -> Judgement:
    """Measure a model on labelled shards, also at a threshold.

    The other arguments are those of `evaluate`.

    Args:
        predictor: the model.
        shards: paths, URLs or glob patterns, one or several.
        bad: collects bad records.
        threshold: least probability of a predicted class.
        rows: keep the labels and predictions that matter, about 0.7 kB a video.

    Raises:
        ReeltagError: bad input; see `reeltag.core.errors`.
    """
    check_threshold(threshold)
    classes = predictor.schema.segment_classes
    evaluation = Evaluation(all_scores=all_scores, classes=classes, threshold=threshold, rows=rows)
    for part in predictor.predict_shards(
        shards, bad, labelled=True, labels=labels, label_encoding=label_encoding, frames=frames, seed=seed
    ):
        evaluation.add(part)
    scores, kept = evaluation.metrics().compute(), evaluation.outcomes() if rows else None
    return Judgement(scores, evaluation.at_threshold(), kept)


def artifact_gap(artifact: Artifact, batches: Iterable[Batch]) -> float:
    """Return GAP@20 of a model on batches of labelled videos."""
    model = Predictor(artifact, artifact.members, device="cpu").model
    return evaluate_predictions(predict_batches(model, batches), classes=artifact.schema.segment_classes).gap()


def named_like_training(artifact: Artifact, files: Sequence[DataFile]) -> str:
    """Say which files are named like those that trained a model; empty if none is, or if its file names none."""
    data = artifact.provenance.get("data")
    trained = data.get("shards") or [] if isinstance(data, Mapping) else []
    names = [PurePath(str(getattr(each, "url", each))).name for each in files]
    same = [name for name in names if any(PurePath(name).match(str(pattern)) for pattern in trained)]
    if not same:
        return ""
    return (
        f"{len(same)} of {counted(len(names), 'file')} are named like its training files ({', '.join(trained)}), the "
        f"first is {same[0]}"
    )
