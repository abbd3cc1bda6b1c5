"""Names of the files that stages write, and functions with which later stages read them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from reeltag.core.errors import TransferError, UsageError
from reeltag.core.storage import find_files
from reeltag.data.holdout import split_holdout
from reeltag.data.shards import Indices, Manifest
from reeltag.pipeline.executor import Job
from reeltag.recipe.schema import Recipe

MODEL, CHECKPOINT, MANIFEST = "model.reeltag", "checkpoint.safetensors", "manifest.safetensors"
SCORES, PREDICTIONS, WEIGHTS = "scores.json", "predictions.safetensors", "weights.json"
START = "start.json"
SELECTION, KEPT, DECISION = "selection.json", "kept.json", "decision.json"
REPORT = "report"


def load_manifest(job: Job, split: str) -> Manifest:
    """Load the manifest of the training or the test set."""
    return Manifest.load(job.inputs[f"data.{split}"] / MANIFEST)


def split_parameters(recipe: Recipe) -> dict[str, object]:
    """Return what decides which videos are held out, as JSON."""
    return {"seed": recipe.seed, "holdout": recipe.data.holdout.model_dump()}


def expected_holdout(recipe: Recipe) -> int:
    """Estimate the number of hold-out videos; 0 where the number of training videos is not known."""
    data = recipe.data
    fraction = data.holdout.fraction
    if data.holdout.shards is not None:
        try:
            shards = data.synthetic.shards if data.synthetic else _count(data.train, data.root)
        except (UsageError, TransferError):  # a plan without data
            return 0
        fraction = min(1.0, data.holdout.shards / shards)
    assert fraction is not None
    return round(fraction * (data.expected_videos or 0))


@lru_cache(maxsize=8)  # every member of a plan asks, and a web server may answer slowly
def _count(patterns: tuple[str, ...], root: Path | str) -> int:
    return len(find_files(patterns, root))


def split(recipe: Recipe, manifest: Manifest) -> tuple[Indices, Indices]:
    """Return the indices of the training and of the hold-out videos."""
    holdout = recipe.data.holdout
    return split_holdout(
        manifest, recipe.seed, fraction=holdout.fraction, shards=holdout.shards, patterns=holdout.patterns
    )
