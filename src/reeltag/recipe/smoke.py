"""Shorten a recipe, so that a run shows within seconds or minutes if it works from end to end."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel

from reeltag.recipe.data import HoldoutSettings, LimitSettings
from reeltag.recipe.schema import (
    DistillationSettings,
    ModelSettings,
    Recipe,
    StudentSettings,
)

Table = TypeVar("Table", bound=BaseModel)
Trained = TypeVar("Trained", ModelSettings, StudentSettings, DistillationSettings)

# Enough for a hold-out of two halves, and for the largest number of folds.
TRAIN_VIDEOS, TEST_VIDEOS, HOLDOUT = 64, 16, 0.25
ONE_BATCH = 1e-9  # epochs; a phase has at least one step


def smoked(recipe: Recipe) -> Recipe:
    """Return the recipe with one batch for each training and few videos; architectures, batch sizes and stages stay."""
    few = LimitSettings(train=TRAIN_VIDEOS, test=TEST_VIDEOS)
    data = _with(recipe.data, limit=few, holdout=HoldoutSettings(fraction=HOLDOUT))
    if data.synthetic is not None:
        few_videos = {
            "train_videos": min(data.synthetic.train_videos, max(TRAIN_VIDEOS, data.synthetic.shards)),
            "test_videos": min(data.synthetic.test_videos, max(TEST_VIDEOS, data.synthetic.shards)),
        }
        data = _with(data, synthetic=_with(data.synthetic, **few_videos))
    return _with(
        recipe,
        data=data,
        training=_with(recipe.training, epochs=ONE_BATCH),
        averaging=recipe.averaging and _with(recipe.averaging, epochs=ONE_BATCH),
        models={name: _short(model) for name, model in recipe.models.items()},
        students={name: _short(student) for name, student in recipe.students.items()},
        distillation=recipe.distillation and _short(recipe.distillation),
    )


def _short(table: Trained) -> Trained:
    """Return a table whose own training is one batch long."""
    return _with(table, training=_with(table.training, epochs=ONE_BATCH))


def _with(table: Table, **keys: Any) -> Table:
    """Return a table with some keys changed."""
    return table.model_copy(update=keys)
