"""Architecture of a trained model: fixed by the recipe, or that of a selected teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reeltag.core.storage import read_json
from reeltag.pipeline.executor import Job
from reeltag.pipeline.stages.files import SELECTION
from reeltag.recipe.schema import ModelSettings
from reeltag.training.schedule import TrainingSettings


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
        """Order the training tables so that later ones win: the model's own table speaks of the teacher, not of it."""
        return (own.training, overrides)


Architecture = FixedArchitecture | TeacherArchitecture
