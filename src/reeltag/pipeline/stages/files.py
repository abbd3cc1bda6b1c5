"""What stages leave in their folders, and how later ones read it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from reeltag.core.errors import TransferError, UsageError
from reeltag.core.storage import find_files
from reeltag.data.holdout import split_holdout
from reeltag.data.shards import Indices, Manifest
from reeltag.inference.predictor import Predictor, load
from reeltag.pipeline.executor import Job
from reeltag.recipe.schema import Recipe

MODEL, CHECKPOINT, MANIFEST = "model.reeltag", "checkpoint.safetensors", "manifest.safetensors"
SCORES, PREDICTIONS, WEIGHTS = "scores.json", "predictions.safetensors", "weights.json"
SELECTION, KEPT = "selection.json", "kept.json"
RESULTS, REPORT = "results.json", "report"


def load_manifest(job: Job, split: str) -> Manifest:
    """The manifest of the training or the test set."""
    return Manifest.load(job.inputs[f"data.{split}"] / MANIFEST)


def load_predictor(job: Job, stage: str) -> Predictor:
    """The model that a stage made, ready to predict."""
    return load(job.inputs[stage] / MODEL)


def split_parameters(recipe: Recipe) -> dict[str, object]:
    """What decides which videos are held out."""
    return {"seed": recipe.seed, "holdout": recipe.data.holdout.model_dump()}


def held_out(recipe: Recipe) -> int:
    """Videos of the hold-out, estimated; 0 where the recipe does not tell."""
    data = recipe.data
    share = data.holdout.fraction
    if data.holdout.shards is not None:
        try:
            shards = data.synthetic.shards if data.synthetic else _count(data.train, data.root)
        except (UsageError, TransferError):  # a plan without data
            return 0
        share = min(1.0, data.holdout.shards / shards)
    assert share is not None
    return round(share * (data.expected_videos or 0))


@lru_cache(maxsize=8)  # each member of a plan asks, and a web server may take long to answer
def _count(patterns: tuple[str, ...], root: Path | str) -> int:
    return len(find_files(patterns, root))


def split(recipe: Recipe, manifest: Manifest) -> tuple[Indices, Indices]:
    """Indices of the training and of the hold-out videos."""
    holdout = recipe.data.holdout
    return split_holdout(manifest, recipe.seed, fraction=holdout.fraction, shards=holdout.shards)
