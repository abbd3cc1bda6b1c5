"""Architecture of a trained model: fixed by the recipe, or that of a selected teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from reeltag.core.storage import content_hash, read_json
from reeltag.pipeline.stages.files import SELECTION
from reeltag.recipe.schema import ModelSettings, Recipe
from reeltag.training.schedule import StartSettings, TrainingSettings

if TYPE_CHECKING:
    from reeltag.pipeline.executor import Job


@dataclass(frozen=True)
class FixedArchitecture:
    """An architecture with a table of its own in the recipe."""

    settings: ModelSettings

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that decide the architecture: none."""
        return ()

    @property
    def candidates(self) -> Sequence[ModelSettings]:
        """Possible architectures: this one."""
        return (self.settings,)

    def resolve(self, job: Job) -> ModelSettings:
        """Return the architecture."""
        return self.settings

    def training_tables(self, own: ModelSettings, overrides: TrainingSettings) -> tuple[TrainingSettings, ...]:
        """Order the training tables so that later ones win: the model's own table is the most specific."""
        return (overrides, own.training)


@dataclass(frozen=True)
class TeacherArchitecture:
    """Architecture of a family's teacher, known once the family's best combination has been selected.

    Attributes:
        stage: name of the stage that selects the teachers.
        index: of the teacher among the selected ones.
        candidates: the models that it is selected from.
        dropout: replaces the teacher's dropout; soft targets regularise too, so a student may need less.
    """

    stage: str
    index: int
    candidates: tuple[ModelSettings, ...]
    dropout: float | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that decide the architecture."""
        return (self.stage,)

    def resolve(self, job: Job) -> ModelSettings:
        """Read the architecture from the finished selection."""
        table = read_json(job.inputs[self.stage] / SELECTION)["models"][self.index]
        return ModelSettings.model_validate(table | ({} if self.dropout is None else {"dropout": self.dropout}))

    def training_tables(self, own: ModelSettings, overrides: TrainingSettings) -> tuple[TrainingSettings, ...]:
        """Order the training tables so that later ones win: the model's own table belongs to the teacher."""
        return (own.training, overrides)


Architecture = FixedArchitecture | TeacherArchitecture


def model_seed(recipe: Recipe, name: str) -> int:
    """Return the seed of one model's initial weights and order of videos."""
    return int(content_hash([recipe.seed, name])[:15], 16)


def start_stage(name: str) -> str:
    """Return the name of the stage that writes the weights which a model's training starts from."""
    return f"start.{name}"


def start_of(recipe: Recipe, architecture: Architecture, overrides: TrainingSettings) -> StartSettings | None:
    """Return the finished model that a training goes on from; None if it begins with new weights.

    A student with a teacher's architecture does not go on from what its teacher alone goes on from.
    """
    own = (architecture.settings.training,) if isinstance(architecture, FixedArchitecture) else ()
    return recipe.training_with(overrides, *own).start


def select_stage(family: str) -> str:
    """Return the name of the stage that selects a family's teachers."""
    return f"select.{family}"


def teacher_architectures(recipe: Recipe, family: str) -> list[TeacherArchitecture]:
    """Return the architectures of a family's teachers, one for each that will be selected."""
    assert recipe.distillation is not None
    names = recipe.families[family]
    among = tuple(recipe.models[name] for name in names)
    stage, count = select_stage(family), min(recipe.distillation.teachers, len(names))
    if count == len(names):  # all models are selected, in their order
        return [TeacherArchitecture(stage, index, (among[index],)) for index in range(count)]
    return [TeacherArchitecture(stage, index, among) for index in range(count)]


def student_architectures(recipe: Recipe, family: str) -> dict[str, TeacherArchitecture]:
    """Return the architectures of the students that have those of a family's teachers, by the students' names."""
    assert recipe.distillation is not None
    return {
        f"{family}-student-{teacher.index + 1}": replace(teacher, dropout=recipe.distillation.dropout)
        for teacher in teacher_architectures(recipe, family)
    }


def label_twin(recipe: Recipe, student: ModelSettings) -> str | None:
    """Return the name of the model of a student's architecture that learns labels only; None if there is none.

    Dropout may differ. Of several, one with the student's own training settings comes first.
    """
    architecture = student.config.model_dump(exclude={"dropout"})
    twins = [
        name for name, model in recipe.models.items() if model.config.model_dump(exclude={"dropout"}) == architecture
    ]
    return min(twins, key=lambda name: recipe.models[name].training != student.training, default=None)


def member_architectures(recipe: Recipe) -> dict[str, Architecture]:
    """Return the architectures of all models that the recipe trains and that may become members, by their names."""
    architectures: dict[str, Architecture] = {}
    architectures |= {name: FixedArchitecture(model) for name, model in recipe.models.items()}
    if recipe.distillation is not None:
        for family in recipe.distilled_families:
            architectures |= student_architectures(recipe, family)
    return architectures | {name: FixedArchitecture(student) for name, student in recipe.students.items()}
