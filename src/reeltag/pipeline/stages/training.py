"""The stage that trains a model: one of the recipe's, a student, or a teacher that leaves a fold out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reeltag.artifact.file import Artifact, Member, load_tagger, save_artifact
from reeltag.artifact.quantization.quantize import Encoding, quantized_bytes
from reeltag.core.distributed.process_group import rank
from reeltag.core.environment import default_device, versions
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.storage import content_hash, read_json
from reeltag.core.text import counted, megabytes
from reeltag.data.holdout import split_folds
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Indices, Manifest, Shards
from reeltag.data.soft_targets import SoftTargets, row_bytes
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import Tagger, build_tagger, meta_tagger
from reeltag.pipeline.executor import Job, Stage, Traffic
from reeltag.pipeline.stages.estimate import gpu_hours
from reeltag.pipeline.stages.files import CHECKPOINT, MODEL, SELECTION, load_manifest, split, split_parameters
from reeltag.recipe.schema import ModelSettings, Recipe
from reeltag.training.checkpoint import TrainingState
from reeltag.training.early_stopping import Watch
from reeltag.training.loop import Teacher, final_weights, run_phase
from reeltag.training.schedule import FORGOTTEN, NOT_DECISIVE, Phase, TrainingSettings, training_phase, watched_steps


@dataclass(frozen=True)
class Given:
    """An architecture that the recipe names."""

    settings: ModelSettings

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that decide the architecture."""
        return ()

    @property
    def candidates(self) -> Sequence[ModelSettings]:
        """What it may be."""
        return (self.settings,)

    def resolve(self, job: Job) -> ModelSettings:
        """What it is."""
        return self.settings


