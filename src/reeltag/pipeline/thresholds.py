"""Choose thresholds and fit a calibration for a finished model, and write them into a copy of its file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from reeltag.artifact.file import Artifact, load_artifact, save_artifact, stream_artifact
from reeltag.artifact.tagging_rule import Calibration, Thresholds
from reeltag.core.errors import DataError, UsageError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import Patterns, as_strings, find_files, read_json, refuse_existing, remove_partials_of
from reeltag.core.text import counted, megabytes
from reeltag.data.bad_records import BadRecords
from reeltag.data.holdout import split_holdout
from reeltag.data.labels import Encoding
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Indices, Manifest, Shards
from reeltag.data.sources.files import find_features
from reeltag.inference.calibration import Scope, fit_calibration
from reeltag.inference.ensemble import BATCH_SIZE, Predictions, predict_batches
from reeltag.inference.evaluate import named_like_training
from reeltag.inference.predictor import AnyMode, Predictor, load, resolve_model
from reeltag.inference.thresholds import choose_class_thresholds, parse_goal
from reeltag.pipeline.report.results import RECIPE
from reeltag.pipeline.run_folder import MARKER
from reeltag.pipeline.stages.files import MANIFEST, MODEL
from reeltag.recipe.data import HoldoutSettings


@dataclass(frozen=True)
class Chosen:
    """Thresholds and calibration that were chosen for a model.

    Attributes:
        thresholds: with their goal, or None without a goal.
        calibration: or None if none was asked for.
        label_names: [C] names of the classes, or their numbers.
        videos: number of videos or segments that they were chosen on.
        remarks: reasons to doubt these videos.
        size: bytes of the new file, or None without one.
    """

    thresholds: Thresholds | None
    calibration: Calibration | None
    label_names: tuple[str, ...]
    videos: int
    remarks: tuple[str, ...]
    size: int | None


def choose_thresholds(  # noqa: PLR0913 (each is an option of `reeltag thresholds`)
    model: str | Path | Predictor,
    shards: Patterns = (),
    *,
    holdout: str | Path | None = None,
    precision: float | None = None,
    recall: float | None = None,
    f1: bool = False,
    cost: str | None = None,
    calibrate: Scope | None = None,
    out: str | Path | None = None,
    labels: str | Path | None = None,
    label_encoding: Encoding | None = None,
    mode: AnyMode = "auto",
    bad: BadRecords | None = None,
) -> Chosen:
    """Choose a threshold for each class, or fit a calibration, or both, as `reeltag thresholds` does.

    All probabilities of the videos are in memory, 5 bytes for each video and class, and several times that while a
    calibration is fitted.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a loaded `Predictor`.
        shards: labelled shards or other labelled features; paths, URLs or glob patterns.
        holdout: folder of a run, to take the videos that its recipe held out instead of shards.
        precision: choose the lowest threshold that claims this precision.
        recall: choose the highest threshold that claims this recall.
        f1: choose the threshold of the highest F1.
        cost: choose the threshold of the lowest cost of errors, such as `fp=1,fn=5`.
        calibrate: `shared`, one map for all classes, which changes no ranks within a video; or `per-class`.
        out: a new file, the model with what was chosen.
        labels: file of labels for features that are not shards; by default they are found beside the features.
        label_encoding: form of these labels; by default it is found.
        mode: how the model is computed; see `load`.
        bad: collects bad records of the shards; by default the first is raised.

    Raises:
        UsageError: there is no goal or several, no videos or both shards and a hold-out, the folder holds no such run,
            or `out` exists.
        DataError: a record is damaged or has no labels, or no video has a label.
        ArtifactError: the model is missing or damaged.
    """
    goal = parse_goal(precision, recall, f1, cost)
    if goal is None and calibrate is None:
        raise UsageError("thresholds: give a goal, one of precision, recall, f1 and cost, or calibrate, or both")
    if bool(as_strings(shards)) == (holdout is not None):
        raise UsageError("thresholds: give labelled shards, or the folder of a run as holdout, one of both")
    if holdout is not None and (labels is not None or label_encoding is not None):
        raise UsageError("labels: the hold-out of a run has its own; leave the file and its encoding out")
    if out is not None:
        refuse_existing(Path(out))
        remove_partials_of(Path(out))
    file = resolve_model(model)
    predictor = load(file, mode)
    if holdout is not None:
        source = Path(holdout)
        manifest, held, remarks = _held_out(predictor.artifact, source)
        predictions = predict_batches(
            predictor.model, sequential_batches(Shards(manifest), held, batch_size=BATCH_SIZE)
        )
        about: dict[str, Any] = {"holdout": source.resolve().name}
    else:
        remarks = doubts_of_shards(predictor.artifact, shards)
        about = {"shards": [PurePath(each).name for each in as_strings(shards)]}
        predictions = predictor.predict_shards(shards, bad, labelled=True, labels=labels, label_encoding=label_encoding)
    ids, probabilities, truth, rated = _collected(predictions)
    thresholds = None if goal is None else choose_class_thresholds(probabilities, truth, goal, about, rated=rated)
    calibration = (
        None if calibrate is None else fit_calibration(probabilities, truth, ids, calibrate, about, rated=rated)
    )
    size = None
    if out is not None:
        artifact = load_artifact(file)
        tuned = replace(
            artifact,
            thresholds=thresholds or artifact.thresholds,
            calibration=calibration or artifact.calibration,
        )
        size = save_artifact(Path(out), tuned)
        budget = artifact.provenance.get("budget", size)
        if size > budget:
            remarks = [
                *remarks,
                f"the new file has {megabytes(size)}, beyond the budget of its recipe, {megabytes(budget)}",
            ]
    return Chosen(thresholds, calibration, predictor.label_names, len(ids), tuple(remarks), size)


def _collected(predictions: Iterable[Predictions]) -> tuple[list[str], Tensor, Tensor, Tensor | None]:
    """Return ids [N], probabilities [N, C], labels [N, C] and, of segments, the known labels [N, C].

    Raises:
        DataError: there are no videos, or none has a label.
    """
    parts = list(predictions)
    if not parts:
        raise DataError("no videos to choose thresholds on; give labelled shards")
    ids = [name for part in parts for name in part.ids]
    labels = torch.cat([part.labels for part in parts if part.labels is not None])
    if not labels.any():
        raise DataError(f"none of {counted(len(ids), 'video')} has a label; give labelled shards")
    rated = [part.rated for part in parts if part.rated is not None]
    return ids, torch.cat([part.probabilities for part in parts]), labels, torch.cat(rated) if rated else None


def doubts_of_shards(artifact: Artifact, shards: Patterns) -> list[str]:
    """Return reasons to believe that the model was trained on these shards; they are known by their names only."""
    data = artifact.provenance.get("data")
    if not isinstance(data, Mapping):
        return ["the file does not say which videos trained it; make sure that none of these did"]
    found = named_like_training(artifact, find_features(shards) or find_files(shards))
    return [f"{found}: on training videos every threshold is too low; give others, or --holdout RUN"] if found else []


def _doubts_of_run(artifact: Artifact, run: Path, trained: int) -> list[str]:
    """Return reasons to believe that the model was trained on the videos that a run held out.

    Args:
        artifact: the model.
        run: folder of the run.
        trained: number of videos that the run did not hold out.
    """
    path, known = run / MODEL, artifact.provenance
    theirs = stream_artifact(path)[0].provenance.get("recipe_hash") if path.is_file() else None
    if theirs is not None and theirs == known.get("recipe_hash") and _trained_on(artifact) == trained:
        return []
    return [
        f"the file does not say that {run} made it, so the videos that this run held out may have trained it; "
        "thresholds would then be too low"
    ]


def _trained_on(artifact: Artifact) -> object:
    """Return the number of videos that trained a model, if its file says so."""
    data = artifact.provenance.get("data")
    return data.get("videos") if isinstance(data, Mapping) else None


def _held_out(artifact: Artifact, run: Path) -> tuple[Manifest, Indices, list[str]]:
    """Return the training set of a run, the indices of the videos that it held out, and reasons to doubt them.

    The shards may have been indexed several times: the last time with as many training videos as the model had counts,
    or else the last.

    Raises:
        UsageError: the folder holds no run, or one of other data, or the run is at a URL.
    """
    if is_url(str(run)):
        raise UsageError(f"{run}: the hold-out is read from a folder on this machine; copy the run")
    markers = sorted(run.glob(f"stages/data.train-*/{MARKER}"), key=lambda path: path.stat().st_mtime_ns)
    if not (run / RECIPE).is_file() or not markers:
        raise UsageError(f"{run}: not the folder of a finished run; give the --out of `reeltag run`")
    recipe = read_json(run / RECIPE)
    try:
        holdout = HoldoutSettings.model_validate(recipe["data"]["holdout"])
        seed = int(recipe["seed"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{run / RECIPE}: is damaged; run the recipe again with --out {run}") from error
    manifests = [Manifest.load(marker.parent / MANIFEST) for marker in reversed(markers)]
    sets = [(each, *_split(each, seed, holdout)) for each in manifests]
    manifest, train, held = min(sets, key=lambda each: len(each[1]) != _trained_on(artifact))
    ours, theirs = (each.model_dump(exclude={"ids", "labels"}) for each in (artifact.schema, manifest.schema))
    if other := [key for key in ours if ours[key] != theirs[key]]:
        raise UsageError(
            f"{run}: its data have another schema than the model ({', '.join(other)}); give the run that made the model"
        )
    return manifest, held, _doubts_of_run(artifact, run, len(train))


def _split(manifest: Manifest, seed: int, holdout: HoldoutSettings) -> tuple[Indices, Indices]:
    return split_holdout(manifest, seed, fraction=holdout.fraction, shards=holdout.shards, patterns=holdout.patterns)
