"""Teachers: the best combination of a family's models, and the soft targets of their equal-weight mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

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
from reeltag.pipeline.ensemble_search import best_combination, contenders
from reeltag.pipeline.executor import Job, Pieces, Stage, Traffic
from reeltag.pipeline.stages.candidate import ModelStages, candidate
from reeltag.pipeline.stages.estimate import FORWARD_AND_BACKWARD
from reeltag.pipeline.stages.files import MODEL, SELECTION, load_manifest, split, split_parameters
from reeltag.pipeline.stages.training import Selected, Training
from reeltag.recipe.schema import DistillationSettings, Recipe


@dataclass(frozen=True)
class Teacher:
    """Models whose equal-weight mean teaches.

    Attributes:
        recipe: the recipe.
        name: of the teacher; its targets are the stage `targets.NAME`.
        models: how each of them is trained, for one that leaves a fold out.
        finished: the stages that end with them, or with those from which `select` chooses.
        select: the stage that chooses, if any.
    """

    recipe: Recipe
    name: str
    models: tuple[Training, ...]
    finished: tuple[str, ...]
    select: str | None = None

    @property
    def targets(self) -> str:
        """The stage that ends with the soft targets."""
        return f"targets.{self.name}"

    @property
    def distillation(self) -> DistillationSettings:
        """How the recipe distils."""
        assert self.recipe.distillation is not None
        return self.recipe.distillation

    def stages(self) -> list[Stage]:
        """Train the teachers of every fold where the targets are cross-fitted; then write the targets."""
        folds = [training.stage() for part in self._folds() for training in part]
        settings = self.distillation
        parameters = {"top_k": settings.top_k, "folds": settings.folds, "split": split_parameters(self.recipe)}
        select = (self.select,) if self.select else ()
        inputs = tuple(stage.name for stage in folds) or (*select, *self.finished)
        how = f"cross-fitted in {settings.folds} folds" if settings.folds else "in-sample"
        note = f"{how}, {'dense' if settings.top_k == 'dense' else f'top {settings.top_k}'} float16"
        videos = self.recipe.data.expected_videos or 0
        size = videos * row_bytes(self.recipe.data.record_schema.classes, settings.top_k)
        hours = sum(model.gpu_hours(epochs=1) for model in self.models) / FORWARD_AND_BACKWARD
        inputs, traffic = ("data.train", *inputs), Traffic(videos)
        stage = Stage(self.targets, self._do_targets, inputs, parameters, note, hours, size, traffic=traffic)
        return [*folds, replace(stage, gpus=1, pieces=Pieces(_count_shards, targets_file, self._do_shard))]

    def _folds(self) -> Iterator[list[Training]]:
        """The teachers of each fold, which never saw it."""
        for fold in range(self.distillation.folds):
            yield [replace(model, fold=fold) for model in self.models]

    def _do_targets(self, job: Job) -> str:
        """Write the index of the targets that are there, one file a shard."""
        manifest = load_manifest(job, "train")
        train, _ = split(self.recipe, manifest)
        taught_by = [list(map(file_hash, files)) for _, files in self._parts(job, train)]
        writer = TargetsWriter(job.folder, manifest, self.distillation.top_k)
        digest = writer.finish({"name": self.name, "folds": self.distillation.folds, "files": taught_by})
        size = sum(path.stat().st_size for path in job.folder.glob("*.npy"))
        share = manifest.bytes / size
        job.progress.say(f"  {megabytes(size)} beside {megabytes(manifest.bytes)} of shards ({share:.1f} times)")
        return digest

    def _do_shard(self, job: Job, shard: int) -> None:
        """Predict a shard's training videos by teachers that never saw them, or the finished models; no hold-out."""
        manifest = load_manifest(job, "train")
        writer = TargetsWriter(job.folder, manifest, self.distillation.top_k)
        train, _ = split(self.recipe, manifest)
        first, end = manifest.first_records[shard : shard + 2]
        found = [
            (inside, _probabilities(files, manifest, inside))
            for indices, files in self._parts(job, train)
            if len(inside := indices[(first <= indices) & (indices < end)])
        ]
        if found:
            writer.put(np.concatenate([inside for inside, _ in found]), torch.cat([rows for _, rows in found]))

    def _parts(self, job: Job, train: Indices) -> Iterator[tuple[Indices, tuple[Path, ...]]]:
        """Videos, and the files of the models that teach them."""
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
        return [candidate(self.recipe, name).finished for name in names]