@dataclass(frozen=True)
class Selected:
    """The architecture of a family's teacher, known when the family's best combination is.

    Attributes:
        stage: that chooses the teachers.
        number: of the teacher.
        among: the models that it is chosen from.
        dropout: instead of the teacher's; soft targets regularise too, so a student may need less.
    """

    stage: str
    number: int
    among: tuple[ModelSettings, ...]
    dropout: float | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that decide the architecture."""
        return (self.stage,)

    @property
    def candidates(self) -> Sequence[ModelSettings]:
        """What it may be."""
        return self.among

    def resolve(self, job: Job) -> ModelSettings:
        """What it is."""
        table = read_json(job.inputs[self.stage] / SELECTION)["models"][self.number]
        return ModelSettings.model_validate(table | ({} if self.dropout is None else {"dropout": self.dropout}))


@dataclass(frozen=True)
class Training:
    """How a model comes to its weights.

    Attributes:
        recipe: the recipe.
        name: of the model; decides its seed.
        source: where its architecture is from.
        targets: stages whose soft targets, averaged, it learns beside the labels; none without a teacher.
        overrides: how it is trained otherwise than `[training]` says. Its own table wins over them; the table of a
            teacher, from whom it has its architecture, does not.
        fold: number of the fold that it must not see, or None to see all training videos.
    """

    recipe: Recipe
    name: str
    source: Given | Selected
    targets: tuple[str, ...] = ()
    overrides: TrainingSettings = field(default_factory=TrainingSettings)
    fold: int | None = None

    @property
    def stage_name(self) -> str:
        """`train.NAME`, or `fold.NAME.FOLD`."""
        return f"train.{self.name}" if self.fold is None else f"fold.{self.name}.{self.fold + 1}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """What it stands on."""
        return ("data.train", *self.source.stages, *self.targets)

    def stage(self) -> Stage:
        """The training as a stage."""
        hours, size = self.gpu_hours(), self.bytes(tensors=3)
        parameters, note = self._parameters(), self.note()
        shared, traffic = self.processes, self.traffic()
        stage = Stage(self.stage_name, self._do_train, self.inputs, parameters, note, hours, size, shared, traffic)
        return self.placed(stage)

    def placed(self, stage: Stage) -> Stage:
        """A stage that trains, with what each of its processes takes of a machine."""
        settings = self.settings(self.source.candidates[0])
        return replace(stage, processors=1 + settings.workers, gpus=int(settings.device != "cpu"))

    def note(self) -> str:
        """Weights, bytes and training, from the smallest candidate to the largest where it is not known yet."""
        counts = sorted(set(map(self._weights, self.source.candidates)))
        ends = [counts[0], counts[-1]] if len(counts) > 1 else counts
        weights, sizes = " to ".join(f"{count:,}" for count in ends), " to ".join(megabytes(4 * c) for c in ends)
        settings = self.settings(self.source.candidates[-1])
        how = f"{settings.epochs:g} epochs of batches of {settings.batch_size}, rate {settings.learning_rate:g}"
        teachers = ", ".join(self.taught_by)
        return f"{weights} parameters, {sizes} float, {how}" + (f", taught by {teachers}" if teachers else "")

    @property
    def taught_by(self) -> list[str]:
        """Names of its teachers."""
        return [stage.removeprefix("targets.") for stage in self.targets]

    def gpu_hours(self, epochs: float | None = None) -> float:
        """Of the largest candidate where it is not known yet; 0 where the number of videos is not known."""
        largest, schema = self._largest, self.recipe.data.record_schema
        settings, meta = self.settings(largest), self.meta(largest)
        drawn = schema.example_frames if settings.frames == "all" or meta.pooling.ordered else settings.frames
        frames = drawn if schema.level == "frame" else 1
        seen = self._seen(epochs)
        return gpu_hours(largest.config, schema.widths, schema.classes, frames, seen) if seen else 0.0

    def traffic(self, epochs: float | None = None) -> Traffic:
        """What it reads; of the largest candidate where it is not known yet."""
        seen, distillation = self._seen(epochs), self.recipe.distillation
        row = row_bytes(self.recipe.data.record_schema.classes, distillation.top_k) if distillation else 0
        steps = math.ceil(seen / self.settings(self._largest).batch_size)
        return Traffic(seen, seen * row * len(self.targets), steps, self._weights(self._largest))

    @cached_property
    def _largest(self) -> ModelSettings:
        return max(self.source.candidates, key=self._weights)

    def _weights(self, candidate: ModelSettings) -> int:
        return sum(parameter.numel() for parameter in self.meta(candidate).parameters())

    def _seen(self, epochs: float | None) -> float:
        """Videos that it trains on, each as often as it is seen; 0 where their number is not known."""
        seen = (self.recipe.data.expected_videos or 0) * (epochs or self.settings(self._largest).epochs)
        if self.fold is not None and self.recipe.distillation is not None:
            seen *= 1 - 1 / self.recipe.distillation.folds
        return seen

    @property
    def processes(self) -> int:
        """How many share it; the most of any candidate where it is not known yet."""
        return max(self.settings(candidate).processes for candidate in self.source.candidates)

    def bytes(self, tensors: int) -> int:
        """Of a checkpoint that holds so many numbers a weight, and the best ones where it has to; and of the model."""
        tables = (self.recipe.training, self.overrides, *(candidate.training for candidate in self.source.candidates))
        best = any(table.patience for table in tables)
        return (tensors + best + 1) * max(self.sizes("float32"))

    def sizes(self, encoding: Encoding) -> list[int]:
        """Bytes of the tensors in an encoding, of each candidate."""
        return [quantized_bytes(self.meta(candidate).state_dict(), encoding) for candidate in self.source.candidates]

    def meta(self, candidate: ModelSettings) -> Tagger:
        """A candidate without memory for its weights."""
        schema = self.recipe.data.record_schema
        return meta_tagger(candidate.config, schema.widths, schema.classes)

    def settings(self, own: ModelSettings) -> TrainingSettings:
        """How it is trained."""
        tables = [own.training, self.overrides]
        return self.recipe.training_with(*(tables if isinstance(self.source, Selected) else reversed(tables)))

    @property
    def seed(self) -> int:
        """Each model has its own, so that equal configurations differ in initial weights and order."""
        return int(content_hash([self.recipe.seed, self.name])[:15], 16)

    def videos(self, manifest: Manifest) -> Indices:
        """The videos that it sees."""
        train, _ = split(self.recipe, manifest)
        if self.fold is None:
            return train
        assert self.recipe.distillation is not None
        folds = split_folds(train, self.recipe.seed, self.recipe.distillation.folds)
        return np.setdiff1d(train, folds[self.fold], assume_unique=True)

    def run(self, job: Job, phase: Phase, *, start: TrainingState | None = None, name: str) -> TrainingState:
        """Train through a phase; the checkpoint lies in the stage's folder."""
        own = self.source.resolve(job)
        manifest = load_manifest(job, "train")
        schema, settings = self.recipe.data.record_schema, self.settings(own)
        with explain_out_of_memory(f"{self.stage_name}: training {own.config.family}", _less_memory(settings)):
            return run_phase(
                build_tagger(own.config, schema.widths, schema.classes, self.seed),
                Shards(manifest),
                self.videos(manifest),
                phase,
                settings,
                seed=self.seed,
                path=job.folder / CHECKPOINT,
                start=start,
                teacher=self._teacher(job, manifest),
                window=self.recipe.data.mixed_shards,
                watch=self._watch(own, manifest),
                progress=job.progress,
                name=name,
            )

    def holdout_gap(self, config: TaggerConfig, manifest: Manifest, weights: Mapping[str, Tensor]) -> float:
        """GAP@20 of weights on the hold-out."""
        schema, (_, holdout) = self.recipe.data.record_schema, split(self.recipe, manifest)
        tagger = load_tagger(config, schema, weights, self.name).to(default_device())
        batches = sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)
        return evaluate_predictions(predict_batches(tagger, batches), classes=schema.segment_classes).gap()

    def save(self, path: Path, config: TaggerConfig, weights: dict[str, Tensor]) -> None:
        """Write a model's file; of several processes the first does."""
        if rank() > 0:
            return
        member = Member(self.name, config, 1.0, weights)
        provenance = {"recipe": self.recipe.name, "versions": versions()}
        save_artifact(path, Artifact(self.recipe.data.record_schema, None, (member,), provenance))

    def _parameters(self) -> dict[str, object]:
        parameters: dict[str, object] = {"split": split_parameters(self.recipe)}
        if (window := self.recipe.data.mixed_shards) is not None:
            parameters["window"] = window
        if isinstance(self.source, Given):
            own = self.source.settings
            parameters |= {
                "config": own.config.model_dump(),
                "training": self.settings(own).model_dump(exclude=NOT_DECISIVE),
            }
        else:  # the architecture is in the hash of the selection
            parameters |= {
                "training": self.recipe.training.model_dump(exclude=NOT_DECISIVE),
                "overrides": self.overrides.model_dump(exclude_unset=True, exclude=NOT_DECISIVE),
                "number": self.source.number,
                "dropout": self.source.dropout,
            }
        if self.recipe.distillation is not None:
            parameters |= {"label_weight": self.recipe.distillation.label_weight} if self.targets else {}
            parameters |= {"fold": self.fold, "folds": self.recipe.distillation.folds} if self.fold is not None else {}
        return parameters

    def _watch(self, own: ModelSettings, manifest: Manifest) -> Watch | None:
        settings = self.settings(own)
        every = watched_steps(settings, len(self.videos(manifest)))
        gap = partial(self.holdout_gap, own.config, manifest)
        return None if every is None else Watch(gap, every, settings.patience)

    def _teacher(self, job: Job, manifest: Manifest) -> Teacher | None:
        if not self.targets:
            return None
        assert self.recipe.distillation is not None
        targets = [SoftTargets(job.inputs[stage], manifest) for stage in self.targets]
        return Teacher(partial(_mean_rows, targets), self.recipe.distillation.label_weight)

    def _do_train(self, job: Job) -> None:
        own = self.source.resolve(job)
        videos = len(self.videos(load_manifest(job, "train")))
        phase = training_phase(self.settings(own), videos)
        if remark := _short_for_batch_norm(own.config, len(phase.steps)):
            job.progress.say(f"  {self.name}: {remark}")
        state = self.run(job, phase, name="train")
        self.save(job.folder / MODEL, own.config, final_weights(state))


def _short_for_batch_norm(config: TaggerConfig, steps: int) -> str:
    """What is said of a training that ends before batch norm's statistics have forgotten where they started."""
    if (kept := config.bn_decay**steps) < FORGOTTEN:
        return ""
    where = f"after its {counted(steps, 'step')} batch norm's statistics still keep {kept:.0%} of their first values"
    return f"{where}; lower bn_decay ({config.bn_decay:g} now), such as to {'0.9' if steps < 500 else '0.99'}"


def _less_memory(settings: TrainingSettings) -> str:
    """What a training out of memory is told."""
    keys = {"batch_size": settings.batch_size, "frames": settings.frames}
    smaller = " or ".join(f"training.{key} ({value} now)" for key, value in keys.items())
    bf16 = "" if settings.precision == "bf16-mixed" else ", try training.precision = 'bf16-mixed'"
    return f"lower {smaller}{bf16}, or take a smaller model; the last checkpoint is kept for the same recipe"


def _mean_rows(targets: Sequence[SoftTargets], indices: Indices) -> Tensor:
    return torch.stack([each.rows(indices) for each in targets]).mean(0)
