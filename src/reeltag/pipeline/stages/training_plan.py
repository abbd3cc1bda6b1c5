"""Plan a model's training: its stage, with estimates of time, disk and memory before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from reeltag.artifact.quantization.sizes import Encoding
from reeltag.core.text import megabytes
from reeltag.data.soft_targets import row_bytes
from reeltag.models.tagger import Tagger, meta_tagger
from reeltag.pipeline.executor import Job, Stage, Traffic
from reeltag.pipeline.stages.check import architecture_bytes, candidate_shapes
from reeltag.pipeline.stages.files import CHECKPOINT
from reeltag.pipeline.stages.gpu_hours import gpu_hours
from reeltag.pipeline.stages.training import TRAINING_FORMAT, ModelTraining
from reeltag.recipe.schema import ModelSettings, Recipe

CHECKPOINT_TENSORS = 3  # numbers a weight: the weight itself and Adam's two moments


@dataclass(frozen=True)
class TrainingPlan:
    """Stage of a model's training, and its estimates.

    Estimates are those of the largest candidate while the architecture is not known yet.

    Attributes:
        training: the training.
    """

    training: ModelTraining

    def stage(self) -> Stage:
        """Return the stage that trains the model."""
        training = self.training
        return self.phase_stage(
            name=training.stage_name,
            work=training.train,
            format_number=TRAINING_FORMAT,
            inputs=training.inputs,
            parameters=training.parameters(),
            note=self.note(),
        )

    def phase_stage(
        self,
        *,
        name: str,
        work: Callable[[Job], None],
        format_number: int,
        inputs: tuple[str, ...],
        parameters: Mapping[str, Any],
        note: str = "",
        epochs: float | None = None,
        continues: str = "",
    ) -> Stage:
        """Return a stage that trains the model through one phase.

        Args:
            name: of the stage.
            work: of the stage.
            format_number: of the stage's kind.
            inputs: of the stage.
            parameters: of the stage.
            note: of the stage.
            epochs: length of the phase; by default that of the first phase.
            continues: name of the training that the phase goes on from while it averages weights; by default none.
        """
        settings = self.training.settings(self.training.architecture.candidates[0])
        return Stage(
            name=name,
            work=work,
            format=format_number,
            inputs=inputs,
            parameters=parameters,
            note=note,
            gpu_hours=self.gpu_hours(epochs),
            bytes=max(self.sizes("float32")),
            checkpoint=CHECKPOINT,
            checkpoint_bytes=self.checkpoint_bytes(CHECKPOINT_TENSORS + bool(continues)),
            continues=continues,
            processes=self.processes,
            traffic=self.traffic(epochs),
            cores=1 + settings.workers,
            gpus=int(settings.device != "cpu"),
        )

    def note(self) -> str:
        """Describe weights, bytes and training, from the smallest to the largest candidate."""
        training = self.training
        counts = sorted(set(map(self._weights, training.architecture.candidates)))
        ends = [counts[0], counts[-1]] if len(counts) > 1 else counts
        weights, sizes = " to ".join(f"{count:,}" for count in ends), " to ".join(megabytes(4 * c) for c in ends)
        settings = training.settings(training.architecture.candidates[-1])
        batches = f"{settings.epochs:g} epochs of batches of {settings.batch_size}"
        how = f"{batches}, learning rate {settings.learning_rate:g}"
        teachers = ", ".join(training.taught_by)
        return f"{weights} parameters, {sizes} float, {how}" + (f", taught by {teachers}" if teachers else "")

    def gpu_hours(self, epochs: float | None = None) -> float:
        """Estimate the GPU hours; 0 where the number of videos is not known."""
        largest, schema = self._largest, self._recipe.data.record_schema
        settings, meta = self.training.settings(largest), self._meta(largest)
        sampled = schema.example_frames if settings.frames == "all" or meta.pooling.ordered else settings.frames
        frames = sampled if schema.level == "frame" else 1
        seen = self._seen(epochs)
        return gpu_hours(largest.config, schema.widths, schema.classes, frames, seen) if seen else 0.0

    def traffic(self, epochs: float | None = None) -> Traffic:
        """Estimate reading and communication."""
        seen, distillation = self._seen(epochs), self._recipe.distillation
        row = row_bytes(self._recipe.data.record_schema.classes, distillation.top_k) if distillation else 0
        steps = math.ceil(seen / self.training.settings(self._largest).batch_size)
        return Traffic(seen, seen * row * len(self.training.targets), steps, self._weights(self._largest))

    @property
    def processes(self) -> int:
        """Number of processes that share the training; the most of any candidate."""
        return max(self.training.settings(candidate).processes for candidate in self.training.architecture.candidates)

    def checkpoint_bytes(self, tensors: int) -> int:
        """Estimate the bytes of a checkpoint with so many numbers a weight.

        With patience it also holds the best weights.
        """
        training = self.training
        own = (candidate.training for candidate in training.architecture.candidates)
        best = any(table.patience for table in (self._recipe.training, training.overrides, *own))
        return (tensors + best) * max(self.sizes("float32"))

    def sizes(self, encoding: Encoding) -> list[int]:
        """Return the bytes of the tensors in an encoding, for each candidate."""
        return architecture_bytes(self._recipe, self.training.architecture, encoding)

    @property
    def _recipe(self) -> Recipe:
        return self.training.recipe

    @cached_property
    def _largest(self) -> ModelSettings:
        return max(self.training.architecture.candidates, key=self._weights)

    def _weights(self, candidate: ModelSettings) -> int:
        return sum(map(math.prod, candidate_shapes(self._recipe, candidate).parameters))

    def _seen(self, epochs: float | None) -> float:
        """Return the number of videos trained on, each as often as it is seen; 0 where their number is not known."""
        videos = self._recipe.data.expected_videos or 0
        seen = videos * (epochs or self.training.settings(self._largest).epochs)
        if self.training.fold is not None and self._recipe.distillation is not None:
            seen *= 1 - 1 / self._recipe.distillation.folds
        return seen

    def _meta(self, candidate: ModelSettings) -> Tagger:
        """Build a candidate without memory for its weights."""
        schema = self._recipe.data.record_schema
        return meta_tagger(candidate.config, schema.widths, schema.classes)
