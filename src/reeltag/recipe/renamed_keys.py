"""Keys of recipes that have a new name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Table = dict[str, Any]

TRAINING = {
    "rate": "learning_rate",
    "decay": "learning_rate_decay",
    "decay_examples": "learning_rate_decay_examples",
    "warmup": "warmup_ratio",
    "watch": "evaluate_every",
}
OTHERS = {
    "averaging": {"rate_divisor": "learning_rate_divisor"},
    "data": {"window": "shuffle_window"},
    "distillation": {"label_share": "label_weight"},
}
_OF_GRIDS = {f"training.{old}": f"training.{new}" for old, new in TRAINING.items()}


def rename_old_keys(table: Table) -> list[tuple[str, str]]:
    """Rename the keys of a recipe that have a new name, so that their values can be validated too.

    An old key is dropped if the table has the new one too.

    Args:
        table: the recipe before its grids are expanded; changed in place.

    Returns:
        The old and the new dotted key of each.
    """
    found: list[tuple[str, str]] = []
    for place, inner, names in list(_tables(table)):
        for old in [key for key in inner if key in names]:
            value = inner.pop(old)
            inner.setdefault(names[old], value)
            found.append((f"{place}.{old}", f"{place}.{names[old]}"))
    return found


def _tables(recipe: Table) -> Iterator[tuple[str, Table, dict[str, str]]]:
    """Yield each table that may hold an old key, with its dotted key and the new names of its keys."""
    models = [
        (f"{section}.{name}", entry)
        for section in ("models", "students")
        for name, entry in _entries(recipe.get(section))
    ]
    candidates = [(section, recipe.get(section), names) for section, names in OTHERS.items()]
    candidates += [("training", recipe.get("training"), TRAINING)]
    for place, entry in [("distillation", recipe.get("distillation")), *models]:
        if isinstance(entry, dict):
            candidates.append((f"{place}.training", entry.get("training"), TRAINING))
    for place, entry in models:
        if isinstance(entry, dict):
            candidates.append((f"{place}.grid", entry.get("grid"), _OF_GRIDS))
    for place, inner, names in candidates:
        if isinstance(inner, dict):
            yield place, inner, names


def _entries(section: Any) -> list[tuple[str, Any]]:
    return list(section.items()) if isinstance(section, dict) else []
