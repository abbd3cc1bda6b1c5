"""Students: the teachers' architectures trained anew on soft targets, those with one of their own, the second level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from reeltag.core.storage import read_json, write_json
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.candidate import ModelStages
from reeltag.pipeline.stages.files import KEPT
from reeltag.pipeline.stages.given_targets import given_stage
from reeltag.pipeline.stages.soft_targets import family_teacher, student_teacher, teacher_slots
from reeltag.pipeline.stages.training import Given
from reeltag.recipe.schema import DistillationSettings, Recipe, StudentSettings


class Distillation:
    """All that a recipe distils, in the order of the paper's Figure 1.

    Attributes:
        stages: each after its inputs.
        students: models that may become members.
        keepers: stages that say which students of the second level may not.

    Args:
        recipe: the recipe.
        settings: its table `[distillation]`.
    """

    def __init__(self, recipe: Recipe, settings: DistillationSettings) -> None:
        self.recipe, self.settings = recipe, settings
        self.stages: list[Stage] = []
        self.students: list[ModelStages] = []
        self.keepers: list[str] = []
        self._first: dict[str, list[ModelStages]] = {}  # those that teach the second level, by family
        first, second = (
            {name: student for name, student in recipe.students.items() if student.level == level} for level in (1, 2)
        )
        self._first_level(first)
        if second:
            self._second_level(second)

    def _first_level(self, own: dict[str, StudentSettings]) -> None:
        """Teachers of hard labels; their architectures anew, then architectures of the students' own."""
        targets = {}
        distilled, cross = self.recipe.distilled_families, self.settings.cross_family
        teaching = set(self.recipe.families if cross and distilled else distilled)
        teaching |= {family for student in own.values() for family in student.taught_by}
        for family in self.recipe.families:
            if family in teaching:
                teacher, stages = family_teacher(self.recipe, family)
                self.stages += stages
                targets[family] = teacher.targets
        for name in self.settings.predictions:
            if name in teaching:
                stage = given_stage(self.recipe, self.settings, name)
                self.stages.append(stage)
                targets[name] = stage.name
        for family in distilled:
            taught_by = tuple(targets[each] for each in (self.recipe.families if cross else (family,)))
            for slot in teacher_slots(self.recipe, family):
                name, source = f"{family}-student-{slot.number + 1}", replace(slot, dropout=self.settings.dropout)
                model = ModelStages(self.recipe, name, source, taught_by, self.settings.training)
                self._add(model)
                self._first.setdefault(family, []).append(model)
        for name, student in own.items():
            model = self._add(self._with_own_architecture(name, student, targets))
            if student.taught_by == (student.config.family,):
                self._first.setdefault(student.config.family, []).append(model)

    def _second_level(self, own: dict[str, StudentSettings]) -> None:
        """First students teach; of their students the smallest that hold the GAP are kept."""
        targets = {}
        for family in dict.fromkeys(family for student in own.values() for family in student.taught_by):
            teacher = student_teacher(self.recipe, family, self._first[family])
            self.stages += teacher.stages()
            targets[family] = teacher.targets
        rivals: dict[tuple[str, ...], list[ModelStages]] = {}
        for name, student in own.items():
            model = self._add(self._with_own_architecture(name, student, targets))
            rivals.setdefault(student.taught_by, []).append(model)
        for families, models in rivals.items():
            before = [model for family in families for model in self._first[family]]
            self._keep(f"keep.{'-'.join(families)}", models, before)

    def _with_own_architecture(self, name: str, student: StudentSettings, targets: dict[str, str]) -> ModelStages:
        taught_by = tuple(targets[family] for family in student.taught_by)
        return ModelStages(self.recipe, name, Given(student), taught_by, self.settings.training)

    def _add(self, model: ModelStages) -> ModelStages:
        self.students.append(model)
        self.stages += model.stages()
        return model

    def _keep(self, name: str, models: Sequence[ModelStages], before: Sequence[ModelStages]) -> None:
        parameters = {"keep": self.settings.keep, "tolerance": self.settings.tolerance}
        inputs = tuple(model.predicted for model in (*models, *before))
        note = f"at most {self.settings.keep} of {len(models)}"
        self.stages.append(Stage(name, partial(_do_keep, self.settings, models, before), inputs, parameters, note))
        self.keepers.append(name)


def _do_keep(
    settings: DistillationSettings, models: Sequence[ModelStages], before: Sequence[ModelStages], job: Job
) -> None:
    """Of the second level keep the smallest that hold the first level's hold-out GAP (paper section 4.2)."""
    bar = float(np.mean([model.scores(job)["float32"]["gap"] for model in before])) - settings.tolerance
    scores = {model.name: model.scores(job)["float32"] for model in models}
    holding = [name for name, score in scores.items() if score["gap"] >= bar]
    kept = sorted(holding, key=lambda name: scores[name]["bytes"])[: settings.keep]
    job.progress.say(f"  kept {', '.join(kept) or 'none'}: the smallest with a hold-out GAP of {bar:.5f} or more")
    write_json(job.folder / KEPT, {"bar": bar, "kept": kept, "left_out": sorted(set(scores) - set(kept))})


def left_out(job: Job, keepers: Sequence[str]) -> set[str]:
    """Names of the students of the second level that were not kept."""
    return {name for keeper in keepers for name in read_json(job.inputs[keeper] / KEPT)["left_out"]}
