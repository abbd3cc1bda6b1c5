"""Stages that prepare the data: features of other formats are imported, and every record is read and checked."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reeltag.core.errors import ReeltagError, TransferError, UsageError
from reeltag.core.remote_files import RemoteFile, is_url
from reeltag.core.storage import (
    DataFile,
    content_hash,
    file_hash,
    file_identity,
    file_size,
    find_files,
    free_bytes,
    join_path,
    read_json,
    require_regular,
)
from reeltag.core.text import counted, first_lines, megabytes
from reeltag.data import shard_cache
from reeltag.data.bad_records import format_remarks, summary
from reeltag.data.formats.tfrecord import ShardFile
from reeltag.data.holdout import matching_shards, refuse_overlap
from reeltag.data.importing import Input, Split, padding_remarks, write_shards
from reeltag.data.shards import Manifest, scan
from reeltag.data.sources.files import find_features, list_files
from reeltag.data.sources.labels import label_table
from reeltag.data.sources.pieces import open_features
from reeltag.data.synthetic import SyntheticSettings, write_synthetic
from reeltag.data.vocabulary import read_vocabulary
from reeltag.pipeline.executor import Job, Stage, Traffic
from reeltag.pipeline.report.remarks import FEW
from reeltag.pipeline.run_folder import MARKER
from reeltag.pipeline.stages.files import MANIFEST, load_manifest
from reeltag.pipeline.stages.files import split as hold_out
from reeltag.recipe.data import DataSettings
from reeltag.recipe.schema import Recipe

SPLITS: tuple[Split, ...] = ("train", "test")

IMPORT_FORMAT = 1  # raise it when the same features give other shards
SYNTHETIC_FORMAT = 1  # raise it when other videos are generated from the same settings
DATA_FORMAT = 1  # raise it when the same shards give another manifest


def data_stages(recipe: Recipe, without_data: bool) -> list[Stage]:
    """Return the stages that generate synthetic data or import features, if any, and index each split.

    Args:
        recipe: the recipe.
        without_data: allow missing shards.

    Raises:
        UsageError: shards are missing, unless `without_data`, the cache of remote shards is too small, or the hold-out
            is to be drawn from shards that are not trained on.
    """
    data = recipe.data
    if data.cache_gb is not None:
        shard_cache.set_limit(data.cache_gb)
    stages = []
    if data.synthetic is not None:
        videos = data.synthetic.train_videos + data.synthetic.test_videos
        synthetic = Stage(
            name="synthetic",
            work=partial(_generate, data.synthetic),
            format=SYNTHETIC_FORMAT,
            parameters=data.synthetic.model_dump(mode="json"),
            note=f"{videos:,} videos",
            bytes=videos * data.synthetic.frames[1] * sum(data.record_schema.widths),
        )
        stages.append(synthetic)
    for split in SPLITS:
        if features := [] if data.synthetic else find_features(getattr(data, split), data.root):
            stages.append(_import_stage(recipe, split, features, without_data))
            stages.append(_split_stage(recipe, split, without_data, stages[-1].name))
        else:
            stages.append(_split_stage(recipe, split, without_data, "synthetic" if data.synthetic else None))
    if data.labels is not None and not without_data and not any(each.name.startswith("import.") for each in stages):
        raise UsageError("data.labels: is for features that are not shards, which hold labels; leave it out")
    return stages


def _import_stage(recipe: Recipe, split: Split, features: Sequence[Path], without_data: bool) -> Stage:
    """Return the stage that imports features of other formats to shards in the folder of the run."""
    data, files = recipe.data, list_files(features)
    beside = {}
    for key, name in (("labels", data.labels), ("label_names", data.label_names)):
        path = join_path(data.root, name or "")
        if name is None or is_url(path) or (without_data and not Path(path).exists()):
            continue
        try:
            beside[key] = file_hash(require_regular(Path(path)))
        except OSError as error:
            raise UsageError(f"data.{key}: {path} cannot be read ({error.strerror}); correct its path") from error
    size = sum(map(file_size, files))
    return Stage(
        name=f"import.{split}",
        work=partial(_import, recipe, split, features),
        format=IMPORT_FORMAT,
        parameters={
            "files": list(map(file_identity, files)),
            "schema": data.record_schema.model_dump(mode="json"),
            "label_encoding": data.label_encoding,
            "keep": data.max_bad_records > 0,
            **beside,
        },
        note=f"{counted(len(files), 'file')}, {megabytes(size)}, to shards",
        bytes=size,
    )


def _import(recipe: Recipe, split: Split, features: Sequence[Path], job: Job) -> None:
    """Write the shards of a split; those of an interrupted run are kept."""
    data, schema = recipe.data, recipe.data.record_schema
    source = open_features(features, schema)
    names, labels = (name and join_path(data.root, name) for name in (data.label_names, data.labels))
    vocabulary = read_vocabulary(names, schema.classes) if names else None
    table = label_table(
        labels,
        [source],
        encoding=data.label_encoding,
        vocabulary=vocabulary,
        classes=schema.classes,
        progress=job.progress,
    )
    if table is None:
        raise UsageError(f"data.{split}: has no labels; give a file of them in data.labels")
    if labels is None and names is None and table.names is not None:
        raise UsageError(f"data.{split}: its labels are names; number them by a file of names in data.label_names")
    for remark in table.remarks:
        job.progress.say(f"  labels: {remark}")
    shards = write_shards(
        [Input(source, float(split == "test"))],
        schema,
        table,
        job.folder,
        unlabelled="keep" if data.max_bad_records else "fail",  # the manifest counts them as bad records
        progress=job.progress,
    )
    for remark in padding_remarks(shards, schema.level):
        job.progress.say(f"  features: {remark}")


def with_imported(recipe: Recipe) -> Recipe:
    """Return the recipe with the names of the shards that are imported, which do not depend on what they come from."""
    data = recipe.data
    if data.synthetic or not find_features(data.train, data.root):
        return recipe
    return recipe.model_copy(update={"data": data.model_copy(update={"train": ("train-*.tfrecord",)})})


def _split_stage(recipe: Recipe, split: Split, without_data: bool, made_by: str | None) -> Stage:
    """Return the stage that checks and indexes a split; the test set is also compared with the training set.

    Args:
        recipe: the recipe.
        split: the split.
        without_data: allow missing shards.
        made_by: name of the stage that writes the shards; None if they are given.
    """
    data, patterns = recipe.data, recipe.data.train if split == "train" else recipe.data.test
    files: list[DataFile] = []
    missing = ""
    try:
        files = [] if made_by else _find(recipe, patterns)
        _check_cache(data, split, files)
    except (UsageError, TransferError) as error:
        if not without_data:
            raise
        missing = str(error)
    if files and split == "train":
        _check_holdout(data, files)
    parameters: dict[str, object] = {
        "files": list(map(file_identity, files)),
        "schema": data.record_schema.model_dump(mode="json"),
        "max_bad_records": data.max_bad_records,
    }
    note = f"{counted(len(files), 'shard')}, {megabytes(sum(map(file_size, files)))}" if files else missing
    if (limit := _limit(data, split)) is not None:
        parameters["limit"] = limit
        note = f"the first {counted(limit, 'video')} of {note or 'them'}"
    inputs = (*([made_by] if made_by else []), *(["data.train"] if split == "test" else []))
    return Stage(
        name=f"data.{split}",
        work=partial(_index, recipe, split, files, made_by),
        format=DATA_FORMAT,
        inputs=inputs,
        parameters=parameters,
        note=note,
        traffic=Traffic(data.expected_videos or 0) if split == "train" else Traffic(),
    )


def _find(recipe: Recipe, patterns: Sequence[str]) -> list[DataFile]:
    """Find the shards that patterns of a recipe name.

    Raises:
        UsageError: a pattern matches nothing, or something else; the message says if it matches from the current
            folder, and the recipe lies elsewhere.
    """
    root = recipe.data.root
    try:
        return find_files(patterns, root)
    except UsageError as error:
        if recipe.source is None or isinstance(root, str):
            raise
        meant = Path(os.path.relpath(root, Path(recipe.source).parent))
        try:
            find_files(patterns, meant)
        except (UsageError, TransferError):
            raise error from None
        where = f"data.root starts from the recipe's folder, {Path(recipe.source).parent}"
        what = f"there are such files from the current folder; give --set data.root={shlex.quote(str(meant))} for these"
        raise UsageError(f"{error}; {where}; {what}") from error


def with_videos(recipe: Recipe) -> Recipe:
    """Return the recipe with the number of training videos, estimated by the first shard where it has none."""
    data = recipe.data
    if data.expected_videos is not None:
        return recipe
    if (known := _first_shard(data)) is None:
        return recipe
    sizes, records = known
    videos = records * sum(sizes) // sizes[0]
    return recipe.model_copy(update={"data": data.model_copy(update={"videos": videos})})


def video_bytes(recipe: Recipe) -> tuple[int, bool]:
    """Return the bytes of a training video, and True if a shard was read for them; else those of the longest video."""
    data, schema = recipe.data, recipe.data.record_schema
    if data.synthetic is None and (known := _first_shard(data)) is not None:
        sizes, records = known
        return sizes[0] // max(1, records), True
    frames = schema.example_frames if schema.level == "frame" else 1  # as in the estimate of GPU hours
    return frames * schema.width * (1 if schema.dtype == "uint8" else 4), False


def _first_shard(data: DataSettings) -> tuple[list[int], int] | None:
    """Return the sizes of the training shards and the records of the first; None if they cannot be read here."""
    try:
        files = find_files(data.train, data.root)
        if isinstance(files[0], RemoteFile):  # planning downloads no shard
            return None
        return list(map(file_size, files)), len(ShardFile(files[0]).offsets())
    except ReeltagError:  # the data stage will report it
        return None


def _generate(settings: SyntheticSettings, job: Job) -> None:
    write_synthetic(job.folder, settings)


def _check_cache(data: DataSettings, split: Split, files: Sequence[DataFile]) -> None:
    """Refuse an order of videos for which the cache of remote shards is too small, before any download.

    Raises:
        UsageError: the shards that are needed at a time are larger than the cache or the free disk.
    """
    sizes = sorted((file.size for file in files if isinstance(file, RemoteFile)), reverse=True)
    window = data.mixed_shards if split == "train" else 1
    needed = sum(sizes if window is None else sizes[: 2 * window])  # one is read while the next is downloaded
    if needed > shard_cache.limit_bytes():
        what = "all shards" if window is None else f"two windows of {counted(window, 'shard')}"
        have = f"{megabytes(needed)}, and data.cache_gb allows {megabytes(shard_cache.limit_bytes())}"
        less = 'take data.order = "by-shard"' if window is None else "lower data.shuffle_window"
        raise UsageError(f"data.{split}: the order needs {what} at hand, {have}; raise it, or {less}")
    if needed and needed > (free := free_bytes(shard_cache.folder()) + shard_cache.size_bytes()):
        room = f"{megabytes(needed)} of shards have to be at hand, and there is room for {megabytes(free)}"
        raise UsageError(f"{shard_cache.folder()}: {room}; make room, or set REELTAG_CACHE to a folder on another disk")


def _check_holdout(data: DataSettings, files: Sequence[DataFile]) -> None:
    """Refuse patterns of the hold-out that match nothing, or shards that are not trained on.

    Raises:
        UsageError: as described.
    """
    if not data.holdout.patterns:
        return
    mask = matching_shards(map(str, files), data.holdout.patterns, data.holdout.shards)
    found, training = find_files(data.holdout.patterns, data.root), set(files)
    if others := [file for file in found if file not in training]:
        raise UsageError(
            f"data.holdout.from: matches {others[0]}{f' and {len(others) - 1} others' if others[1:] else ''}, which "
            "data.train does not; the hold-out is drawn from the training shards, so give patterns of these"
        )
    if unclear := {file for file, inside in zip(files, mask, strict=True) if inside} ^ set(found):
        raise UsageError(
            f"data.holdout.from: matches {min(map(str, unclear))} by its last folders or from data.root, and not by "
            "both; write out its folders, without **"
        )


def _index(recipe: Recipe, split: Split, files: list[DataFile], made_by: str | None, job: Job) -> str:
    """Check and index the shards; returns a hash of their content, so that later stages do not depend on paths."""
    for line in shard_changes(recipe, split, list(map(file_identity, files)), job.folder.parent):
        job.progress.say(f"  {line}")
    if made_by:
        files = find_files([f"{split}-*.tfrecord"], job.inputs[made_by])
    total = sum(map(file_size, files))
    with job.progress.task("check and index", total, "bytes") as task:
        schema, most = recipe.data.record_schema, recipe.data.max_bad_records
        limit, train = _limit(recipe.data, split), split == "train"
        manifest = scan(files, schema, task.advance, max_bad_records=most, labelled=True, limit=limit, rated_only=train)
        task.total = task.done  # with a limit, the last shards are not read
    if not manifest.labelled:
        raise UsageError(f"data.{split}: has no labelled records; see `reeltag data verify`")
    if not manifest.class_counts.any():
        raise UsageError(
            f"data.{split}: none of {counted(manifest.labelled, schema.example)} has a label, so nothing could be "
            "learned or measured; see `reeltag data verify`, and the schema's labels"
        )
    if manifest.left_out:
        job.progress.say(f"  {summary(manifest.left_out)}")
    for line in format_remarks(manifest.remarks):
        job.progress.say(f"  {line}")
    if split == "test":
        refuse_overlap(load_manifest(job, "train"), manifest)
    elif remark := _small_holdout(recipe, manifest):
        job.progress.say(f"  {remark}")
    manifest.save(job.folder / MANIFEST)
    return manifest.fingerprint if limit is None else content_hash([manifest.fingerprint, limit])


def _small_holdout(recipe: Recipe, manifest: Manifest) -> str:
    """Return a remark on a hold-out of few videos; empty for any other."""
    try:
        held = len(np.unique(manifest.videos[hold_out(recipe, manifest)[1]]))
    except UsageError:  # the stages that need it say so
        return ""
    if held >= FEW:
        return ""
    what = f"the hold-out has {counted(held, 'video')}, and models are chosen by their GAP on these, which means little"
    return f"{what}; hold out more (data.holdout)"


def _limit(data: DataSettings, split: Split) -> int | None:
    return data.limit.train if split == "train" else data.limit.test


def shard_changes(recipe: Recipe, split: Split, now: list[Any], stages: Path) -> list[str]:
    """Describe shards that were removed, added or changed since the last time that a run indexed the split.

    Args:
        recipe: the recipe.
        split: the split.
        now: identity of each shard; see `file_identity`.
        stages: folder of the run's stages.

    Returns:
        One line for each of the first changes, and one that says how to go on from the models that the run has; empty
        if nothing changed.
    """
    markers = sorted(stages.glob(f"data.{split}-*/{MARKER}"), key=lambda path: path.stat().st_mtime_ns)
    before = read_json(markers[-1])["parameters"]["files"] if markers else now
    old, new = ({path: state for path, *state in each} for each in (before, now))
    gone, added = (sorted(one.keys() - other.keys()) for one, other in ((old, new), (new, old)))
    moved = {Path(path).name for path in gone} & {Path(path).name for path in added}
    changes = {f"{path} is missing; put it back and run again, if it belongs there": path for path in gone}
    changes |= {f"{path} is new": path for path in added}
    changes |= {f"{path} changed": path for path in new if new[path] != old.get(path, new[path])}
    lines = first_lines([line for line, path in changes.items() if Path(path).name not in moved])
    if lines and split == "train" and recipe.training.start is None:
        run = stages.parent
        how = f"--set training.start={run} --out FOLDER (docs/training.md#going-on)"
        lines.append(f"all models are trained anew on these shards; to go on from those of {run}, {how}")
    return lines
