"""Load a recipe file. One message lists every fault, before any data is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from reeltag.core.errors import RecipeError
from reeltag.core.storage import as_strings
from reeltag.core.text import did_you_mean
from reeltag.core.validation import describe_fault, format_value
from reeltag.data.schema import expand_preset
from reeltag.data.synthetic import SyntheticSettings
from reeltag.models.config import TaggerConfig
from reeltag.models.families import FAMILIES, parse_config
from reeltag.recipe.renamed_keys import rename_old_keys
from reeltag.recipe.schema import NAME, Recipe
from reeltag.recipe.shipped import is_shipped, path_of
from reeltag.recipe.tables import (
    VARIABLE,
    Table,
    from_environment,
    grid_names,
    override,
    read_table,
    spell_out_grids,
    start_from_folder,
)


def load_recipe(source: str | Path, overrides: str | Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe. A relative `data.root` in a file starts from the file's folder.

    Args:
        source: a TOML file, or the name of a recipe that comes with reeltag.
        overrides: `dotted.key=value`, one or several, applied after those of `$REELTAG_SET`; a value is parsed as
            TOML, or else taken as a string.

    Raises:
        RecipeError: lists every fault with its key.
        UsageError: no recipe has this name.
    """
    table, faults = recipe_table(source, overrides)
    return parse_recipe(table, source, faults)


def recipe_table(source: str | Path, overrides: str | Sequence[str] = ()) -> tuple[Table, list[str]]:
    """Read the table of a recipe, with overrides applied, but not validated.

    Args:
        source: as in `load_recipe`.
        overrides: as in `load_recipe`.

    Returns:
        The table, and descriptions of the faults of the overrides.
    """
    path = path_of(source)
    table = read_table(path)
    if not is_shipped(path):
        start_from_folder(table, path.parent)
    faults = override(table, from_environment(), VARIABLE) + override(table, as_strings(overrides))
    return table, faults


def parse_recipe(table: Table, source: str | Path, faults: Sequence[str] = ()) -> Recipe:
    """Validate the table of a recipe.

    Args:
        table: from `recipe_table`; not changed.
        source: file or name of the recipe.
        faults: found before; reported together with those of the table.

    Raises:
        RecipeError: lists every fault with its key.
    """
    table, faults, environment = deepcopy(table), list(faults), from_environment()
    faults += [
        f"{old} is called {new} now{_origin(old.split('.'), environment)}" for old, new in rename_old_keys(table)
    ]
    grids = {section: grid_names(table, section) for section in ("models", "students")}
    faults += [fault for section in grids for fault in spell_out_grids(table, section)]
    try:
        recipe = Recipe.model_validate(table, context={"widths": _widths(table)})
    except ValidationError as error:
        found = _of_whole_grids(error.errors(), grids)
        faults += [describe(fault) + _origin(fault["loc"], environment) for fault in found]
    if faults:
        raise RecipeError(str(source), faults)
    recipe._source = source
    return recipe


