"""Teachers: the best combination of a family's models, and the soft targets of their equal-weight mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reeltag.core.storage import content_hash, file_hash, read_json, write_json
from reeltag.core.text import counted, megabytes
from reeltag.data.holdout import split_folds
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Indices, Manifest, Shards
from reeltag.data.soft_targets import TargetsWriter, row_bytes, targets_file
from reeltag.inference.ensemble import BATCH_SIZE, Ensemble, predict_batches
from reeltag.inference.predictor import load
from reeltag.pipeline.ensemble_search import rank_combinations
from reeltag.pipeline.executor import Job, Pieces, Stage, Traffic
from reeltag.pipeline.stages.architectures import select_stage, teacher_architectures
from reeltag.pipeline.stages.files import MANIFEST, MODEL, SELECTION, load_manifest, split, split_parameters
from reeltag.pipeline.stages.gpu_hours import FORWARD_AND_BACKWARD
from reeltag.pipeline.stages.holdout_predictions import read_contenders
from reeltag.pipeline.stages.trained_model import TrainedModelStages, recipe_model
from reeltag.pipeline.stages.training import ModelTraining
from reeltag.pipeline.stages.training_plan import TrainingPlan
from reeltag.recipe.schema import DistillationSettings, Recipe

TARGETS_FORMAT = 1  # raise it when the same models write other soft targets
SELECT_FORMAT = 2  # raise it when other teachers are selected from the same predictions


@dataclass(frozen=True)
class TeacherStages:
    """Stages of a teacher: models whose equal-weight mean gives the soft targets.

    Attributes:
        recipe: the recipe.
        name: of the teacher; the stage `targets.NAME` writes its targets.
        models: training of each model, repeated without a fold where the targets are cross-fitted.
        finished: names of the stages that write the models, or the models that `select` chooses from.
        select: name of the stage that selects the models, if any.
    """

    recipe: Recipe
    name: str
    models: tuple[ModelTraining, ...]
    finished: tuple[str, ...]
    select: str | None = None

    @property
    def targets(self) -> str:
        """Name of the stage that writes the soft targets."""
        return f"targets.{self.name}"

    @property
    def distillation(self) -> DistillationSettings:
        """Table `[distillation]` of the recipe."""
        assert self.recipe.distillation is not None
        return self.recipe.distillation

    def stages(self) -> list[Stage]:
        """Return the stage that writes the targets, after the trainings of every fold where they are cross-fitted."""
        folds = [TrainingPlan(training).stage() for trainings in self._folds() for training in trainings]
        settings = self.distillation
        parameters = {"top_k": settings.top_k, "folds": settings.folds, "split": split_parameters(self.recipe)}
        select = (self.select,) if self.select else ()
        inputs = tuple(stage.name for stage in folds) or (*select, *self.finished)
        how = f"cross-fitted in {settings.folds} folds" if settings.folds else "in-sample"
        note = f"{how}, {'dense' if settings.top_k == 'dense' else f'top {settings.top_k}'} float16"
        videos = self.recipe.data.expected_videos or 0
        size = videos * row_bytes(self.recipe.data.record_schema.classes, settings.top_k)
        hours = sum(TrainingPlan(model).gpu_hours(epochs=1) for model in self.models)
        targets = Stage(
            name=self.targets,
            work=self._write_index,
            format=TARGETS_FORMAT,
            inputs=("data.train", *inputs),
            parameters=parameters,
            note=note,
            gpu_hours=hours / FORWARD_AND_BACKWARD,
            bytes=size,
            traffic=Traffic(videos),
            gpus=1,
            pieces=Pieces(_count_shards, targets_file, self._write_shard),
        )
        return [*folds, targets]

    def _folds(self) -> Iterator[list[ModelTraining]]:
        """Yield the trainings of each fold, which do not see it."""
        for fold in range(self.distillation.folds):
            yield [replace(model, fold=fold) for model in self.models]

    def _write_index(self, job: Job) -> str:
        """Write the index of the targets, which are one file a shard."""
        manifest = load_manifest(job, "train")
        train, _ = split(self.recipe, manifest)
        taught_by = [list(map(file_hash, files)) for _, files in self._parts(job, train)]
        writer = TargetsWriter(job.folder, manifest, self.distillation.top_k)
        digest = writer.finish({"name": self.name, "folds": self.distillation.folds, "files": taught_by})
        size = sum(path.stat().st_size for path in job.folder.glob("*.npy"))
        ratio = manifest.bytes / size
        job.progress.say(f"  {megabytes(size)} beside {megabytes(manifest.bytes)} of shards ({ratio:.1f} times)")
        return digest

    def _write_shard(self, job: Job, shard: int) -> None:
        """Write the targets of a shard's training videos, by the models of their fold or by the finished models."""
        manifest = _manifest(job)
        writer = TargetsWriter(job.folder, manifest, self.distillation.top_k)
        train, _ = split(self.recipe, manifest)
        first, end = manifest.first_records[shard : shard + 2]
        parts = [
            (inside, _probabilities(files, manifest, inside))
            for indices, files in self._parts(job, train)
            if len(inside := indices[(first <= indices) & (indices < end)])
        ]
        if parts:
            writer.put(np.concatenate([inside for inside, _ in parts]), torch.cat([rows for _, rows in parts]))

    def _parts(self, job: Job, train: Indices) -> Iterator[tuple[Indices, tuple[Path, ...]]]:
        """Yield groups of videos with the files of the models that give their targets."""
        if not self.distillation.folds:
            yield train, tuple(job.inputs[stage] / MODEL for stage in self._chosen(job))
            return
        folds = split_folds(train, self.recipe.seed, self.distillation.folds)
        for indices, trainings in zip(folds, self._folds(), strict=True):
            yield indices, tuple(job.inputs[training.stage_name] / MODEL for training in trainings)

    def _chosen(self, job: Job) -> list[str]:
        if self.select is None:
            return list(self.finished)
        names: list[str] = read_json(job.inputs[self.select] / SELECTION)["names"]
        return [recipe_model(self.recipe, name).finished for name in names]


