"""Extract video files and their labels to frame-level shards, with a manifest and a recipe.

The extractors' values for each file are written to the folder `OUT.parts`, under a hash of all that decides them. At
the end these parts become the records of shards, and the folder is removed. So a killed run loses only the files in
progress, and where values do not fit their scale a corrected command decodes nothing again.
"""

from __future__ import annotations

import csv
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
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
from reeltag.data.schema import STORAGE_KEYS, Schema, Storage
from reeltag.data.video.dataset import Dataset, Item, label_names_csv, split
from reeltag.data.video.decode import MAX_SECONDS
from reeltag.data.video.engine import Engine, process_files
from reeltag.data.video.extractors.settings import with_scale
from reeltag.data.video.features import Pipeline, open_pipeline
from reeltag.data.video.value_range import Distribution, ValueUse, find_misfit

FORMAT = 2  # of parts and of the manifest
PROJECTIONS = "pca.safetensors"
LABEL_NAMES = "labels.csv"
FIRST_CHECKED = 8  # videos after which values are checked for the first time
SAMPLE = 100  # largest number of videos that a scale is proposed from
SHARD_BYTES = 100_000_000  # of the frames of a shard
OPTIONS = {"rgb": "--image", "audio": "--audio"}  # that name the extractor of a feature

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
        fit_scale: number of training videos that the scale of each feature is measured from; None for the extractors'.
        storage: form in which records hold values.
        allow_clipping: extract also where the 8-bit range cuts more than a fifth of the values.
    """

    image: str = "efficientnet-lite0"
    sound: str = "logmel"
    pca: Path | None = None
    fit: Mapping[str, int] | None = None
    test_share: float = 0.0
    fit_scale: int | None = None
    storage: Storage = "uint8"
    allow_clipping: bool = False

    def option(self, feature: str, offset: float, scale: float) -> str:
        """Return the option that names the extractor of a feature on another scale, as a shell reads it."""
        name = {"rgb": self.image, "audio": self.sound}[feature]
        return f"{OPTIONS[feature]} {shlex.quote(with_scale(name, offset, scale))}"


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
class Extracted:
    """A data set that was extracted.

    Attributes:
        outcomes: outcome of each video, sorted by id.
        scales: offset and scale by feature, where they were measured.
        warnings: on features whose values do not fit the form that stores them.
    """

    outcomes: tuple[Outcome, ...]
    scales: Mapping[str, tuple[float, float]]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Part:
    item: Item
    path: Path


def extract_dataset(data: Dataset, out: Path, settings: Settings, workers: int, progress: Progress) -> Extracted:
    """Extract videos and write the data set.

    The bytes in `out` depend only on the videos, their ids, labels and the settings.

    Args:
        data: the videos.
        out: a folder that does not exist yet; it is created atomically.
        settings: settings of the extraction.
        workers: number of files at once.
        progress: reports progress.

    Raises:
        UsageError: the folder exists, an extractor cannot be opened, no video could be extracted, or the values of a
            feature do not fit the form in which they are to be stored.
    """
    refuse_nonempty(out)
    pipeline = _prepared(settings)
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
        scales = _measured_scales(pipeline, splits["train"][: settings.fit_scale]) if settings.fit_scale else {}
        pipeline = pipeline.rescaled(scales)
        uses, warnings = _checked_values(pipeline, [*splits["train"], *splits["test"]], settings)
        where = {part.item.id: name for name, members in splits.items() for part in members}
        outcomes = [replace(outcome, split=where.get(outcome.id)) for outcome in outcomes]
        with atomic_folder(out) as new:
            _write(new, data, pipeline, splits, outcomes, uses=uses, finally_at=out)
        remove_folder(folder)
    return Extracted(tuple(outcomes), scales, tuple(warnings))


# --- one file -------------------------------------------------------------------------------------


def _prepared(settings: Settings) -> Pipeline:
    """Open the extractors, and the PCA that is given."""
    pipeline = open_pipeline(settings.image, settings.sound)
    identities = {feature: extractor.identity for feature, extractor in pipeline.extractors.items()}
    projections = load_projections(settings.pca, identities) if settings.pca else {}
    return replace(pipeline, projections=projections, storage=settings.storage)


def _extract_part(part: _Part, engine: Engine, pipeline: Pipeline) -> None:
    """Write the part of a file: the extractors' values, which PCA, scale and storage do not change."""
    found = pipeline.extract(part.item.path, engine)
    tensorfile.write(part.path, found.values, {"remarks": found.remarks})


