"""The command `reeltag evaluate`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reeltag.cli.options import Frames, FramesSeed, LabelEncoding, MaxBadRecords, Mode, OneOrMore
from reeltag.cli.output import Json, say, say_left_out
from reeltag.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from reeltag.inference.metrics.bootstrap import Gain, Resampled
    from reeltag.inference.metrics.outcomes import AtThreshold, Outcomes

SMALLEST_P = 1e-300  # smaller ones are no longer told from 0
LISTED = 10  # mistakes of each kind, and classes that gained or lost


def evaluate(
    model: str,
    /,
    *shards: OneOrMore,
    labels: Path | None = None,
    label_encoding: LabelEncoding = None,
    all_scores: bool = False,
    threshold: float = 0.5,
    intervals: bool = False,
    against: str | None = None,
    mistakes: str | None = None,
    per_class: Path | None = None,
    out: Path | None = None,
    fiftyone: Path | None = None,
    mode: Mode = "auto",
    frames: Frames = None,
    seed: FramesSeed = None,
    max_bad_records: MaxBadRecords = 0,
    json: Json = False,
) -> None:
    """Evaluate a model on labelled shards: GAP@20, mAP and others, and precision, recall and F1 at a threshold.

    See docs/judging.md.

    Example: reeltag evaluate model.reeltag '/data/audioset/eval-*.tfrecord' --mistakes 'Dog'

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        shards: Paths, URLs or glob patterns of TFRecord files, or of features as `data import` reads them.
        labels: A file of labels for features that are not shards; by default labels are found beside the features.
        all_scores: Also compute mAP over all scores (map_all), as AudioSet reports it; needs 10 bytes of memory per
            video and class.
        threshold: Least probability of a predicted class, for precision, recall, F1 and the files.
        intervals: Also give 95 % intervals of GAP, mAP and the AP of classes, by drawing the videos again 1,000 times.
        against: A second model, to be compared with the first on the same videos: differences, 95 % intervals and
            p-values.
        mistakes: Name or number of a class: list the videos that are tagged with it wrongly, the most confident first,
            and those that have the label and are missed.
        per_class: Write the metrics of each class to this CSV file.
        out: Write a row for each label of a video and each of its likely classes to this .csv or .parquet file.
        fiftyone: Write labels and predictions to this CSV file, as FiftyOne's CSVDataset reads it.
    """
    from reeltag.core.storage import find_files
    from reeltag.data.bad_records import BadRecords
    from reeltag.data.sources.files import find_features
    from reeltag.inference.evaluate import judge, named_like_training
    from reeltag.inference.formats.outcomes import write_classes
    from reeltag.inference.metrics.bootstrap import resample
    from reeltag.inference.metrics.outcomes import check_threshold
    from reeltag.inference.predictor import load

    check_threshold(threshold)
    _refuse_files(per_class, out, fiftyone)
    predictor = load(model, mode)
    names = predictor.label_names
    number = None if mistakes is None else _class_number(mistakes, names)
    other = None if against is None else load(against, mode)
    if other is not None and other.label_names != names:
        raise UsageError(f"{against}: has other classes than {model}; compare models of the same classes")
    drawn = intervals or other is not None
    for given, each in ((model, predictor), (against, other)):
        if drawn and each is not None and each.schema.segments is not None:
            what = "--intervals and --against draw whole videos again, and this model tags segments"
            raise UsageError(f"{given}: {what}; leave them out")
    measure = partial(
        judge,
        shards=shards,
        threshold=threshold,
        rows=drawn or any(option is not None for option in (mistakes, per_class, out, fiftyone)),
        all_scores=all_scores,
        labels=labels,
        label_encoding=label_encoding,
        frames=frames,
        seed=seed,
    )
    bad = BadRecords(max_bad_records)
    judged = [measure(predictor, bad=bad)]
    judged += [] if other is None else [measure(other, bad=BadRecords(max_bad_records))]
    scores, at, summary = judged[0].scores, judged[0].at_threshold, judged[0].scores.summary()
    result: dict[str, Any] = summary | {"at_threshold": at.summary()}
    text = [
        f"{name:<9} {value:.5f}" if isinstance(value, float) else f"{name:<9} {value}"
        for name, value in summary.items()
    ] + _threshold_lines(at)
    kept = [each.outcomes for each in judged if each.outcomes is not None]
    resampled = resample(*kept) if drawn else []
    if intervals:
        result["intervals"], lines = _intervals(resampled[0])
        text += lines
    if against is not None:
        result["against"], lines = _comparison(against, resampled, names)
        text += lines
    if number is not None:
        result["mistakes"] = found = _mistakes(kept[0], number, names)
        text += _mistake_lines(found)
    if per_class is not None:
        write_classes(per_class, scores.class_ap, kept[0], names, resampled[0] if intervals else None)
    _write_rows(kept, names, out, fiftyone)
    files = find_features(shards) or find_files(shards)
    for given, each in ((model, predictor), (against, other)):
        if each is not None and (doubt := named_like_training(each.artifact, files)):
            print(f"{given}: {doubt}: on videos that trained a model all figures are too good", file=sys.stderr)
    say(result | {"computed": predictor.choice.dump()}, text, json)
    say_left_out(bad)


def _refuse_files(per_class: Path | None, out: Path | None, fiftyone: Path | None) -> None:
    """Refuse files that cannot be written, before anything is computed."""
    from reeltag.core.storage import refuse_existing, remove_partials_of
    from reeltag.inference.formats.outcomes import refuse_outcomes_ending

    if out is not None:
        refuse_outcomes_ending(out)
    for path in (per_class, out, fiftyone):
        if path is not None:
            refuse_existing(path)
            remove_partials_of(path)


def _write_rows(kept: Sequence[Outcomes], names: Sequence[str], out: Path | None, fiftyone: Path | None) -> None:
    from reeltag.inference.formats.outcomes import write_fiftyone, write_outcomes

    if out is not None:
        write_outcomes(out, kept[0], names)
    if fiftyone is not None:
        write_fiftyone(fiftyone, kept[0], names)


def _class_number(given: str, names: Sequence[str]) -> int:
    """Return the number of the class with a name, or whose number is given.

    Raises:
        UsageError: there is none, or several have the name.
    """
    from reeltag.data.vocabulary import class_number, named

    vocabulary, number = named(names), class_number(given)
    if given not in vocabulary and number is not None and number < len(names):
        return number
    return vocabulary.number(given)


def _threshold_lines(at: AtThreshold) -> list[str]:
    micro, macro = at.micro(), at.macro()
    rows = [
        f"{name:<9} {getattr(micro, name):.5f}  {getattr(macro, name):.5f}" for name in ("precision", "recall", "f1")
    ]
    return ["", f"at threshold {at.threshold:g}", "          micro    macro", *rows]


def _intervals(resampled: Resampled) -> tuple[dict[str, list[float] | None], list[str]]:
    """Return the intervals of GAP and mAP as JSON and as lines of text."""
    ends = {metric: resampled.interval(metric) for metric in ("gap", "map")}
    rounded = {metric: None if each is None else [round(end, 5) for end in each] for metric, each in ends.items()}
    lines = [
        f"{metric:<9} 95 % interval {f'{each[0]:.5f} to {each[1]:.5f}' if each else 'unknown: every draw has the same'}"
        for metric, each in rounded.items()
    ]
    return rounded, ["", *lines]


def _comparison(against: str, resampled: Sequence[Resampled], names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the differences of two models as JSON and as lines of text."""
    from reeltag.inference.metrics.bootstrap import SIGNIFICANT, compare, compare_classes, significant

    gains, classes = compare(*resampled), compare_classes(*resampled)
    clear = sorted(significant(classes), key=lambda number: -classes[number].gain)
    better = [number for number in clear if classes[number].gain > 0]
    worse = [number for number in reversed(clear) if classes[number].gain < 0]
    named = {
        kind: {names[n]: _rounded(classes[n]) for n in found} for kind, found in (("better", better), ("worse", worse))
    }
    content = {"model": against, **{metric: _rounded(gain) for metric, gain in gains.items()}}
    content["classes"] = {"compared": len(classes), **named}
    lines = ["", f"against {against}", f"{'':<9} {'first':>8} {'second':>8} {'gain':>9}  95 % interval           p"]
    lines += [
        f"{metric:<9} {gain.first:>8.5f} {gain.second:>8.5f} {gain.gain:>+9.5f}  {gain.low:+.5f} to {gain.high:+.5f}  "
        f"{_p_text(gain.p)}"
        for metric, gain in gains.items()
    ]
    gap = gains["gap"]
    verdict = (
        f"{against} is {'better' if gap.gain > 0 else 'worse'} by GAP"
        if gap.p < SIGNIFICANT
        else "no clear difference of GAP"
    )
    lines += [
        "",
        f"{verdict}: p {'' if gap.p < SMALLEST_P else '= '}{_p_text(gap.p)}",
        f"of {len(classes):,} classes with enough labels {against} is clearly better on {len(better):,} and worse on "
        f"{len(worse):,} (5 %, Holm's correction)",
    ]
    if better or worse:
        lines.append(f"{'first':>7} {'second':>7} {'gain':>8}  p")
    lines += [
        f"{classes[n].first:.5f} {classes[n].second:.5f} {classes[n].gain:+.5f}  {_p_text(classes[n].p)}  {names[n]}"
        for n in [*better[:LISTED], *worse[:LISTED]]
    ]
    return content, lines


