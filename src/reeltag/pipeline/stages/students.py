"""Students of both levels: teachers' architectures trained on soft targets, and architectures of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from reeltag.core.storage import read_json, write_json
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.architectures import FixedArchitecture, select_stage, student_architectures
from reeltag.pipeline.stages.external_targets import external_targets_stage
from reeltag.pipeline.stages.files import KEPT
from reeltag.pipeline.stages.teachers import family_teacher, student_teacher
from reeltag.pipeline.stages.trained_model import TrainedModelStages
from reeltag.recipe.schema import DistillationSettings, Recipe, StudentSettings

KEEP_FORMAT = 1  # raise it when other students are kept for the same predictions


class DistillationStages:
    """Stages of a recipe's distillation, in the order of the paper's Figure 1.

    Attributes:
        stages: each after its inputs.
        students: models that may become members.
        keepers: names of the stages that decide which second-level students may not become members.
        selections: names of the stages that select the teachers, by family.

    Args:
        recipe: the recipe.
        settings: the recipe's table `[distillation]`.
    """

    def __init__(self, recipe: Recipe, settings: DistillationSettings) -> None:
        self.recipe, self.settings = recipe, settings
        self.stages: list[Stage] = []
        self.students: list[TrainedModelStages] = []
        self.keepers: list[str] = []
        self.selections: dict[str, str] = {}
        self._first: dict[str, list[TrainedModelStages]] = {}  # by family; they teach the second level
        first, second = (
            {name: student for name, student in recipe.students.items() if student.level == level} for level in (1, 2)
        )
        self._first_level(first)
        if second:
            self._second_level(second)

    def _first_level(self, own: dict[str, StudentSettings]) -> None:
        """Add teachers that learn labels only, students with their architectures, and students with their own."""
        targets = {}
        distilled, cross = self.recipe.distilled_families, self.settings.cross_family
        teaching = set(self.recipe.families if cross and distilled else distilled)
        teaching |= {family for student in own.values() for family in student.taught_by}
        for family in self.recipe.families:
            if family in teaching:
                teacher, stages = family_teacher(self.recipe, family)
                self.stages += stages
                targets[family] = teacher.targets
                self.selections[family] = select_stage(family)
        for name in self.settings.predictions:
            if name in teaching:
                stage = external_targets_stage(self.recipe, self.settings, name)
                self.stages.append(stage)
                targets[name] = stage.name
        for family in distilled:
            taught_by = tuple(targets[each] for each in (self.recipe.families if cross else (family,)))
            for name, architecture in student_architectures(self.recipe, family).items():
                model = TrainedModelStages(self.recipe, name, architecture, taught_by, self.settings.training)
                self._add(model)
                self._first.setdefault(family, []).append(model)
        for name, student in own.items():
            model = self._add(self._with_own_architecture(name, student, targets))
            if student.taught_by == (student.config.family,):
                self._first.setdefault(student.config.family, []).append(model)

    def _second_level(self, own: dict[str, StudentSettings]) -> None:
        """Add students taught by first-level students; the smallest that hold the GAP are kept."""
        targets = {}
        for family in dict.fromkeys(family for student in own.values() for family in student.taught_by):
            teacher = student_teacher(self.recipe, family, self._first[family])
            self.stages += teacher.stages()
            targets[family] = teacher.targets
        rivals: dict[tuple[str, ...], list[TrainedModelStages]] = {}
        for name, student in own.items():
            model = self._add(self._with_own_architecture(name, student, targets))
            rivals.setdefault(student.taught_by, []).append(model)
        for families, models in rivals.items():
            before = [model for family in families for model in self._first[family]]
            self._keep(f"keep.{'-'.join(families)}", models, before)

    def _with_own_architecture(
        self, name: str, student: StudentSettings, targets: dict[str, str]
    ) -> TrainedModelStages:
        taught_by = tuple(targets[family] for family in student.taught_by)
        return TrainedModelStages(self.recipe, name, FixedArchitecture(student), taught_by, self.settings.training)

    def _add(self, model: TrainedModelStages) -> TrainedModelStages:
        self.students.append(model)
        self.stages += model.stages()
        return model

    def _keep(self, name: str, models: Sequence[TrainedModelStages], before: Sequence[TrainedModelStages]) -> None:
        parameters = {"keep": self.settings.keep, "tolerance": self.settings.tolerance}
        inputs = tuple(model.predicted for model in (*models, *before))
        stage = Stage(
            name=name,
            work=partial(_keep_smallest, self.settings, models, before),
            format=KEEP_FORMAT,
            inputs=inputs,
            parameters=parameters,
            note=f"at most {self.settings.keep} of {len(models)}",
        )
        self.stages.append(stage)
        self.keepers.append(name)


def _keep_smallest(
    settings: DistillationSettings, models: Sequence[TrainedModelStages], before: Sequence[TrainedModelStages], job: Job
) -> None:
    """Of the second level keep the smallest that hold the first level's hold-out GAP (paper section 4.2)."""
    bar = float(np.mean([model.scores(job)["float32"]["gap"] for model in before])) - settings.tolerance
    scores = {model.name: model.scores(job)["float32"] for model in models}
    holding = [name for name, score in scores.items() if score["gap"] >= bar]
    kept = sorted(holding, key=lambda name: scores[name]["bytes"])[: settings.keep]
    job.progress.say(f"  kept {', '.join(kept) or 'none'}: the smallest with a hold-out GAP of {bar:.5f} or more")
    write_json(job.folder / KEPT, {"bar": bar, "kept": kept, "left_out": sorted(set(scores) - set(kept))})


def left_out(job: Job, keepers: Sequence[str]) -> set[str]:
    """Read the names of the second-level students that were not kept."""
    return {name for keeper in keepers for name in read_json(job.inputs[keeper] / KEPT)["left_out"]}