def _read_part(path: Path, pipeline: Pipeline) -> dict[str, Any]:
    file = tensorfile.TensorFile(path)
    return {feature: file.read(feature) for feature in pipeline.extractors}


def _extract_all(
    data: Dataset, folder: Path, settings: Settings, pipeline: Pipeline, *, workers: int, progress: Progress
) -> tuple[list[Outcome], dict[str, _Part]]:
    deciding = [FORMAT, {feature: extractor.identity for feature, extractor in pipeline.extractors.items()}]
    items = sorted(data.items, key=lambda item: item.order)  # so that the first ones are a sample of all
    parts = [_Part(item, folder / f"{content_hash([deciding, file_identity(item.path)])}.part") for item in items]
    missing = [part for part in parts if not _is_whole(part.path)]
    first = parts[:FIRST_CHECKED] if len(parts) > FIRST_CHECKED else []
    unread = {part.item.id for part in first if part in missing}
    errors: dict[str, str] = {}
    if missing and not unread:
        _check_early(pipeline, first, settings, progress)
    work = process_files(missing, workers, partial(_extract_part, pipeline=pipeline))
    with progress.task("extract", len(parts), "files") as task, closing(work):
        task.resume_at(len(parts) - len(missing))
        for part, error in work:
            if error is not None:
                errors[part.item.id] = str(error).removeprefix(f"{part.item.path}: ")
                progress.say(f"  left out: {error}")
            task.advance(1, note=part.item.id)
            if part.item.id in unread:
                unread.remove(part.item.id)
                if not unread:
                    readable = [each for each in first if each.item.id not in errors]
                    _check_early(pipeline, readable, settings, progress)
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


def _measured_scales(pipeline: Pipeline, parts: Sequence[_Part]) -> dict[str, tuple[float, float]]:
    """Measure the offset and scale of each feature; a feature whose values are all equal is left out."""
    distributions = {feature: Distribution() for feature in pipeline.extractors}
    for part in parts:
        for feature, values in _read_part(part.path, pipeline).items():
            distributions[feature].add(values)
    found = {feature: distribution.scale() for feature, distribution in distributions.items()}
    return {feature: scale for feature, scale in found.items() if scale is not None}


def _value_uses(pipeline: Pipeline, parts: Sequence[_Part]) -> dict[str, ValueUse]:
    uses = {feature: ValueUse() for feature in pipeline.extractors}
    for part in parts:
        for feature, values in pipeline.mapped(_read_part(part.path, pipeline)).items():
            uses[feature].add(values)
    return uses


def _checked_values(
    pipeline: Pipeline, parts: Sequence[_Part], settings: Settings
) -> tuple[dict[str, ValueUse], list[str]]:
    """Count the values of each feature, and warn of those that do not fit the form in which they are to be stored.

    Raises:
        UsageError: so much is lost that nothing should be written.
    """
    uses = _value_uses(pipeline, parts)
    warnings, refused = list[str](), list[str]()
    for feature, use in uses.items():
        extractor, whitened = pipeline.extractors[feature], feature in pipeline.projections
        misfit = find_misfit(use, pipeline.storage, whitened=whitened, calibrated=extractor.calibrated)
        if misfit is not None and not _as_published(pipeline, feature):
            text = f"{feature} of {extractor.name}: {misfit.what}"
            found = refused if misfit.lost and not settings.allow_clipping else warnings
            found.append(f"{text}; {_remedy(feature, pipeline, parts, settings)}")
    if refused:
        anyway = "--allow-clipping extracts them as they are; " if pipeline.storage == "uint8" else ""
        kept = "the corrected command goes on with the values extracted so far, without decoding their videos again"
        raise UsageError("\n  ".join([*refused, f"{anyway}{kept}"]))
    return uses, warnings


