"""What every model goes through once it is there: quantise, predict the hold-out."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reeltag.artifact.file import load_artifact, quantize_artifact, save_artifact
from reeltag.artifact.quantization.quantize import Encoding
from reeltag.core import tensorfile
from reeltag.core.storage import file_inside, read_json, write_json
from reeltag.core.text import counted, megabytes
from reeltag.data.loader import sequential_batches
from reeltag.data.schema import Schema
from reeltag.data.shards import Shards
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.metrics.gap import gap
from reeltag.inference.predictor import load
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.files import MODEL, PREDICTIONS, SCORES, held_out, load_manifest, split, split_parameters
from reeltag.recipe.schema import Recipe


@dataclass(frozen=True)
class MemberStages(ABC):
    """The stages of one model that may become a member, from wherever it comes to its predictions of the hold-out."""

    recipe: Recipe
    name: str

    @property
    @abstractmethod
    def finished(self) -> str:
        """The stage that ends with the model as it came."""

    @abstractmethod
    def sizes(self, encoding: Encoding) -> list[int]:
        """Bytes of the tensors in an encoding; of each architecture that it may have, where that is not known yet."""

    @abstractmethod
    def source_stages(self) -> list[Stage]:
        """The stages up to `finished`, each after its inputs."""

    def stages(self) -> list[Stage]:
        """All stages, each after its inputs."""
        sizes = {encoding: sorted(self.sizes(encoding)) for encoding in self.encodings if encoding != "float32"}
        note = ", ".join(f"{encoding} {_span(found)}" for encoding, found in sizes.items())
        quantization = {"encodings": list(sizes)}
        inputs = ("data.train", self.finished, self.quantized)
        quantized = sum(found[-1] for found in sizes.values())
        predicted = held_out(self.recipe) * self.schema.classes * (1 + 4 * len(self.encodings))
        return [
            *self.source_stages(),
            Stage(self.quantized, self._do_quantize, (self.finished,), quantization, note, bytes=quantized),
            Stage(self.predicted, self._do_predict, inputs, split_parameters(self.recipe), bytes=predicted, gpus=1),
        ]

    @property
    def encodings(self) -> tuple[Encoding, ...]:
        """Every encoding that the model is measured in, float32 first."""
        return self.recipe.quantization.measured

    @property
    def quantized(self) -> str:
        """The stage that ends with the model in every other encoding."""
        return f"quantize.{self.name}"

    @property
    def predicted(self) -> str:
        """The stage that ends with the model's predictions of the hold-out, in every encoding."""
        return f"predict.{self.name}"

    @property
    def schema(self) -> Schema:
        """The data that the model reads."""
        return self.recipe.data.record_schema

    def file(self, job: Job, encoding: Encoding) -> Path:
        """The model's file in an encoding."""
        if encoding == "float32":
            return job.inputs[self.finished] / MODEL
        return file_inside(job.inputs[self.quantized], f"{encoding}.reeltag")

    def holdout(self, job: Job) -> tuple[dict[str, Tensor], Tensor]:
        """Predictions [N, C] of the hold-out by encoding, -1 for classes that were not rated; and its labels."""
        tensors, _ = tensorfile.load_tensors(job.inputs[self.predicted] / PREDICTIONS)
        return tensors, tensors.pop("labels")

    def scores(self, job: Job) -> dict[str, dict[str, float]]:
        """Hold-out GAP, bytes and seconds by encoding."""
        found: dict[str, dict[str, float]] = read_json(job.inputs[self.predicted] / SCORES)
        return found

    def _do_quantize(self, job: Job) -> None:
        source = load_artifact(job.inputs[self.finished] / MODEL)
        for encoding in self.encodings[1:]:
            save_artifact(job.folder / f"{encoding}.reeltag", quantize_artifact(source, encoding))

    def _do_predict(self, job: Job) -> None:
        """Predict the hold-out with the very weights that would be shipped."""
        manifest = load_manifest(job, "train")
        _, holdout = split(self.recipe, manifest)
        tensors: dict[str, Tensor] = {}
        scores: dict[str, dict[str, float]] = {}
        for encoding in self.encodings:
            path, begin = self.file(job, encoding), time.perf_counter()
            model = load(path).model
            parts = list(predict_batches(model, sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)))
            tensors[encoding] = torch.cat([part.comparable for part in parts])
            seconds = time.perf_counter() - begin
            tensors["labels"] = torch.cat([part.labels for part in parts if part.labels is not None])
            found = {"gap": gap(tensors[encoding], tensors["labels"]), "bytes": path.stat().st_size}
            scores[encoding] = {**found, "seconds": round(seconds, 3)}
        gaps = ", ".join(f"{key} {each['gap']:.5f}" for key, each in scores.items())
        job.progress.say(f"  GAP on all {counted(len(holdout), f'hold-out {self.schema.example}')}: {gaps}")
        tensorfile.save_tensors(job.folder / PREDICTIONS, tensors, {"videos": len(holdout)})
        write_json(job.folder / SCORES, scores)


def _span(sizes: list[int]) -> str:
    least, most = megabytes(sizes[0]), megabytes(sizes[-1])
    return least if least == most else f"{least} to {most}"
