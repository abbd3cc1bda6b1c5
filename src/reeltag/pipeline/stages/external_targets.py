"""Stage of a teacher whose predictions were made elsewhere."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from reeltag.core.storage import file_hash
from reeltag.core.text import megabytes
from reeltag.data.external_predictions import read_predictions
from reeltag.data.soft_targets import TargetsWriter, row_bytes
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.files import load_manifest, split, split_parameters
from reeltag.recipe.schema import DistillationSettings, Recipe

EXTERNAL_TARGETS_FORMAT = 1  # raise it when the same file of predictions gives other targets


def external_targets_stage(recipe: Recipe, settings: DistillationSettings, name: str) -> Stage:
    """Return the stage that turns a file of predictions into soft targets.

    It depends on the file's content, not on its path.

    Args:
        recipe: the recipe.
        settings: the recipe's table `[distillation]`.
        name: of the teacher in `distillation.predictions`.
    """
    path = settings.predictions[name]
    parameters = {
        "file": file_hash(path),
        "top_k": settings.top_k,
        "split": split_parameters(recipe),
    }
    size = (recipe.data.expected_videos or 0) * row_bytes(recipe.data.record_schema.classes, settings.top_k)
    note = f"{path}, {megabytes(path.stat().st_size)}"
    return Stage(
        name=f"targets.{name}",
        work=partial(_write_targets, recipe, path, settings, name),
        format=EXTERNAL_TARGETS_FORMAT,
        inputs=("data.train",),
        parameters=parameters,
        note=note,
        bytes=size,
    )


def _write_targets(recipe: Recipe, path: Path, settings: DistillationSettings, name: str, job: Job) -> str:
    """Write the predictions of the training videos as soft targets; hold-out videos get none."""
    manifest = load_manifest(job, "train")
    predictions = read_predictions(path, manifest.schema.classes)
    writer = TargetsWriter(job.folder, manifest, settings.top_k)
    train, _ = split(recipe, manifest)
    for first, end in zip(manifest.first_records[:-1], manifest.first_records[1:], strict=True):
        if len(inside := train[(first <= train) & (train < end)]):
            writer.put(inside, torch.from_numpy(predictions.rows(manifest.id_hashes[inside])))
    job.progress.say(f"  {len(train):,} of the {len(predictions.ids):,} videos of {path} are taught")
    return writer.finish({"name": name, "predictions": file_hash(path)})