def _p_text(p: float) -> str:
    return f"{p:.2g}" if p >= SMALLEST_P else f"< {SMALLEST_P:g}"


def _rounded(gain: Gain) -> dict[str, float]:
    values = {name: round(value, 5) for name, value in vars(gain).items() if name != "p"}
    return values | {"p": float(f"{gain.p:.3g}")}


def _mistakes(outcomes: Outcomes, number: int, names: Sequence[str]) -> dict[str, Any]:
    """Return the mistakes of a class as JSON, the most confident first."""
    found = {"false_positives": outcomes.false_positives(number, LISTED), "missed": outcomes.missed(number, LISTED)}
    rows = {kind: [_mistake(outcomes, row, names) for row in listed.tolist()] for kind, listed in found.items()}
    return {"class": names[number], "labels": int(outcomes.positives[number]), **rows}


def _mistake(outcomes: Outcomes, row: int, names: Sequence[str]) -> dict[str, Any]:
    video = int(outcomes.videos[row])
    rows = outcomes.rows_of(video)
    return {
        "id": outcomes.ids[video],
        "score": round(float(outcomes.scores[row]), 6),
        "labels": [names[number] for number in outcomes.classes[rows[outcomes.labels[rows]]].tolist()],
        "most_probable": names[outcomes.classes[rows[0]]],
    }


def _mistake_lines(found: Mapping[str, Any]) -> list[str]:
    from reeltag.core.text import NAME_SEPARATOR, counted, one_line

    lines = ["", f"{one_line(found['class'])}: {counted(found['labels'], 'label')}"]
    titles = {"false_positives": "no label, most probable first", "missed": "label, least probable first"}
    for kind, title in titles.items():
        lines += ["", title]
        for each in found[kind]:
            labels = one_line(NAME_SEPARATOR.join(each["labels"])) or "none"
            said = f"[labels: {labels}; most probable: {one_line(each['most_probable'])}]"
            lines.append(f"{each['score']:.4f}  {one_line(each['id'])}  {said}")
    return lines