def _count_shards(job: Job) -> int:
    return len(load_manifest(job, "train").shards)


@lru_cache(maxsize=1)
def _ensemble(files: tuple[Path, ...]) -> Ensemble:
    """Models with equal weights; those of the shard before are mostly those of the next."""
    models = [load(path).model for path in files]
    return Ensemble(models, [1 / len(models)] * len(models))


def _probabilities(files: tuple[Path, ...], manifest: Manifest, indices: Indices) -> Tensor:
    """What the mean of the models says of videos, [N, C]; in batches of one shard, so that none depends on others."""
    batches = sequential_batches(Shards(manifest), indices, batch_size=BATCH_SIZE)
    return torch.cat([part.probabilities for part in predict_batches(_ensemble(files), batches)])


def select_stage(family: str) -> str:
    """The stage that chooses a family's teachers."""
    return f"select.{family}"


def teacher_slots(recipe: Recipe, family: str) -> list[Selected]:
    """The architectures of a family's teachers, one for each that will be chosen."""
    assert recipe.distillation is not None
    names = recipe.families[family]
    among = tuple(recipe.models[name] for name in names)
    stage, count = select_stage(family), min(recipe.distillation.teachers, len(names))
    if count == len(names):  # every one of them, in their order
        return [Selected(stage, number, (among[number],)) for number in range(count)]
    return [Selected(stage, number, among) for number in range(count)]


def family_teacher(recipe: Recipe, family: str) -> tuple[Teacher, list[Stage]]:
    """The teacher that a family's models make, and all its stages, with the choice first."""
    assert recipe.distillation is not None
    members = [candidate(recipe, name) for name in recipe.families[family]]
    slots = teacher_slots(recipe, family)
    select = Stage(
        select_stage(family),
        partial(_do_select, recipe, members, len(slots)),
        tuple(member.predicted for member in members),
        {
            "teachers": len(slots),
            "models": {member.name: recipe.models[member.name].decisive() for member in members},
        },
        f"{len(slots)} of {len(members)}",
    )
    teacher = Teacher(
        recipe,
        family,
        tuple(Training(recipe, f"{family}-teacher-{slot.number + 1}", slot) for slot in slots),
        tuple(member.finished for member in members),
        select.name,
    )
    return teacher, [select, *teacher.stages()]


def student_teacher(recipe: Recipe, family: str, students: Sequence[ModelStages]) -> Teacher:
    """The second level's teacher: all of a family's first students."""
    trainings = tuple(student.training for student in students)
    return Teacher(recipe, f"{family}-students", trainings, tuple(student.finished for student in students))


def _do_select(recipe: Recipe, members: Sequence[ModelStages], count: int, job: Job) -> str:
    """Find the combination whose equal-weight mean has the highest hold-out GAP."""
    found = [member.holdout(job) for member in members]
    probabilities, labels = [predictions["float32"] for predictions, _ in found], found[0][1]
    chosen, gap = best_combination(*contenders(probabilities, labels), count)
    names = [members[index].name for index in chosen]
    models = [recipe.models[name].decisive() for name in names]
    held = counted(len(labels), f"hold-out {recipe.data.record_schema.example}")
    job.progress.say(f"  {', '.join(names)}: GAP {gap:.5f} on all {held}")
    write_json(job.folder / SELECTION, {"names": names, "models": models, "gap": gap})
    return content_hash([names, models])
