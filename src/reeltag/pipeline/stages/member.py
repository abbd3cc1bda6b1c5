"""Stages of every possible ensemble member: quantise, then predict the hold-out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from reeltag.artifact.file import load_artifact, quantize_artifact, save_artifact
from reeltag.artifact.quantization.sizes import Encoding, expected_coded_bytes
from reeltag.core.storage import file_inside, read_json, write_json
from reeltag.core.text import counted, megabytes
from reeltag.data.loader import sequential_batches
from reeltag.data.schema import Schema
from reeltag.data.shards import Shards
from reeltag.inference.ensemble import BATCH_SIZE, Predictions, predict_batches
from reeltag.inference.predictor import load
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.coded import MemberEncoder
from reeltag.pipeline.stages.files import (
    MODEL,
    PREDICTIONS,
    SCORES,
    expected_holdout,
    load_manifest,
    split,
    split_parameters,
)
from reeltag.pipeline.stages.holdout_predictions import HoldoutPredictions, holdout_row_bytes
from reeltag.recipe.schema import Recipe

QUANTIZE_FORMAT = 4  # raise it when the same model is quantized to other values
PREDICT_FORMAT = 2  # raise it when the same model predicts other values on the hold-out


@dataclass(frozen=True)
class MemberStages(ABC):
    """Stages of one model that may become a member, from its source to its predictions of the hold-out.

    Attributes:
        recipe: the recipe.
        name: of the model.
    """

    recipe: Recipe
    name: str

    @property
    @abstractmethod
    def finished(self) -> str:
        """Name of the stage that writes the float model."""

    @abstractmethod
    def sizes(self, encoding: Encoding) -> list[int]:
        """Return the most bytes of the tensors in an encoding, for each possible architecture."""

    @abstractmethod
    def source_stages(self) -> list[Stage]:
        """Return the stages up to `finished`, each after its inputs."""

    def stages(self) -> list[Stage]:
        """Return all stages, each after its inputs."""
        settings = self.recipe.quantization
        offered = [encoding for encoding in settings.offered if encoding != "float32"]
        sizes = {encoding: sorted(self.sizes(encoding)) for encoding in offered}
        note = ", ".join(_note(encoding, each) for encoding, each in sizes.items())
        files = {encoding: len(settings.coded) if encoding == "coded" else 1 for encoding in offered}
        coding, others = settings.model_dump(exclude={"encodings", "steps"}), settings.measured[1:]
        parameters, videos = split_parameters(self.recipe), expected_holdout(self.recipe)
        quantize = Stage(
            name=self.quantized,
            work=self._quantize,
            format=QUANTIZE_FORMAT,
            inputs=("data.train", self.finished, *self.recipe.tuning_targets),
            parameters={**parameters, "encodings": list(others), **({"coded": coding} if settings.coded else {})},
            note=note,
            bytes=sum(files[encoding] * each[-1] for encoding, each in sizes.items())
            + videos * holdout_row_bytes(self.schema, len(others)),
            gpus=1,
        )
        predict_holdout = Stage(
            name=self.predicted,
            work=self._predict,
            format=PREDICT_FORMAT,
            inputs=("data.train", self.finished),
            parameters=parameters,
            note="" if videos else "size not known without the data",
            bytes=videos * holdout_row_bytes(self.schema, 1),
            gpus=1,
        )
        return [*self.source_stages(), predict_holdout, quantize]

    @property
    def predicted(self) -> str:
        """Name of the stage that writes the predictions of the hold-out in float32, from which teachers are chosen."""
        return f"predict.{self.name}"

    @property
    def quantized(self) -> str:
        """Name of the stage that writes the model in every other encoding, and predicts the hold-out with it.

        Other encodings in a recipe repeat this stage, and no training of a student.
        """
        return f"quantize.{self.name}"

    @property
    def schema(self) -> Schema:
        """Schema of the data that the model reads."""
        return self.recipe.data.record_schema

    def file(self, job: Job, encoding: str) -> Path:
        """Return the path of the model's file in an encoding."""
        if encoding == "float32":
            return job.inputs[self.finished] / MODEL
        return file_inside(job.inputs[self.quantized], f"{encoding}.reeltag")

    def holdout(self, job: Job) -> HoldoutPredictions:
        """Read the predictions of the hold-out, in every encoding of which they are among the job's inputs."""
        return HoldoutPredictions.read([folder / PREDICTIONS for folder in self._measured(job)], self.schema.classes)

    def scores(self, job: Job) -> dict[str, dict[str, float]]:
        """Read hold-out GAP, bytes and seconds, by each encoding of which they are among the job's inputs."""
        return {name: each for folder in self._measured(job) for name, each in read_json(folder / SCORES).items()}

    def _measured(self, job: Job) -> list[Path]:
        stages = (self.predicted, self.quantized) if self.recipe.quantization.measured[1:] else (self.predicted,)
        return [job.inputs[stage] for stage in stages if stage in job.inputs]

    def _quantize(self, job: Job) -> None:
        settings = self.recipe.quantization
        source = load_artifact(job.inputs[self.finished] / MODEL)
        for encoding in settings.offered:
            if encoding not in ("float32", "coded"):
                save_artifact(job.folder / f"{encoding}.reeltag", quantize_artifact(source, encoding))
        if settings.coded:
            encoder = MemberEncoder(self.recipe, source, load_manifest(job, "train"), job)
            for name, step in settings.coded.items():
                found, gap, coded = encoder.smallest() if step is None else encoder.encode(step)
                size = save_artifact(job.folder / f"{name}.reeltag", coded)
                job.progress.say(f"  {self.name}: coded with step {found:g}, {megabytes(size)}, GAP {gap:.5f}")
            encoder.remove_checkpoints()
        if others := settings.measured[1:]:
            self._predict_with({encoding: job.folder / f"{encoding}.reeltag" for encoding in others}, job)

    def _predict(self, job: Job) -> None:
        self._predict_with({"float32": self.file(job, "float32")}, job)

    def _predict_with(self, files: Mapping[str, Path], job: Job) -> None:
        """Predict the hold-out with each file, so with the weights as they would be stored in the artifact."""
        manifest = load_manifest(job, "train")
        _, holdout = split(self.recipe, manifest)
        seconds: dict[str, float] = {}

        def predicted(encoding: str) -> Iterator[Predictions]:
            begin = time.perf_counter()
            model = load(files[encoding], "exact").model
            yield from predict_batches(model, sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE))
            seconds[encoding] = time.perf_counter() - begin

        by_encoding = {encoding: predicted(encoding) for encoding in files}
        segments = self.schema.segments is not None
        predictions = HoldoutPredictions.of(by_encoding, self.schema.classes, segments=segments)
        scores = {
            encoding: {
                "gap": predictions.gap(encoding),
                "bytes": file.stat().st_size,
                "seconds": round(seconds[encoding], 3),
            }
            for encoding, file in files.items()
        }
        gaps = ", ".join(f"{key} {each['gap']:.5f}" for key, each in scores.items())
        job.progress.say(f"  GAP on all {counted(len(holdout), f'hold-out {self.schema.example}')}: {gaps}")
        predictions.save(job.folder / PREDICTIONS)
        write_json(job.folder / SCORES, scores)


def _note(encoding: Encoding, sizes: list[int]) -> str:
    if encoding == "coded":
        return f"coded about {_span([*map(expected_coded_bytes, sizes)])}"
    return f"{encoding} at most {_span(sizes)}"


def _span(sizes: list[int]) -> str:
    least, most = megabytes(sizes[0]), megabytes(sizes[-1])
    return least if least == most else f"{least} to {most}"
