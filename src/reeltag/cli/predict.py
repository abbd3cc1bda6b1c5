"""The command `reeltag predict`."""

from __future__ import annotations

import sys
from pathlib import Path

from reeltag.cli.options import (
    Address,
    Calibrated,
    Executor,
    Frames,
    FramesSeed,
    MaxBadRecords,
    Mode,
    OneOrMore,
    Quiet,
    Thresholds,
)
from reeltag.cli.output import Json, say, say_left_out
from reeltag.core.errors import UsageError


def predict(
    model: str,
    /,
    *shards: OneOrMore,
    out: Path | None = None,
    top: int = 20,
    threshold: float | None = None,
    thresholds: Thresholds = False,
    calibrated: Calibrated = False,
    names: bool = False,
    mode: Mode = "auto",
    workers: int = 1,
    executor: Executor = "local",
    address: Address = None,
    quiet: Quiet = False,
    frames: Frames = None,
    seed: FramesSeed = None,
    drop_flat: bool = False,
    max_bad_records: MaxBadRecords = 0,
    json: Json = False,
) -> None:
    """Predict the tags of videos in shards.

    With --out, the predictions of each finished shard are kept in the folder OUT.parts, so the same command resumes
    after an interruption. See docs/predicting.md.

    Example: reeltag predict model.reeltag 'shards/*.tfrecord' --out predictions.csv

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        shards: Paths, URLs or glob patterns of TFRecord files, or of features as `data import` reads them; labels are
            not needed.
        out: A new .csv (Kaggle's format), .jsonl or .parquet file; JSON Lines to standard output by default.
        top: Largest number of tags of a video.
        threshold: Only tags of at least this probability.
        names: In a .csv file, a line for each tag (id, class, name, score) instead of Kaggle's format.
        workers: Processes among which shards and CPU threads are divided; each loads the model.
        drop_flat: Skip the fake test videos of the YouTube-8M challenge: those whose mean rgb hardly varies.
    """
    from reeltag.artifact.file import resolve_artifact, stream_artifact
    from reeltag.core.distributed.pools import open_pool
    from reeltag.core.environment import one_torch_thread
    from reeltag.core.progress import default_progress
    from reeltag.core.text import counted
    from reeltag.inference.formats.table import json_lines
    from reeltag.inference.predictor import load
    from reeltag.inference.shard_tagger import predict_to_file, stream_predictions

    if out is None:
        if workers != 1 or executor != "local":
            raise UsageError("--workers and --executor need a file to write to; give --out")
        if json:
            raise UsageError("--json describes the file of --out; without --out the output is JSON Lines already")
        if names:
            raise UsageError("--names is for a .csv file; without --out the output is JSON Lines, which has names")
        with one_torch_thread():  # as batches are computed
            predictor = load(model, mode, calibrated=calibrated)
        selection = predictor.selection(top, threshold, thresholds)
        predictions, counts = stream_predictions(
            predictor, shards, frames=frames, seed=seed, drop_flat=drop_flat, max_bad_records=max_bad_records
        )
        for line in json_lines(predictions, predictor.label_names, selection):
            print(line)
    else:
        file = resolve_artifact(model)
        counts = predict_to_file(
            file,
            shards,
            out,
            mode=mode,
            workers=workers,
            frames=frames,
            seed=seed,
            drop_flat=drop_flat,
            max_bad_records=max_bad_records,
            top=top,
            threshold=threshold,
            thresholds=thresholds,
            calibrated=calibrated,
            names=names,
            progress=default_progress(quiet=quiet),
            pool=open_pool("", executor, address),
        )
        result = {"file": out, "videos": counts.videos, "dropped": counts.dropped, "left_out": len(counts.bad.records)}
        result["remarks"] = dict(counts.bad.remarks)
        result["computed"] = counts.choice and counts.choice.dump()
        example = stream_artifact(file)[0].schema.example
        say(result, [f"{out}: {counted(counts.videos, example)}"], json)
    if drop_flat:
        print(f"{counted(counts.dropped, 'flat video')} dropped", file=sys.stderr)
    say_left_out(counts.bad)
