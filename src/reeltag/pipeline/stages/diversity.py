"""Diversity of the models of a run, by their level: trained on labels, first-level and second-level students."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from reeltag.inference.metrics.diversity import mean_error_correlation
from reeltag.pipeline.executor import Job
from reeltag.pipeline.report.results import rounded
from reeltag.pipeline.stages.holdout_predictions import HoldoutPredictions
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.trained_model import TrainedModelStages
from reeltag.recipe.schema import Recipe

EXAMPLES = 512  # read at a time
GROUPS = ("trained on labels", "first-level students", "second-level students")


def diversity(recipe: Recipe, members: Sequence[MemberStages], job: Job) -> list[dict[str, Any]]:
    """Measure the correlation of errors on the hold-out, in float32, in each group of two or more models.

    Returns:
        The group, the names of its models, and the mean correlation over their pairs.
    """
    levels: dict[str, list[TrainedModelStages]] = {group: [] for group in GROUPS}
    for member in members:
        if isinstance(member, TrainedModelStages):
            levels[GROUPS[_level(recipe, member)]].append(member)
    measured = []
    for group, models in levels.items():
        if len(models) > 1:
            correlation = mean_error_correlation(_parts([model.holdout(job) for model in models]))
            names = [model.name for model in models]
            measured.append({"group": group, "models": names, "correlation": rounded(correlation)})
    return measured


def _parts(predictions: Sequence[HoldoutPredictions]) -> Iterator[tuple[list[Tensor], Tensor]]:
    labels = predictions[0].labels
    for examples in torch.split(torch.arange(len(labels)), EXAMPLES):
        yield [each.probabilities("float32", examples) for each in predictions], labels[examples]


def _level(recipe: Recipe, model: TrainedModelStages) -> int:
    """Return 0 for a model trained on labels alone, 1 or 2 for a student of that level."""
    if not model.targets:
        return 0
    return recipe.students[model.name].level if model.name in recipe.students else 1
