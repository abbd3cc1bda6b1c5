"""Encode a member by rate and distortion: calibrated on training videos, as coarse as the hold-out allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from reeltag.artifact.file import Artifact
from reeltag.artifact.quantization.calibration import calibrate
from reeltag.artifact.quantization.coded import COARSEST, Encoder, coarsest_step
from reeltag.artifact.quantization.encodings import CodedTensor, State
from reeltag.artifact.quantization.quantize import dequantize_state
from reeltag.core.progress import Task
from reeltag.data.holdout import split_halves
from reeltag.data.loader import Batch, sequential_batches, training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.shards import Indices, Manifest, Shards
from reeltag.data.soft_targets import SoftTargets, mean_rows
from reeltag.inference.ensemble import BATCH_SIZE
from reeltag.inference.evaluate import artifact_gap
from reeltag.pipeline.executor import Job
from reeltag.pipeline.stages.files import CHECKPOINT, split
from reeltag.recipe.schema import Recipe
from reeltag.training.quantization_aware import RoundedWeights, fine_tune

RATIO = 2**0.5  # of the steps that are tried with fine-tuning
TUNED_VIDEOS = 256  # of a step of fine-tuning
MOST_DROPOUT = 0.25  # in fine-tuning; 0.5, with which some models are trained, harmed a DBoF


class Coded(NamedTuple):
    """A member in codes.

    Attributes:
        step: relative step of the codes.
        gap: on the half of the hold-out on which members are chosen.
        artifact: the member.
    """

    step: float
    gap: float
    artifact: Artifact


class MemberEncoder:
    """Encoder of a member.

    Args:
        recipe: the recipe.
        source: the member; weights that are quantized already stay as they are.
        manifest: of the training set.
        job: of the stage.
    """

    def __init__(self, recipe: Recipe, source: Artifact, manifest: Manifest, job: Job) -> None:
        (self.member,) = source.members
        self.recipe, self.source, self.manifest, self.job = recipe, source, manifest, job
        self.train, holdout = split(recipe, manifest)
        self.choosing = holdout[split_halves(manifest.videos[holdout], recipe.seed)[0]]
        settings = recipe.quantization
        few = np.sort(np.random.default_rng([recipe.seed, 0xCA1]).permutation(self.train)[: settings.calibration])
        with job.progress.task("calibrate", len(few), f"{source.schema.example}s") as task:
            batches = sequential_batches(Shards(manifest), few, batch_size=BATCH_SIZE)
            statistics = calibrate(self.member.build(source.schema), _counted(batches, task), recipe.seed)
        self.encoder = Encoder(self.member.state, statistics)

    def encode(self, step: float) -> Coded:
        """Encode with a step, and fine-tune if the recipe does and GAP gains."""
        coded = self._coded(step, self.encoder.encode(step))
        return self._tuned(coded) if self.recipe.quantization.fine_tune else coded

    def smallest(self) -> Coded:
        """Encode with the largest step whose loss of GAP the recipe allows, or with the finest if none is allowed."""
        settings, before = self.recipe.quantization, self._gap(self.source)
        best = self._coded(0.0, self.member.state)

        def loss(step: float) -> float:
            nonlocal best
            best = self._coded(step, self.encoder.encode(step))
            return before - best.gap

        coarsest_step(loss, settings.max_loss)  # measures the step that it returns last
        if settings.fine_tune:
            best = self._tuned(best)
            while best.step < COARSEST:
                coarser = self.encode(min(COARSEST, best.step * RATIO))
                if before - coarser.gap > settings.max_loss:
                    break
                best = coarser
        return best

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of fine-tuning, from which a stage that was ended goes on."""
        for path in self.job.folder.glob(f"*-{CHECKPOINT}"):
            path.unlink()

    def _coded(self, step: float, state: State) -> Coded:
        artifact = replace(self.source, members=(replace(self.member, state=state),))
        return Coded(step, self._gap(artifact), artifact)

    def _gap(self, artifact: Artifact) -> float:
        return artifact_gap(artifact, sequential_batches(Shards(self.manifest), self.choosing, batch_size=BATCH_SIZE))

    def _tuned(self, coded: Coded) -> Coded:
        """Return the best of the member as it is, and fine-tuned without dropout and with it."""
        if not self._codes(coded):
            return coded
        kinds = {min(MOST_DROPOUT, self.member.config.dropout), 0.0}
        return max((coded, *(self._fine_tuned(coded, dropout) for dropout in sorted(kinds))), key=lambda each: each.gap)

    def _codes(self, coded: Coded) -> dict[str, CodedTensor]:
        """Return the tensors that were coded here; those of an imported file stay as they are."""
        (member,) = coded.artifact.members
        return {
            name: value
            for name, value in member.state.items()
            if isinstance(value, CodedTensor) and isinstance(self.member.state[name], Tensor)
        }

    def _fine_tuned(self, coded: Coded, dropout: float) -> Coded:
        (member,) = coded.artifact.members
        codes = self._codes(coded)
        others = dequantize_state({name: value for name, value in member.state.items() if name not in codes})
        units = self.encoder.units(coded.step)
        weights = RoundedWeights({name: (value.codes, value.steps) for name, value in codes.items()}, others, units)
        shuffle = Shuffle(self.recipe.seed, self.recipe.data.mixed_shards)
        fine_tune(
            self.member.build(self.source.schema),
            weights,
            lambda steps: training_batches(
                Shards(self.manifest),
                self.train,
                shuffle=shuffle,
                batch_size=TUNED_VIDEOS,
                steps=steps,
                targets=self._targets(),
            ),
            steps=self.recipe.quantization.fine_tune,
            dropout=dropout,
            seed=self.recipe.seed,
            path=self.job.folder / f"{coded.step}-{dropout}-{CHECKPOINT}",
            progress=self.job.progress,
        )
        rounded = {name: replace(codes[name], codes=each) for name, each in weights.codes().items()}
        return self._coded(coded.step, {**member.state, **rounded, **self.encoder.stored(weights.tuned())})

    def _targets(self) -> Callable[[Indices], Tensor] | None:
        """Return the function from videos to the teachers' mean soft targets, if the recipe tunes to them."""
        teachers = self.recipe.tuning_targets
        targets = [SoftTargets(self.job.inputs[stage], self.manifest) for stage in teachers]
        return partial(mean_rows, targets) if targets else None


def _counted(batches: Iterable[Batch], task: Task) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        task.advance(len(batch))
