"""The values that `reeltag tune` tries, held against the recipe's own rules before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reeltag.core.errors import RecipeError, UsageError
from reeltag.core.text import did_you_mean, toml
from reeltag.recipe.load import parse_recipe
from reeltag.recipe.schema import RangeSettings, Recipe
from reeltag.recipe.tables import Table, leaves, with_values
from reeltag.training.schedule import NOT_DECISIVE

FIXED = {"evaluate_every", "patience"}  # of a training; they decide when trials are compared

Value = bool | int | float | str


@dataclass(frozen=True)
class Dimension:
    """Values of one key.

    Attributes:
        settings: the range, or the choices.
        whole: True if the key takes whole numbers only.
    """

    settings: RangeSettings
    whole: bool

    def holds(self, value: object) -> bool:
        """Return True if a value is one of these."""
        low, high, step = self.settings.low, self.settings.high, self.settings.step
        if self.settings.choices:
            return any(value == each and type(value) is type(each) for each in self.settings.choices)
        if not isinstance(value, int | float) or low is None or high is None:
            return False
        steps = (value - low) / step if step else 0.0
        return low <= value <= high and abs(steps - round(steps)) < 1e-9


def tuned_model(recipe: Recipe, name: str | None) -> str:
    """Return the name of the model that is tuned: the given one, or the only one that can be meant.

    Raises:
        UsageError: the recipe has several models and none is named, or it has no ranges.
    """
    source = recipe.source or recipe.name
    if not recipe.tune:
        example = '"training.learning_rate" = { low = 1e-4, high = 1e-2, log = true }'
        raise UsageError(f"{source}: has no table [tune]; give it keys with ranges, such as {example}")
    named = {key.split(".")[1] for key in recipe.tune if key.startswith("models.")} & set(recipe.models)
    candidates = [name] if name else sorted(named) or list(recipe.models)
    if len(candidates) != 1:
        which = f"name it with --model, one of {', '.join(candidates) or 'none'}"
        raise UsageError(f"{source}: one model is tuned at a time; {which}")
    return candidates[0]


def search_space(recipe: Recipe, table: Table, model: str | None = None) -> dict[str, Dimension]:
    """Return the values to try, by dotted key. The ends of each range and all choices are tried as recipes.

    Args:
        recipe: the recipe.
        table: its table, from `recipe_table`.
        model: the model that is tuned; keys of other models are left out. By default all keys are returned.

    Raises:
        RecipeError: a key cannot be tuned, or the recipe is invalid with a value of it; lists every fault.
    """
    faults: list[str] = []
    space: dict[str, Dimension] = {}
    for key, settings in recipe.tune.items():
        found = [_no_key(recipe, table, key)] if _no_key(recipe, table, key) else []
        found = found or list(_value_faults(recipe, table, key, settings))
        faults += [f"tune.{key}: {fault}" for fault in found]
        if not found and (model is None or not key.startswith("models.") or key.split(".")[1] == model):
            ends = settings.choices or (settings.low, settings.high)
            space[key] = Dimension(settings, all(isinstance(_parsed(recipe, table, key, end), int) for end in ends))
    if faults:
        raise RecipeError(str(recipe.source or recipe.name), faults)
    return space


def with_trial(recipe: Recipe, table: Table, values: Mapping[str, Value]) -> Recipe:
    """Return the recipe with the values of a trial.

    Raises:
        RecipeError: it is invalid with these values together.
    """
    return parse_recipe(with_values(table, values), _source(recipe))


def own_value(recipe: Recipe, model: str, key: str) -> Any:
    """Return the value that the recipe itself has for a key; None if it leaves the key out."""
    found = dict(leaves(recipe.dump()))
    value = found.get(key)
    inherited = key.removeprefix(f"models.{model}.")
    return found.get(inherited) if value is None and inherited.startswith("training.") else value


def _no_key(recipe: Recipe, table: Table, key: str) -> str:
    """Return the reason why a key cannot be tuned; empty if it can."""
    parts = key.split(".")
    if parts[0] not in ("models", "training", "averaging") or len(parts) < (3 if parts[0] == "models" else 2):
        return "only keys of models, training and averaging are tuned, such as models.NAME.hidden"
    if parts[0] == "averaging" and recipe.averaging is None:
        return "the recipe has no [averaging]; add the table first"
    if parts[0] == "models" and parts[1] not in table["models"]:
        made = f"{parts[1]} is made by a grid; write the grid's values here as choices instead"
        meant = " ".join(filter(None, [did_you_mean(parts[1], recipe.models), f"there are {', '.join(recipe.models)}"]))
        return made if parts[1] in recipe.models else f"the recipe has no model {parts[1]}; {meant}"
    if "training" in parts[:-1] and parts[-1] in NOT_DECISIVE:
        return "changes the device and the speed of a training, but not its result"
    if "training" in parts[:-1] and parts[-1] in FIXED:
        return "decides when trials are compared; set it for all of them"
    return ""


def _value_faults(recipe: Recipe, table: Table, key: str, settings: RangeSettings) -> Iterator[str]:
    """Yield the faults of the recipe with the ends of a range, or with each choice."""
    ends = settings.choices or (settings.low, settings.high)
    for value in ends:
        assert value is not None  # a range has both ends
        try:
            with_trial(recipe, table, {key: value})
        except RecipeError as error:
            yield from (f"with {toml(value)}, {fault}" for fault in error.faults)
            return
        except ValueError as error:
            yield str(error)
            return
        found = _parsed(recipe, table, key, value)
        if not settings.choices and isinstance(found, bool):
            yield "takes true or false; give choices = [true, false]"
            return
        if not settings.choices and isinstance(found, int) and settings.step and settings.step != int(settings.step):
            yield f"takes whole numbers, and step = {settings.step:g} is none"
            return


def _parsed(recipe: Recipe, table: Table, key: str, value: Any) -> Any:
    """Return a key's value as the recipe reads it."""
    return dict(leaves(with_trial(recipe, table, {key: value}).dump())).get(key)


def _source(recipe: Recipe) -> str | Path:
    return recipe.source or recipe.name
