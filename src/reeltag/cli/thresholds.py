"""The command `reeltag thresholds`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from reeltag.cli.options import LabelEncoding, MaxBadRecords, Mode
from reeltag.cli.output import Json, say, say_left_out
from reeltag.core.errors import UsageError


def thresholds(
    model: str,
    /,
    *shards: str,
    holdout: Path | None = None,
    precision: float | None = None,
    recall: float | None = None,
    f1: bool = False,
    cost: str | None = None,
    calibrate: Literal["shared", "per-class"] | None = None,
    out: Path | None = None,
    csv: Path | None = None,
    labels: Path | None = None,
    label_encoding: LabelEncoding = None,
    mode: Mode = "auto",
    max_bad_records: MaxBadRecords = 0,
    json: Json = False,
) -> None:
    """Choose a threshold for each class on labelled videos that trained nothing, or calibrate the probabilities.

    `predict`, `tag`, `serve` and `export` apply them on request. See docs/thresholds.md.

    Example: reeltag thresholds model.reeltag --holdout runs/audioset --precision 0.9 --out tuned.reeltag

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        shards: Paths, URLs or glob patterns of TFRecord files, or of features as `data import` reads them.
        holdout: Folder of a run: choose on the videos that its recipe held out, instead of shards.
        precision: Choose the lowest threshold that claims this precision, such as 0.9.
        recall: Choose the highest threshold that claims this recall.
        f1: Choose the threshold of the highest F1.
        cost: Choose the threshold of the lowest cost of errors, such as fp=1,fn=5.
        calibrate: Fit the probabilities to how often they are right: shared, one map for all classes, which changes no
            ranks within a video; or per-class, also one for each class where it helps.
        out: A new .reeltag file: the model with what was chosen.
        csv: Write the threshold of each class, with its precision and recall, to this CSV file.
        labels: A file of labels for features that are not shards; by default labels are found beside the features.
    """
    from reeltag.core.storage import refuse_existing, remove_partials_of, write_bytes
    from reeltag.core.text import counted, megabytes
    from reeltag.data.bad_records import BadRecords
    from reeltag.inference.formats.thresholds import as_csv, as_lines, class_rows
    from reeltag.pipeline.thresholds import choose_thresholds

    if csv is not None:
        refuse_existing(csv)
        if precision is None and recall is None and not f1 and cost is None:
            raise UsageError("--csv: has the threshold of each class; give a goal, such as --precision 0.9")
        remove_partials_of(csv)
    bad = BadRecords(max_bad_records)
    chosen = choose_thresholds(
        model,
        shards,
        holdout=holdout,
        precision=precision,
        recall=recall,
        f1=f1,
        cost=cost,
        calibrate=calibrate,
        out=out,
        labels=labels,
        label_encoding=label_encoding,
        mode=mode,
        bad=bad,
    )
    result: dict[str, Any] = {"file": out, "bytes": chosen.size, "videos": chosen.videos, "remarks": chosen.remarks}
    text = []
    if chosen.size is not None:
        text.append(f"{out}: {megabytes(chosen.size)}")
    if chosen.thresholds is not None:
        rows = class_rows(chosen.thresholds, chosen.label_names)
        result["thresholds"] = {**chosen.thresholds.about, "classes": rows}
        text += as_lines(chosen.thresholds, chosen.label_names)
        if csv is not None:
            write_bytes(csv, as_csv(rows).encode())
    if chosen.calibration is not None:
        about = chosen.calibration.about
        result["calibration"] = about
        text.append(
            f"calibration: log loss of a video {about['log_loss_before']:.4f} → {about['log_loss_after']:.4f}, "
            f"cross-validated on {counted(chosen.videos, 'video')}"
        )
    say(result, text, json)
    for remark in chosen.remarks:
        print(f"{model}: {remark}", file=sys.stderr)
    say_left_out(bad)
