"""Stages of a model that the recipe trains: train, average, and choose between plain and averaged weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from reeltag.artifact.quantization.sizes import Encoding
from reeltag.core.distributed.process_group import rank
from reeltag.core.environment import return_unused_memory
from reeltag.core.storage import link_or_copy, read_json, write_json
from reeltag.core.text import counted
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.architectures import Architecture, FixedArchitecture
from reeltag.pipeline.stages.files import CHECKPOINT, DECISION, MODEL, SCORES, load_manifest, split
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.training import ModelTraining
from reeltag.pipeline.stages.training_plan import TrainingPlan
from reeltag.recipe.schema import Recipe
from reeltag.training import checkpoint
from reeltag.training.schedule import TrainingSettings, averaging_phase

CHOICE_FORMAT = 1  # raise it when other weights are chosen from the same scores
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
            name=self.last_training,
            work=self._average,
            format_number=AVERAGING_FORMAT,
            inputs=(*self.training.inputs, self.training.stage_name),
            parameters={"averaging": self.recipe.averaging.model_dump()},
            epochs=self.recipe.averaging.epochs,
            continues=self.training.stage_name,
        )
        if not decides_by_family(self.recipe):
            return [plan.stage(), averaging]
        choice = Stage(
            name=self.finished,
            work=self._choose_weights,
            format=CHOICE_FORMAT,
            inputs=(self.training.stage_name, self.last_training, decision_stage(self.family)),
            note="a link",
        )
        return [plan.stage(), averaging, choice]

    @property
    def training(self) -> ModelTraining:
        """Training of the model."""
        return ModelTraining(self.recipe, self.name, self.architecture, self.targets, self.overrides)

    @property
    def family(self) -> str:
        """Family of the model."""
        return self.architecture.candidates[0].config.family

    @property
    def last_training(self) -> str:
        """Name of the stage of the model's last training phase."""
        return f"{'average' if self.recipe.averaging else 'train'}.{self.name}"

    @property
    def finished(self) -> str:
        """Name of the stage that writes the float model."""
        return f"weights.{self.name}" if decides_by_family(self.recipe) else self.last_training

    def sizes(self, encoding: Encoding) -> list[int]:
        """Return the bytes of the tensors in an encoding, for each possible architecture."""
        return TrainingPlan(self.training).sizes(encoding)

    def averaging_scores(self, job: Job) -> dict[str, float]:
        """Read the hold-out GAP of the `plain` and the `averaged` weights."""
        scores: dict[str, float] = read_json(job.inputs[self.last_training] / SCORES)
        return scores

    def averaged(self, job: Job) -> bool:
        """Return True if the averaged weights were kept."""
        if decides_by_family(self.recipe):
            return bool(read_json(job.inputs[decision_stage(self.family)] / DECISION)["averaged"])
        scores = self.averaging_scores(job)
        return scores["averaged"] > scores["plain"]

    def _average(self, job: Job) -> None:
        """Continue the training while averaging; keep the averaged weights if their hold-out GAP is higher.

        If families decide, keep the averaged weights for now; the plain ones are those of the training before.
        """
        assert self.recipe.averaging is not None
        own = self.architecture.resolve(job)
        manifest = load_manifest(job, "train")
        start = checkpoint.load(job.inputs[self.training.stage_name] / CHECKPOINT)
        videos = len(self.training.videos(manifest))
        phase = averaging_phase(self.training.settings(own), self.recipe.averaging, videos)
        averaged = self.training.run_phase(job, own, manifest, phase, name="average", start=start)
        if rank() > 0:  # of several processes, the first one chooses and writes
            return
        return_unused_memory()
        choices = {"plain": start.model, "averaged": averaged}
        scores = {key: self.training.holdout_gap(own.config, manifest, weights) for key, weights in choices.items()}
        kept = "averaged" if decides_by_family(self.recipe) else max(scores, key=scores.__getitem__)
        held = counted(len(split(self.recipe, manifest)[1]), f"hold-out {self.schema.example}")
        gaps = f"plain {scores['plain']:.5f}, averaged {scores['averaged']:.5f}"
        later = "; the family decides" if decides_by_family(self.recipe) else f"; kept {kept}"
        job.progress.say(f"  GAP on all {held}: {gaps}{later}")
        write_json(job.folder / SCORES, scores)
        self.training.save(job.folder / MODEL, own.config, choices[kept])

    def _choose_weights(self, job: Job) -> None:
        """Link the file with the weights that the model's family keeps."""
        chosen = self.last_training if self.averaged(job) else self.training.stage_name
        link_or_copy(job.inputs[chosen] / MODEL, job.folder / MODEL)


def decides_by_family(recipe: Recipe) -> bool:
    """Return True if all models of a family keep averaged weights, or none does (paper section 4.2, Table 1)."""
    return recipe.averaging is not None and recipe.averaging.decide == "family"


def decision_stage(family: str) -> str:
    """Return the name of the stage that decides whether a family keeps averaged weights."""
    return f"averaging.{family}"


def decision_stages(recipe: Recipe) -> list[Stage]:
    """Return the stages that decide for each family whether averaged weights are kept; none if models decide.

    A family's models that learn labels only decide, also for its students; without such models its students do.
    """
    if not decides_by_family(recipe):
        return []
    students: dict[str, dict[int, list[str]]] = {}
    for name, student in recipe.students.items():
        students.setdefault(student.config.family, {}).setdefault(student.level, []).append(name)
    deciding = {family: levels[min(levels)] for family, levels in students.items()} | recipe.families
    return [
        Stage(
            name=decision_stage(family),
            work=partial(_decide, names),
            format=CHOICE_FORMAT,
            inputs=tuple(f"average.{name}" for name in names),
            note=f"by {counted(len(names), 'model')}",
        )
        for family, names in deciding.items()
    ]


def _decide(names: Sequence[str], job: Job) -> None:
    """Keep averaged weights if they raise the hold-out GAP of a family's models on average."""
    scores = [read_json(job.inputs[f"average.{name}"] / SCORES) for name in names]
    change = fmean(each["averaged"] - each["plain"] for each in scores)
    job.progress.say(f"  mean change of GAP {change:+.5f}; kept {'averaged' if change > 0 else 'plain'}")
    write_json(job.folder / DECISION, {"change": change, "averaged": change > 0})


def recipe_model(recipe: Recipe, name: str) -> TrainedModelStages:
    """Return the stages of one of the recipe's `[models]`, trained on labels only."""
    return TrainedModelStages(recipe, name, FixedArchitecture(recipe.models[name]))
