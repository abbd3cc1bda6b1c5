"""Stages of a model that the recipe trains: train, then average."""

from __future__ import annotations

from dataclasses import dataclass, field

from reeltag.artifact.quantization.sizes import Encoding
from reeltag.core.distributed.process_group import rank
from reeltag.core.environment import return_freed_memory
from reeltag.core.storage import read_json, write_json
from reeltag.core.text import counted
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.architectures import Architecture, FixedArchitecture
from reeltag.pipeline.stages.files import CHECKPOINT, MODEL, SCORES, load_manifest, split
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.training import ModelTraining
from reeltag.pipeline.stages.training_plan import TrainingPlan
from reeltag.recipe.schema import Recipe
from reeltag.training import checkpoint
from reeltag.training.schedule import TrainingSettings, averaging_phase

AVERAGING_FORMAT = 1  # raise it when averaging computes other weights from the same parameters and inputs


@dataclass(frozen=True)
class TrainedModelStages(MemberStages):
    """Stages of a model that is trained with the recipe: one of `[models]`, or a student.

    Attributes:
        architecture: of the model.
        targets: names of the stages with a student's soft targets.
        overrides: see `ModelTraining`.
    """

    architecture: Architecture
    targets: tuple[str, ...] = ()
    overrides: TrainingSettings = field(default_factory=TrainingSettings)

    def source_stages(self) -> list[Stage]:
        """Return the training, and the averaging where the recipe has one."""
        plan = TrainingPlan(self.training)
        if self.recipe.averaging is None:
            return [plan.stage()]
        averaging = plan.phase_stage(
            name=self.finished,
            work=self._average,
            format_number=AVERAGING_FORMAT,
            inputs=(*self.training.inputs, self.training.stage_name),
            parameters={"averaging": self.recipe.averaging.model_dump()},
            epochs=self.recipe.averaging.epochs,
            continues=self.training.stage_name,
        )
        return [plan.stage(), averaging]

    @property
    def training(self) -> ModelTraining:
        """Training of the model."""
        return ModelTraining(self.recipe, self.name, self.architecture, self.targets, self.overrides)

    @property
    def finished(self) -> str:
        """Name of the stage that writes the float model."""
        return f"{'average' if self.recipe.averaging else 'train'}.{self.name}"

    def sizes(self, encoding: Encoding) -> list[int]:
        """Return the bytes of the tensors in an encoding, for each possible architecture."""
        return TrainingPlan(self.training).sizes(encoding)

    def averaging_scores(self, job: Job) -> dict[str, float]:
        """Read the hold-out GAP of the `plain` and the `averaged` weights."""
        scores: dict[str, float] = read_json(job.inputs[self.finished] / SCORES)
        return scores

    def _average(self, job: Job) -> None:
        """Continue the training while averaging; keep the averaged weights if their hold-out GAP is higher."""
        assert self.recipe.averaging is not None
        own = self.architecture.resolve(job)
        manifest = load_manifest(job, "train")
        start = checkpoint.load(job.inputs[self.training.stage_name] / CHECKPOINT)
        videos = len(self.training.videos(manifest))
        phase = averaging_phase(self.training.settings(own), self.recipe.averaging, videos)
        averaged = self.training.run_phase(job, own, manifest, phase, name="average", start=start)
        if rank() > 0:  # of several processes, the first one chooses and writes
            return
        return_freed_memory()
        choices = {"plain": start.model, "averaged": averaged}
        scores = {key: self.training.holdout_gap(own.config, manifest, weights) for key, weights in choices.items()}
        kept = max(scores, key=scores.__getitem__)
        held = counted(len(split(self.recipe, manifest)[1]), f"hold-out {self.schema.example}")
        gaps = f"plain {scores['plain']:.5f}, averaged {scores['averaged']:.5f}"
        job.progress.say(f"  GAP on all {held}: {gaps}; kept {kept}")
        write_json(job.folder / SCORES, scores)
        self.training.save(job.folder / MODEL, own.config, choices[kept])


def recipe_model(recipe: Recipe, name: str) -> TrainedModelStages:
    """Return the stages of one of the recipe's `[models]`, trained on labels only."""
    return TrainedModelStages(recipe, name, FixedArchitecture(recipe.models[name]))
