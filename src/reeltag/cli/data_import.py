"""The command `reeltag data import`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from reeltag.cli.options import LabelEncoding, OneOrMore, Quiet
from reeltag.cli.output import Json, say


def import_(
    *source: OneOrMore,
    out: Path,
    labels: Path | None = None,
    test: str | None = None,
    test_share: float | None = None,
    features: str = "",
    label_names: str | None = None,
    label_encoding: LabelEncoding = None,
    unlabelled: Literal["fail", "skip", "keep"] = "fail",
    workers: int = 1,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Import features from other formats into shards, with a manifest and a recipe that trains on them.

    Sources are NumPy, HDF5, Parquet, Arrow, datasets, WebDataset, CSV, JSON Lines, MediaPipe's features.pb, and
    compressed TFRecords, recognised by their content. The same command resumes after an interruption. See
    docs/import.md.

    Example: reeltag data import features/ --labels labels.csv --out shards/

    Args:
        source: A folder, or files or glob patterns.
        out: A new folder for the shards, their manifest, label names and a recipe.
        labels: A file of labels by id; by default labels are found beside the features.
        test: Folder, file or glob pattern of the test videos.
        test_share: Fraction of the videos for test shards, selected by a hash of their ids; 0.2 without --test.
        features: Names of the features to import, such as rgb,audio; all by default.
        label_names: A CSV file that names the classes, such as a data set's vocabulary; by default names are sorted.
        unlabelled: Refuse videos without labels, leave them out, or keep them for `predict`.
        workers: Number of processes that read the source.
    """
    from reeltag.core.progress import default_progress
    from reeltag.core.text import counted, one_line
    from reeltag.data.import_features import RECIPE, import_features

    done = import_features(
        source,
        labels,
        out,
        test=test,
        test_share=test_share,
        features=[name.strip() for name in features.split(",") if name.strip()],
        label_names=label_names,
        label_encoding=label_encoding,
        unlabelled=unlabelled,
        workers=workers,
        progress=default_progress(quiet=quiet),
    )
    recipe = out / RECIPE
    result = {"folder": out, "train_videos": done.train_videos, "test_videos": done.test_videos}
    result |= {"schema": done.schema.model_dump(mode="json"), "remarks": list(done.remarks)}
    counts = [counted(done.train_videos, "training video"), counted(done.test_videos, "test video")]
    schema = done.schema
    widths = ", ".join(f"{one_line(each.name)} {each.width}" for each in schema.features)
    frames = f", at most {counted(schema.max_frames, 'frame')}" if schema.level == "frame" else ""
    layout = f"{schema.level} level{frames} of {schema.dtype}: {widths}; {schema.classes:,} classes"
    text = [f"{out}: {', '.join(counts)}", layout]
    if recipe.is_file():
        first = "" if done.test_videos else f"set data.test in {recipe}, then "
        text.append(f"{first}train: reeltag run {recipe}")
    say(result, text, json)
    if done.remarks:
        print("\n".join(done.remarks), file=sys.stderr)
