"""Students: the teachers' architectures trained anew on soft targets, those with one of their own, the second level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from reeltag.executors import Job, Stage
from reeltag.recipe import Recipe, StudentSettings
from reeltag.stages.files import KEPT
from reeltag.stages.model import ModelStages
from reeltag.stages.teacher import family_teacher, student_teacher, teacher_slots
from reeltag.stages.training import Given
from reeltag.storage import read_json, write_json


@dataclass(frozen=True)
class Distillation:
    """All that a recipe distils.

    Attributes:
        stages: in order, each after its inputs.
        students: models that join the ensemble, by the family's name or the student's own.
        keepers: stages that leave out second students.
    """

    stages: list[Stage]
    students: list[ModelStages]
    keepers: list[str]


def distil(recipe: Recipe) -> Distillation:
    """Teachers, their students, and the second level of each family for which the recipe has students of it."""
    found = Distillation([], [], [])
    settings = recipe.distillation
    if settings is None:
        return found
    taught = recipe.distilled_families
    first = {name: student for name, student in recipe.students.items() if student.level == 1}
    second = {name: student for name, student in recipe.students.items() if student.level == 2}
    grown = {family for student in second.values() for family in student.taught_by}
    targets: dict[str, str] = {}
    students: dict[str, list[ModelStages]] = {}
    for family in recipe.families:
        if family in taught or any(family in student.taught_by for student in first.values()):
            teacher, stages = family_teacher(recipe, family)
            found.stages.extend(stages)
            targets[family] = teacher.targets
        if family in taught:
            students[family] = _family_students(recipe, family, targets[family])
            _add(found, students[family])
    for name, student in first.items():
        model = _student(recipe, name, student, targets)
        _add(found, [model])
        if student.taught_by == (student.config.family,):
            students.setdefault(student.config.family, []).append(model)
    for family in recipe.families:
        if family in grown:
            teacher = student_teacher(recipe, family, students[family])
            found.stages.extend(teacher.stages())
            targets[family] = teacher.targets
    late = {name: _student(recipe, name, student, targets) for name, student in second.items()}
    _add(found, list(late.values()))
    for families in dict.fromkeys([student.taught_by for student in second.values()]):
        rivals = [late[name] for name, student in second.items() if student.taught_by == families]
        _add_keeper(found, recipe, families, rivals, [model for family in families for model in students[family]])
    return found


def _family_students(recipe: Recipe, family: str, targets: str) -> list[ModelStages]:
    """The teachers' architectures, from scratch."""
    settings = recipe.distillation
    assert settings is not None
    return [
        ModelStages(
            recipe,
            f"{family}-student-{slot.number + 1}",
            replace(slot, dropout=settings.dropout),
            (targets,),
            settings.training,
        )
        for slot in teacher_slots(recipe, family)
    ]


def _student(recipe: Recipe, name: str, student: StudentSettings, targets: dict[str, str]) -> ModelStages:
    assert recipe.distillation is not None
    taught_by = tuple(targets[family] for family in student.taught_by)
    return ModelStages(recipe, name, Given(student), taught_by, recipe.distillation.training)


def _add(found: Distillation, students: Sequence[ModelStages]) -> None:
    found.students.extend(students)
    found.stages.extend(stage for student in students for stage in student.stages())


def _add_keeper(
    found: Distillation,
    recipe: Recipe,
    families: Sequence[str],
    students: Sequence[ModelStages],
    before: Sequence[ModelStages],
) -> None:
    assert recipe.distillation is not None
    name = f"keep.{'-'.join(families)}"
    parameters = {"keep": recipe.distillation.keep, "tolerance": recipe.distillation.tolerance}
    inputs = tuple(student.predicted for student in (*students, *before))
    note = f"at most {recipe.distillation.keep} of {len(students)}"
    found.stages.append(Stage(name, partial(_do_keep, recipe, students, before), inputs, parameters, note))
    found.keepers.append(name)


def _do_keep(recipe: Recipe, students: Sequence[ModelStages], before: Sequence[ModelStages], job: Job) -> None:
    """Of the second level keep the smallest that hold the first level's hold-out GAP (paper section 4.2)."""
    settings = recipe.distillation
    assert settings is not None
    bar = float(np.mean([student.scores(job)["float32"]["gap"] for student in before])) - settings.tolerance
    scores = {student.name: student.scores(job)["float32"] for student in students}
    holding = [name for name, score in scores.items() if score["gap"] >= bar]
    kept = sorted(holding, key=lambda name: scores[name]["bytes"])[: settings.keep]
    job.progress.say(f"  kept {', '.join(kept) or 'none'}: the smallest with a hold-out GAP of {bar:.5f} or more")
    write_json(job.folder / KEPT, {"bar": bar, "kept": kept, "left_out": sorted(set(scores) - set(kept))})


def left_out(job: Job, keepers: Sequence[str]) -> set[str]:
    """Names of the second students that were not kept."""
    return {name for keeper in keepers for name in read_json(job.inputs[keeper] / KEPT)["left_out"]}