def _as_published(pipeline: Pipeline, feature: str) -> bool:
    """Return True if the codes of a feature are those that its extractor was published with."""
    return (
        pipeline.extractors[feature].published and pipeline.storage == "uint8" and feature not in pipeline.projections
    )


def _check_early(pipeline: Pipeline, parts: Sequence[_Part], settings: Settings, progress: Progress) -> None:
    """Check the values of the first videos, before hours are spent on the others; see `_checked_values`."""
    if settings.fit is None and settings.fit_scale is None:
        for warning in _checked_values(pipeline, parts, settings)[1]:
            progress.say(f"  {warning}")


def _remedy(feature: str, pipeline: Pipeline, parts: Sequence[_Part], settings: Settings) -> str:
    """Return the options that would fit the values of a feature, for a message."""
    if pipeline.storage == "float16":
        return "give --storage float32"
    if feature in pipeline.projections:
        return "give a PCA of such videos with --fit-pca, or --storage float16"
    sample = parts[:SAMPLE]
    scales = _measured_scales(pipeline, sample)
    if feature not in scales:
        step = f"check the extractor, or give {OPTIONS[feature]} none"
        return f"they are all equal, so nothing can be learned from them: {step}"
    fitted = _value_uses(pipeline.rescaled(scales), sample)[feature]
    others = "--fit-pca, or --storage float16"
    if find_misfit(fitted, "uint8") is not None:
        return f"no scale fits them: give {others}"
    return f"give {settings.option(feature, *scales[feature])}, {others}"


def _write(
    out: Path,
    data: Dataset,
    pipeline: Pipeline,
    splits: Mapping[Split, Sequence[_Part]],
    outcomes: Sequence[Outcome],
    *,
    uses: Mapping[str, ValueUse],
    finally_at: Path,
) -> None:
    """Write the shards, manifest, report, labels and recipe; `out` is renamed to `finally_at` afterwards."""
    classes = 1 if data.classes is None else len(data.classes)
    keys = STORAGE_KEYS[pipeline.storage]
    schema = Schema.model_validate(
        {"features": pipeline.features, "classes": classes, "max_frames": MAX_SECONDS, **keys}
    )
    seconds = {outcome.id: outcome.seconds for outcome in outcomes}
    frame_bytes = schema.width * np.dtype(pipeline.storage).itemsize
    shards = []
    for name, parts in splits.items():
        groups = _groups(parts, [seconds[part.item.id] * frame_bytes for part in parts])
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
            schema, len(splits["train"]), finally_at, command="reeltag extract", label_names=LABEL_NAMES, tests=tests
        )
        write_bytes(out / "recipe.toml", text.encode())
    write_json(out / MANIFEST, _manifest(out, pipeline, schema, outcomes, shards, uses=uses))


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
    features = pipeline.stored(pipeline.mapped(_read_part(part.path, pipeline)))
    return encode(Video(part.item.id, labels, features), schema)


def _report(outcomes: Sequence[Outcome]) -> str:
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "split", "seconds", "remarks"])
    writer.writerows([row.id, row.split or "", row.seconds, "; ".join(row.remarks)] for row in outcomes)
    return text.getvalue()


def _manifest(
    out: Path,
    pipeline: Pipeline,
    schema: Schema,
    outcomes: Sequence[Outcome],
    shards: Sequence[str],
    *,
    uses: Mapping[str, ValueUse],
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "schema": schema.model_dump(mode="json"),
        "extractors": {feature: extractor.identity for feature, extractor in pipeline.extractors.items()},
        "projections": PROJECTIONS if pipeline.projections else None,
        "values": {feature: use.summary(pipeline.storage) for feature, use in uses.items()},
        "shards": {name: file_hash(out / name) for name in shards},
        "videos": [
            {"file": row.id, "split": row.split, "seconds": row.seconds, "remarks": list(row.remarks)}
            for row in outcomes
        ],
    }
