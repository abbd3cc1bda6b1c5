"""What every member of the ensemble goes through once it is there: quantise, predict the hold-out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from reeltag import artifact, checkpoint
from reeltag.data.batches import sequential_batches
from reeltag.data.schema import Schema
from reeltag.data.shards import Shards
from reeltag.executors import Job, Stage
from reeltag.predict import BATCH_SIZE, predict
from reeltag.recipe import Recipe
from reeltag.stages.files import MODEL, PREDICTIONS, load_manifest, load_predictor, split
from reeltag.storage import megabytes


@dataclass(frozen=True)
class MemberStages(ABC):
    """The stages of one member, from wherever it comes to its predictions of the hold-out."""

    recipe: Recipe
    name: str

    @property
    @abstractmethod
    def finished(self) -> str:
        """The stage that ends with the model as it came."""

    @property
    @abstractmethod
    def quantized_bytes(self) -> int:
        """Bytes of the tensors after quantisation."""

    @abstractmethod
    def source_stages(self) -> list[Stage]:
        """The stages up to `finished`, each after its inputs."""

    def stages(self) -> list[Stage]:
        """All stages, each after its inputs."""
        note = f"{megabytes(self.quantized_bytes)} 8-bit"
        return [
            *self.source_stages(),
            Stage(self.quantized, self._do_quantize, (self.finished,), {}, note),
            Stage(f"predict.{self.name}", self._do_predict, ("data.train", self.quantized), self.split_parameters),
        ]

    @property
    def quantized(self) -> str:
        """The stage that ends with the model as it is shipped."""
        return f"quantize.{self.name}"

    @property
    def schema(self) -> Schema:
        """The data that the model reads."""
        return self.recipe.data.record_schema

    @property
    def split_parameters(self) -> dict[str, object]:
        """What decides which videos are held out."""
        return {"seed": self.recipe.seed, "holdout": self.recipe.data.holdout.model_dump()}

    def _do_quantize(self, job: Job) -> None:
        source = artifact.load(job.inputs[self.finished] / MODEL)
        artifact.save(job.folder / MODEL, artifact.quantized(source))

    def _do_predict(self, job: Job) -> None:
        """Predict the hold-out with the weights that will be shipped."""
        manifest = load_manifest(job, "train")
        _, holdout = split(self.recipe, manifest)
        model = load_predictor(job, self.quantized).model
        parts = list(predict(model, sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)))
        tensors = {
            "probabilities": torch.cat([part.probabilities for part in parts]),
            "labels": torch.cat([part.labels for part in parts if part.labels is not None]),
        }
        checkpoint.save_tensors(job.folder / PREDICTIONS, tensors, {"videos": len(holdout)})