def _count_shards(job: Job) -> int:
    return len(_manifest(job).shards)


def _manifest(job: Job) -> Manifest:
    return _load_manifest(job.inputs["data.train"] / MANIFEST)


@lru_cache(maxsize=1)
def _load_manifest(path: Path) -> Manifest:
    """Load a manifest; cached, because a process writes the targets of many shards."""
    return Manifest.load(path)


@lru_cache(maxsize=1)
def _ensemble(files: tuple[Path, ...]) -> Ensemble:
    """Load models with equal weights; cached, because consecutive shards mostly have the same models."""
    models = [load(path, "exact").model for path in files]
    return Ensemble(models, [1 / len(models)] * len(models))


def _probabilities(files: tuple[Path, ...], manifest: Manifest, indices: Indices) -> Tensor:
    """Return the mean probabilities [N, C] of the models; batches stay within a shard, so shards are independent."""
    batches = sequential_batches(Shards(manifest), indices, batch_size=BATCH_SIZE)
    return torch.cat([part.probabilities for part in predict_batches(_ensemble(files), batches)])


def family_teacher(recipe: Recipe, family: str) -> tuple[TeacherStages, list[Stage]]:
    """Return a family's teacher, and its stages from the selection on."""
    assert recipe.distillation is not None
    members = [recipe_model(recipe, name) for name in recipe.families[family]]
    architectures = teacher_architectures(recipe, family)
    count = len(architectures)
    select = Stage(
        name=select_stage(family),
        work=partial(_select, recipe, members, count),
        format=SELECT_FORMAT,
        inputs=tuple(member.predicted for member in members),
        parameters={
            "teachers": count,
            "models": {member.name: recipe.models[member.name].decisive() for member in members},
        },
        note=f"{count} of {len(members)}",
    )
    teacher = TeacherStages(
        recipe,
        family,
        tuple(ModelTraining(recipe, f"{family}-teacher-{each.index + 1}", each) for each in architectures),
        tuple(member.finished for member in members),
        select.name,
    )
    return teacher, [select, *teacher.stages()]


def student_teacher(recipe: Recipe, family: str, students: Sequence[TrainedModelStages]) -> TeacherStages:
    """Return the second level's teacher: all of a family's first-level students."""
    trainings = tuple(student.training for student in students)
    return TeacherStages(recipe, f"{family}-students", trainings, tuple(student.finished for student in students))


def _select(recipe: Recipe, members: Sequence[TrainedModelStages], count: int, job: Job) -> str:
    """Select the combination whose equal-weight mean has the highest hold-out GAP."""
    holdouts = [member.holdout(job) for member in members]
    labels = holdouts[0].labels
    sources = [(predictions, "float32") for predictions in holdouts]
    ranking: list[dict[str, Any]] = [
        {"models": [members[index].name for index in chosen], "gap": gap}
        for chosen, gap in rank_combinations(*read_contenders(sources, labels), count)
    ]
    names: list[str] = ranking[0]["models"]
    models = [recipe.models[name].decisive() for name in names]
    held = counted(len(labels), f"hold-out {recipe.data.record_schema.example}")
    job.progress.say(f"  {', '.join(names)}: GAP {ranking[0]['gap']:.5f} on all {held}")
    write_json(job.folder / SELECTION, {"names": names, "models": models, "ranking": ranking})
    return content_hash([names, models])
