"""Train a model: one of the recipe's, a student, or a teacher that leaves a fold out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from reeltag.artifact.file import Artifact, Member, load_artifact, load_tagger, save_artifact
from reeltag.core.distributed.process_group import rank
from reeltag.core.environment import default_device, versions
from reeltag.core.errors import TrainingStoppedError
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.text import counted
from reeltag.data.holdout import split_folds
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Indices, Manifest, Shards
from reeltag.data.soft_targets import SoftTargets, mean_rows
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import build_tagger
from reeltag.pipeline.executor import Job
from reeltag.pipeline.stages.architectures import (
    Architecture,
    FixedArchitecture,
    model_seed,
    start_of,
    start_stage,
)
from reeltag.pipeline.stages.files import CHECKPOINT, MODEL, load_manifest, split, split_parameters
from reeltag.recipe.schema import ModelSettings, Recipe
from reeltag.training.checkpoint import TrainingState
from reeltag.training.early_stopping import HoldoutEvaluation, StopRule
from reeltag.training.schedule import (
    FORGOTTEN,
    Phase,
    StartSettings,
    TrainingSettings,
    evaluation_steps,
    training_phase,
)
from reeltag.training.trainer import Distillation, Trainer, TrainingData, final_weights

BN_DECAYS = (0.99, 0.9)  # that are advised for shorter trainings
TRAINING_FORMAT = 1  # raise it when a training computes other weights from the same parameters and inputs


@dataclass(frozen=True)
class ModelTraining:
    """Training of one model.

    Attributes:
        recipe: the recipe.
        name: of the model; decides its seed.
        architecture: of the model.
        targets: names of the stages whose soft targets, averaged, it learns beside the labels; empty without a
            teacher.
        overrides: training settings that replace those of `[training]`; `Architecture.training_tables` says whether
            they also replace those of the model's own table.
        fold: index of the fold that the model must not see, or None to train on all training videos.
    """

    recipe: Recipe
    name: str
    architecture: Architecture
    targets: tuple[str, ...] = ()
    overrides: TrainingSettings = field(default_factory=TrainingSettings)
    fold: int | None = None

    @property
    def stage_name(self) -> str:
        """Name of the training's stage: `train.NAME`, or `fold.NAME.FOLD`."""
        return f"train.{self.name}" if self.fold is None else f"fold.{self.name}.{self.fold + 1}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the training's input stages."""
        start = () if self.start is None else (start_stage(self.name),)
        return ("data.train", *self.architecture.stages, *start, *self.targets)

    @property
    def start(self) -> StartSettings | None:
        """Finished model that the training goes on from, if any."""
        return start_of(self.recipe, self.architecture, self.overrides)

    @property
    def taught_by(self) -> list[str]:
        """Names of the model's teachers."""
        return [stage.removeprefix("targets.") for stage in self.targets]

    @property
    def seed(self) -> int:
        """Seed of the model's own, so that models of equal configuration differ in initial weights and order."""
        return model_seed(self.recipe, self.name)

    def settings(self, own: ModelSettings) -> TrainingSettings:
        """Merge `[training]`, the overrides and the table of an architecture into the settings of this training."""
        merged = self.recipe.training_with(*self.architecture.training_tables(own, self.overrides))
        return merged.model_copy(update={"start": self.start})

    def parameters(self) -> dict[str, object]:
        """Return everything that decides the weights beside the inputs, as JSON."""
        parameters: dict[str, object] = {"split": split_parameters(self.recipe)}
        if (window := self.recipe.data.mixed_shards) is not None:
            parameters["shuffle_window"] = window
        if isinstance(self.architecture, FixedArchitecture):
            own = self.architecture.settings
            parameters |= {
                "config": own.config.model_dump(),
                "training": self.settings(own).decisive(),
            }
        else:  # the hash of the selection covers the architecture
            parameters |= {
                "training": self.recipe.training.decisive(),
                "overrides": self.overrides.decisive(only_set=True),
                "index": self.architecture.index,
                "dropout": self.architecture.dropout,
            }
        if self.recipe.distillation is not None:
            parameters |= {"label_weight": self.recipe.label_weight(self.name)} if self.targets else {}
            parameters |= {"fold": self.fold, "folds": self.recipe.distillation.folds} if self.fold is not None else {}
        return parameters

    def train(self, job: Job, stop: StopRule | None = None) -> None:
        """Train the model and write its file: the work of the training's stage.

        Args:
            job: of the stage.
            stop: decides after each evaluation on the hold-out if the training is given up; None for never.

        Raises:
            TrainingStoppedError: the training was given up; its checkpoint is removed.
        """
        own = self.architecture.resolve(job)
        manifest = load_manifest(job, "train")
        phase = training_phase(self.settings(own), len(self.videos(manifest)))
        if self.start is None and (remark := short_for_batch_norm(own.config, len(phase.steps))):
            job.progress.say(f"  {self.name}: {remark}")
        try:
            weights = self.run_phase(job, own, manifest, phase, name="train", stop=stop)
        except TrainingStoppedError:
            (job.folder / CHECKPOINT).unlink(missing_ok=True)
            raise
        self.save(job.folder / MODEL, own.config, weights)

    def run_phase(
        self,
        job: Job,
        own: ModelSettings,
        manifest: Manifest,
        phase: Phase,
        *,
        name: str,
        start: TrainingState | None = None,
        stop: StopRule | None = None,
    ) -> Mapping[str, Tensor]:
        """Train the model through a phase, and return its final weights; the checkpoint is in the stage's folder.

        Args:
            job: of the stage.
            own: the model's architecture.
            manifest: of the training set.
            phase: steps and learning rates.
            name: of the phase, for progress.
            start: the state that the phase starts from; by default new weights, or those of a finished model.
            stop: decides after each evaluation on the hold-out if the phase is given up; None for never.
        """
        schema, settings = self.recipe.data.record_schema, self.settings(own)
        with explain_out_of_memory(f"{self.stage_name}: training {own.config.family}", _less_memory(settings)):
            if self.start is not None and start is None:
                (member,) = load_artifact(job.inputs[start_stage(self.name)] / MODEL).members
                tagger = member.build(schema)
            else:
                tagger = build_tagger(own.config, schema.widths, schema.classes, self.seed)
            trainer = Trainer(
                tagger,
                TrainingData(
                    Shards(manifest),
                    self.videos(manifest),
                    self._distillation(job, manifest),
                    self.recipe.data.mixed_shards,
                ),
                settings,
                seed=self.seed,
                evaluation=self._evaluation(own, manifest, stop),
                progress=job.progress,
            )
            return final_weights(trainer.fit(phase, job.folder / CHECKPOINT, start=start, name=name))

    def videos(self, manifest: Manifest) -> Indices:
        """Return the indices of the videos that the model is trained on."""
        train, _ = split(self.recipe, manifest)
        if self.fold is None:
            return train
        assert self.recipe.distillation is not None
        folds = split_folds(train, self.recipe.seed, self.recipe.distillation.folds)
        return np.setdiff1d(train, folds[self.fold], assume_unique=True)

    def holdout_gap(self, config: TaggerConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> float:
        """Return GAP@20 of weights on the hold-out."""
        schema, (_, holdout) = self.recipe.data.record_schema, split(self.recipe, manifest)
        tagger = load_tagger(config, schema, weights, self.name).to(default_device())
        batches = sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)
        return evaluate_predictions(predict_batches(tagger, batches), classes=schema.segment_classes).gap()

    def save(self, path: Path, config: TaggerConfig, weights: Mapping[str, Tensor]) -> None:
        """Write the model's file; of several processes, only the first writes it."""
        if rank() > 0:
            return
        member = Member(self.name, config, 1.0, weights)
        provenance = {"recipe": self.recipe.name, "versions": versions()}
        save_artifact(path, Artifact(self.recipe.data.record_schema, None, (member,), provenance))

    def _evaluation(self, own: ModelSettings, manifest: Manifest, stop: StopRule | None) -> HoldoutEvaluation | None:
        settings = self.settings(own)
        every = evaluation_steps(settings, len(self.videos(manifest)))
        gap = partial(self.holdout_gap, own.config, manifest)
        return None if every is None else HoldoutEvaluation(gap, every, settings.patience, stop)

    def _distillation(self, job: Job, manifest: Manifest) -> Distillation | None:
        if not self.targets:
            return None
        targets = [SoftTargets(job.inputs[stage], manifest) for stage in self.targets]
        return Distillation(partial(mean_rows, targets), self.recipe.label_weight(self.name))


def short_for_batch_norm(config: TaggerConfig, steps: int) -> str:
    """Return a warning if the training is so short that batch norm's statistics keep much of their initial values."""
    if (kept := config.bn_decay**steps) < FORGOTTEN:
        return ""
    where = f"after its {counted(steps, 'step')} batch norm's statistics still keep {kept:.0%} of their first values"
    fits = [decay for decay in BN_DECAYS if decay < config.bn_decay and decay**steps < FORGOTTEN]
    lower = f"lower bn_decay ({config.bn_decay:g} now), such as to {fits[0]:g}" if fits else "train longer"
    return f"{where}; {lower}"


def _less_memory(settings: TrainingSettings) -> str:
    """Return advice for a training that runs out of memory."""
    keys = {"batch_size": settings.batch_size, "frames": settings.frames}
    smaller = " or ".join(f"training.{key} ({value} now)" for key, value in keys.items())
    bf16 = "" if settings.precision == "bf16-mixed" else ", try training.precision = 'bf16-mixed'"
    return f"lower {smaller}{bf16}, or take a smaller model; the last checkpoint is kept for the same recipe"
