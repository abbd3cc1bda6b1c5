"""Extract video files and their labels to frame-level shards, with a manifest and a recipe.

The features of each file are written to the folder `OUT.parts`, under a hash of all that decides them. At the end these
parts become the records of shards, and the folder is removed. So a killed run loses only the files in progress.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reeltag.core import tensorfile
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.progress import Progress
from reeltag.core.storage import (
    atomic_folder,
    content_hash,
    exclusive_parts,
    file_hash,
    file_identity,
    refuse_nonempty,
    remove_folder,
    write_bytes,
    write_json,
)
from reeltag.data.extractor_origin import MANIFEST
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.pca import Moments, load_projections, save_projections
from reeltag.data.recipe_draft import draft_recipe
from reeltag.data.schema import Schema
from reeltag.data.video.dataset import Dataset, Item, label_names_csv, split
from reeltag.data.video.decode import MAX_SECONDS
from reeltag.data.video.engine import Engine, process_files
from reeltag.data.video.features import Extraction, Pipeline, open_pipeline

FORMAT = 1  # of parts and of the manifest; raised whenever decoding changes
PROJECTIONS = "pca.safetensors"
LABEL_NAMES = "labels.csv"
SHARD_BYTES = 100_000_000  # of the frames of a shard

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Settings:
    """Settings of an extraction.

    Attributes:
        image: name of the extractor of pictures, or `none`.
        sound: name of the extractor of sound, or `none`.
        pca: file or folder with the PCA to apply.
        fit: widths of the PCA to fit, by feature.
        test_share: fraction of the videos for the test.
    """

    image: str = "efficientnet-lite0"
    sound: str = "logmel"
    pca: Path | None = None
    fit: Mapping[str, int] | None = None
    test_share: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """Outcome of the extraction of one video.

    Attributes:
        id: id of the video.
        split: split of its record; None if it was left out.
        seconds: number of seconds in the record.
        remarks: unusual properties of the file, or the reason why it was left out.
    """

    id: str
    split: Split | None
    seconds: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    item: Item
    path: Path


def extract_dataset(data: Dataset, out: Path, settings: Settings, workers: int, progress: Progress) -> list[Outcome]:
    """Extract videos and write the data set.

    The bytes in `out` depend only on the videos, their ids, labels and the settings.

    Args:
        data: the videos.
        out: a folder that does not exist yet; it is created atomically.
        settings: settings of the extraction.
        workers: number of files at once.
        progress: reports progress.

    Returns:
        The outcome of each video, sorted by id.

    Raises:
        UsageError: the folder exists, an extractor cannot be opened, or no video could be extracted.
    """
    refuse_nonempty(out)
    pipeline = _opened(settings.image, settings.sound, settings.pca)
    folder = out.with_name(f"{out.name}.parts")
    with exclusive_parts(folder, out):
        outcomes, parts = _extract_all(data, folder, settings, pipeline, workers=workers, progress=progress)
        if not parts:
            first = next(outcome for outcome in outcomes if outcome.remarks)
            raise UsageError(f"no video could be extracted; the first, {first.id}: {first.remarks[0]}")
        train, test = split([part.item for part in parts.values()], settings.test_share)
        splits: dict[Split, list[_Part]] = {
            "train": [parts[item.id] for item in train],
            "test": [parts[item.id] for item in test],
        }
        if settings.fit:
            pipeline = replace(pipeline, projections=_fitted(pipeline, splits["train"], settings.fit))
        where = {part.item.id: name for name, members in splits.items() for part in members}
        outcomes = [replace(outcome, split=where.get(outcome.id)) for outcome in outcomes]
        with atomic_folder(out) as new:
            _write(new, data, pipeline, splits, outcomes)
        remove_folder(folder)
    return outcomes


def _deciding(pipeline: Pipeline) -> list[Any]:
    return [
        FORMAT,
        [[feature.model_dump(), pipeline.extractors[feature.name].identity] for feature in pipeline.features],
    ]


# --- one file -------------------------------------------------------------------------------------


def _opened(image: str, sound: str, pca: Path | None) -> Pipeline:
    pipeline = open_pipeline(image, sound)
    if pca is None:
        return pipeline
    identities = {feature: extractor.identity for feature, extractor in pipeline.extractors.items()}
    return replace(pipeline, projections=load_projections(pca, identities))


def _extract_part(part: _Part, engine: Engine, pipeline: Pipeline, fit: bool) -> None:
    """Write the part of a file: codes, or float values if a PCA is still to be fitted."""
    found = pipeline.extract(part.item.path, engine)
    arrays: Sequence[Any] = list(found.values.values()) if fit else pipeline.codes(found)
    tensorfile.write(part.path, dict(zip(found.values, arrays, strict=True)), {"remarks": found.remarks})


def _read_part(path: Path, pipeline: Pipeline) -> dict[str, Any]:
    file = tensorfile.TensorFile(path)
    return {feature: file.read(feature) for feature in pipeline.extractors}


def _extract_all(
    data: Dataset, folder: Path, settings: Settings, pipeline: Pipeline, *, workers: int, progress: Progress
) -> tuple[list[Outcome], dict[str, _Part]]:
    deciding = [_deciding(pipeline), bool(settings.fit)]
    parts = [_Part(item, folder / f"{content_hash([deciding, file_identity(item.path)])}.part") for item in data.items]
    missing = [part for part in parts if not _is_whole(part.path)]
    errors: dict[str, str] = {}
    with progress.task("extract", len(parts), "files") as task:
        task.resume_at(len(parts) - len(missing))
        extract_part = partial(_extract_part, pipeline=pipeline, fit=bool(settings.fit))
        for part, error in process_files(missing, workers, extract_part):
            if error is not None:
                errors[part.item.id] = str(error).removeprefix(f"{part.item.path}: ")
                progress.say(f"  left out: {error}")
            task.advance(1, note=part.item.id)
    outcomes = [Outcome(name, None, 0, (f"left out: {reason}",)) for name, reason in data.left_out.items()]
    for part in parts:
        if part.item.id in errors:
            outcomes.append(Outcome(part.item.id, None, 0, (f"left out: {errors[part.item.id]}",)))
        else:
            file = tensorfile.TensorFile(part.path)
            seconds = len(file.read(file.names[0]))
            outcomes.append(Outcome(part.item.id, None, seconds, tuple(file.content["remarks"])))
    done = {part.item.id: part for part in parts if part.item.id not in errors}
    return sorted(outcomes, key=lambda outcome: outcome.id), done


def _is_whole(path: Path) -> bool:
    """Return True if a part exists and is complete."""
    try:
        tensorfile.TensorFile(path)
    except ArtifactError:
        return False
    return True


# --- the data set ---------------------------------------------------------------------------------


def _fitted(pipeline: Pipeline, parts: Sequence[_Part], widths: Mapping[str, int]) -> dict[str, Any]:
    """Fit the PCA of each feature that has a width, on the frames of the training videos."""
    moments = {feature: Moments(pipeline.extractors[feature].width) for feature in widths}
    for part in parts:
        values = _read_part(part.path, pipeline)
        for feature, sums in moments.items():
            sums.add(values[feature])
    return {feature: sums.projection(widths[feature]) for feature, sums in moments.items()}


def _codes(part: _Part, pipeline: Pipeline) -> tuple[Any, ...]:
    found = _read_part(part.path, pipeline)
    if all(array.dtype == np.uint8 for array in found.values()):
        return tuple(found.values())
    return pipeline.codes(Extraction(found, ()))


def _write(
    out: Path,
    data: Dataset,
    pipeline: Pipeline,
    splits: Mapping[Split, Sequence[_Part]],
    outcomes: Sequence[Outcome],
) -> None:
    """Write the shards, manifest, report, labels and recipe."""
    classes = 1 if data.classes is None else len(data.classes)
    schema = Schema(features=pipeline.features, classes=classes, max_frames=MAX_SECONDS)
    seconds = {outcome.id: outcome.seconds for outcome in outcomes}
    shards = []
    for name, parts in splits.items():
        groups = _groups(parts, [seconds[part.item.id] * schema.width for part in parts])
        for number, group in enumerate(groups):
            shards.append(f"{name}-{number:05}-of-{len(groups):05}.tfrecord")
            write_shard(out / shards[-1], (_record(part, pipeline, schema) for part in group))
    write_bytes(out / "report.csv", _report(outcomes).encode())
    if pipeline.projections:
        identities = {feature: pipeline.extractors[feature].identity for feature in pipeline.projections}
        save_projections(out / PROJECTIONS, pipeline.projections, identities)
    if data.classes is not None:
        write_bytes(out / LABEL_NAMES, label_names_csv(data.classes).encode())
        tests = bool(splits["test"])
        text = draft_recipe(
            schema, len(splits["train"]), command="reeltag extract", label_names=LABEL_NAMES, tests=tests
        )
        write_bytes(out / "recipe.toml", text.encode())
    write_json(out / MANIFEST, _manifest(out, pipeline, schema, outcomes, shards))


def _groups(parts: Sequence[_Part], sizes: Sequence[int]) -> list[list[_Part]]:
    """Group parts into shards of at most `SHARD_BYTES`, unless a single part is larger."""
    groups: list[list[_Part]] = []
    room = 0
    for part, size in zip(parts, sizes, strict=True):
        if size > room:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(part)
        room -= size
    return groups


def _record(part: _Part, pipeline: Pipeline, schema: Schema) -> bytes:
    labels = None if part.item.labels is None else np.array(part.item.labels, np.int64)
    return encode(Video(part.item.id, labels, _codes(part, pipeline)), schema)


def _report(outcomes: Sequence[Outcome]) -> str:
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "split", "seconds", "remarks"])
    writer.writerows([row.id, row.split or "", row.seconds, "; ".join(row.remarks)] for row in outcomes)
    return text.getvalue()


def _manifest(
    out: Path, pipeline: Pipeline, schema: Schema, outcomes: Sequence[Outcome], shards: Sequence[str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema": schema.model_dump(mode="json"),
        "extractors": {feature: extractor.identity for feature, extractor in pipeline.extractors.items()},
        "projections": PROJECTIONS if pipeline.projections else None,
        "shards": {name: file_hash(out / name) for name in shards},
        "videos": [
            {"file": row.id, "split": row.split, "seconds": row.seconds, "remarks": list(row.remarks)}
            for row in outcomes
        ],
    }