def _of_whole_grids(
    faults: Sequence[ErrorDetails], grids: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[ErrorDetails]:
    """Merge faults that all models of a grid share into one under the grid's name.

    Args:
        faults: reported by pydantic.
        grids: by section and name, the models that each grid makes.
    """
    makers: dict[tuple[str, ...], str] = {
        (section, model): name for section in grids for name, made in grids[section].items() for model in made
    }

    def of_grid(fault: ErrorDetails) -> ErrorDetails:
        place = fault["loc"]
        name = makers.get(tuple(map(str, place[:2])))
        return fault if name is None else {**fault, "loc": (place[0], name, *place[2:])}

    shared = Counter(describe(of_grid(fault)) for fault in faults)
    merged: dict[str, ErrorDetails] = {}
    for fault in faults:
        general = of_grid(fault)
        models = grids[str(fault["loc"][0])][str(general["loc"][1])] if general is not fault else ()
        chosen = general if len(models) == shared[describe(general)] else fault
        merged.setdefault(describe(chosen), chosen)
    return list(merged.values())


def _origin(location: Sequence[int | str], environment: Sequence[str]) -> str:
    """Return a remark that `$REELTAG_SET` sets the key at a location; empty if the file or the command does."""
    place = [key for key in map(str, location) if key != "config" and key not in FAMILIES]
    keys = [text.partition("=")[0].strip() for text in environment]
    blamed = any([part for part in key.split(".") if part not in FAMILIES] == place for key in keys)
    return f" ({VARIABLE} sets it)" if blamed else ""


def _widths(table: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the widths of the features that the models will read; empty if the table does not tell them."""
    data = table.get("data")
    if not isinstance(data, dict):
        return ()
    if isinstance(synthetic := data.get("synthetic"), dict):
        fields = SyntheticSettings.model_fields
        widths = [synthetic.get(key, fields[key].default) for key in ("rgb", "audio")]
    else:
        try:
            features = expand_preset(data.get("schema"))["features"]
            widths = [feature["width"] for feature in features]
        except (ValueError, TypeError, KeyError):
            return ()
    return tuple(widths) if all(type(width) is int and width > 0 for width in widths) else ()


def tagger_config(source: str, table: Table, overrides: Sequence[str], widths: Sequence[int]) -> TaggerConfig:
    """Parse the configuration of a model from a table and `key=value` overrides.

    Raises:
        RecipeError: lists every fault with its key.
    """
    faults = override(table, overrides)
    try:
        config = parse_config(table, widths)
    except ValidationError as error:
        place = ("models", source, "config")  # described as in a recipe
        in_recipe = [describe({**fault, "loc": (*place, *fault["loc"])}) for fault in error.errors()]
        faults += [fault.removeprefix(f"models.{source}.") for fault in in_recipe]
    if faults:
        raise RecipeError(source, faults)
    return config


def synthetic_settings(overrides: Sequence[str]) -> SyntheticSettings:
    """Parse the settings of generated data from `key=value` overrides.

    Raises:
        RecipeError: lists every fault with its key.
    """
    table: Table = {}
    faults = override(table, overrides)
    try:
        settings = SyntheticSettings.model_validate(table)
    except ValidationError as error:
        faults += [describe(fault) for fault in error.errors()]
    if faults:
        raise RecipeError("synthetic data", faults)
    return settings


def describe(fault: ErrorDetails, keys: Sequence[str] = ()) -> str:
    """Describe a validation error, with its key and a suggestion.

    Args:
        fault: reported by pydantic.
        keys: keys that the table may have, if it is not a recipe.
    """
    place = list(map(str, fault["loc"]))
    family = None
    if place and place[0] in ("models", "students") and len(place) > 2 and place[2] == "config":
        del place[2]  # a model's table is parsed as two
        if len(place) > 2 and place[2] in FAMILIES:
            family = place.pop(2)  # pydantic adds the chosen branch of the union
            family = (
                family if len(place) == 3 else None
            )  # only for the table's own keys, not for those of an inner table
    key = ".".join(place)
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        given = fault.get("ctx", {}).get("tag")
        question = did_you_mean(str(given), FAMILIES)
        what = (f", not {format_value(given)}" if given else "") + (f"; {question}" if question else "")
        return f"{key}.family: choose one of {', '.join(FAMILIES)}{what}"
    if fault["type"] == "extra_forbidden":
        return f"{key}: {describe_fault(fault)}" + _hint(place[-1], family, keys)
    if fault["type"] == "string_pattern_mismatch" and fault["ctx"]["pattern"] == NAME:
        how = "a name begins with a letter or digit, and has only these, - and _"
        return f"{key.removesuffix('.[key]')}: {how}, not {format_value(fault['input'])}"
    return f"{key}: {describe_fault(fault)}" if key else describe_fault(fault)


def _hint(key: str, family: str | None, keys: Sequence[str]) -> str:
    """Return a suggestion for an unknown key: a similar key, or the families that have it."""
    here = keys or (list(FAMILIES[family].model_fields) if family else known_keys())
    if family and (others := [name for name, config in FAMILIES.items() if key in config.model_fields]):
        return f" of {family}, but of {', '.join(others)}; {family} has {', '.join(here)}"
    if question := did_you_mean(key, here):
        return f"; {question}"
    if not keys and key in known_keys():
        return " in this table; it belongs to another one, see docs/recipes.md"
    return f" of {family}, which has {', '.join(here)}" if family else ""


@cache
def known_keys() -> list[str]:
    """Return every key that a recipe may have, in any table."""
    schema = Recipe.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    keys = {key for table in tables for key in table.get("properties", {})}
    return sorted(keys - {"config"} | {"grid"})  # `config` is no key of the file; grids are expanded before
