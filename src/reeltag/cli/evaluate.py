"""The command `reeltag evaluate`."""

from __future__ import annotations

from pathlib import Path

from reeltag.cli.options import Frames, FramesSeed, LabelEncoding, MaxBadRecords, Mode, OneOrMore
from reeltag.cli.output import Json, say, say_left_out


def evaluate(
    model: str,
    /,
    *shards: OneOrMore,
    labels: Path | None = None,
    label_encoding: LabelEncoding = None,
    all_scores: bool = False,
    per_class: Path | None = None,
    mode: Mode = "auto",
    frames: Frames = None,
    seed: FramesSeed = None,
    max_bad_records: MaxBadRecords = 0,
    json: Json = False,
) -> None:
    """Evaluate a model on labelled shards: GAP@20, Hit@1, PERR, mAP, and MAP@K (map_at_k) of segment models.

    Example: reeltag evaluate model.reeltag '/data/audioset/eval-*.tfrecord'

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        shards: Paths, URLs or glob patterns of TFRecord files, or of features as `data import` reads them.
        labels: A file of labels for features that are not shards; by default labels are found beside the features.
        all_scores: Also compute mAP over all scores (map_all), as AudioSet reports it; needs 10 bytes of memory per
            video and class.
        per_class: Write the average precision of each class to this CSV file.
    """
    from reeltag.core.storage import refuse_existing
    from reeltag.data.bad_records import BadRecords
    from reeltag.inference.formats.table import write_class_ap
    from reeltag.inference.predictor import load

    if per_class is not None:
        refuse_existing(per_class)
    bad = BadRecords(max_bad_records)
    predictor = load(model, mode)
    scores = predictor.evaluate_shards(
        shards,
        bad,
        labels=labels,
        label_encoding=label_encoding,
        all_scores=all_scores,
        frames=frames,
        seed=seed,
    )
    if per_class is not None:
        write_class_ap(per_class, scores.class_ap.tolist(), predictor.label_names)
    summary = scores.summary()
    text = [f"{name:<9} {value}" for name, value in summary.items()]
    say(summary | {"computed": predictor.choice.dump()}, text, json)
    say_left_out(bad)
