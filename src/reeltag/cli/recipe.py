"""The commands `reeltag recipe …`: list, show, copy, check and compare recipes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclopts import App

from reeltag.cli.options import OneOrMore, Overrides
from reeltag.cli.output import Json, say
from reeltag.core.errors import RecipeError, ReeltagError, UsageError
from reeltag.core.text import toml

recipe = App(name="recipe", help="List, show, copy, check and compare recipes.")


@recipe.command(name="list")
def list_recipes(*, json: Json = False) -> None:
    """List the recipes that come with reeltag, with purpose, models and size budget.

    `reeltag run NAME --dry-run` estimates the training time of a recipe.

    Example: reeltag recipe list
    """
    from reeltag.core.text import counted
    from reeltag.recipe import shipped

    summaries = {name: _summary(shipped.FOLDER / f"{name}.toml") for name in shipped.names()}
    lines = []
    for name, each in summaries.items():
        lines.append(f"{name}: {counted(each['models'], 'model')}, one file of at most {each['budget_mb']:g} MB")
        lines += textwrap.wrap(each["description"], 78, initial_indent="  ", subsequent_indent="  ")
    say({"recipes": summaries}, lines, json)


def _summary(path: Path) -> dict[str, Any]:
    from reeltag.recipe import shipped
    from reeltag.recipe.load import parse_recipe
    from reeltag.recipe.tables import read_table

    recipe = parse_recipe(read_table(path), path)
    models = len(recipe.trained)
    return {"description": shipped.description(path), "budget_mb": recipe.budget_mb, "models": models, "file": path}


@recipe.command
def show(recipe: str, /, *, set_: Overrides = [], json: Json = False) -> None:  # noqa: B006
    """Print a recipe in TOML with overrides applied and grids and defaults filled in.

    Example: reeltag recipe show quickstart --set training.epochs=3

    Args:
        recipe: A TOML file, or the name of a recipe that comes with reeltag.
    """
    import tomli_w

    from reeltag.recipe.load import load_recipe

    loaded = load_recipe(recipe, set_).dump()
    say(loaded, [tomli_w.dumps(_without_none(loaded)).rstrip()], json)


@recipe.command
def copy(recipe: str, file: Path, /, *, json: Json = False) -> None:
    """Copy a recipe, with its comments, as a start for a new one.

    Example: reeltag recipe copy quickstart mine.toml

    Args:
        recipe: The name of a recipe that comes with reeltag, or a TOML file.
        file: A new file.
    """
    from reeltag.core.storage import refuse_existing, require_regular, write_bytes
    from reeltag.recipe import shipped
    from reeltag.recipe.tables import read_table

    source = shipped.path_of(recipe)
    read_table(source)
    refuse_existing(file)
    write_bytes(file, require_regular(source).read_bytes())
    say({"file": file}, [f"{file}: edit it, then run reeltag recipe check {file}"], json)


@recipe.command
def check(*recipes: OneOrMore, set_: Overrides = [], json: Json = False) -> None:  # noqa: B006
    """Check recipes without running them, the size budget included; needs no data. Exits with code 2 on errors.

    Example: reeltag recipe check quickstart

    Args:
        recipes: TOML files, or names of recipes that come with reeltag.
    """
    from reeltag.pipeline.stages.check import check_recipe
    from reeltag.recipe.load import parse_recipe, recipe_table
    from reeltag.recipe.search_space import search_space

    faults: dict[str, list[str]] = {}
    for each in recipes:
        faults[each] = []
        try:
            table, wrong_overrides = recipe_table(each, set_)
            loaded = parse_recipe(table, each, wrong_overrides)
            search_space(loaded, table)
            check_recipe(loaded, without_data=True)
        except RecipeError as error:
            faults[each] = list(error.faults)
        except ReeltagError as error:
            faults[each] = [str(error)]
    if json:
        say({"faults": faults}, (), json)
    elif not any(faults.values()):
        print("\n".join(f"{each}: no faults" for each in faults))
    if wrong := [RecipeError(each, found) for each, found in faults.items() if found]:
        raise UsageError("\n".join(map(str, wrong)))


@recipe.command
def diff(one: str, other: str, /, *, json: Json = False) -> None:
    """Show the keys in which two recipes differ, with all defaults filled in.

    A table that only one recipe has takes one line; --json lists all of its keys.

    Example: reeltag recipe diff audioset audioset-small

    Args:
        one: A TOML file, or the name of a recipe that comes with reeltag.
        other: The recipe to compare with.
    """
    from reeltag.recipe.load import load_recipe
    from reeltag.recipe.tables import differences, leaves

    before, after = (load_recipe(each).dump() for each in (one, other))
    left, right = dict(leaves(before)), dict(leaves(after))
    # In the order of the first recipe; keys that only the second has come last.
    keys = [key for key in {**left, **right} if left.get(key) != right.get(key)]
    lines = [_difference(one, other, *each) for each in differences(before, after)]
    say({"differences": {key: [left.get(key), right.get(key)] for key in keys}}, lines or ["no difference"], json)


@recipe.command
def schema() -> None:
    """Print the JSON schema of recipes, for completion and validation in editors.

    Save it, and start a recipe with the line `#:schema ./recipe.schema.json`, which Taplo and VS Code's Even Better
    TOML read.

    Example: reeltag recipe schema > recipe.schema.json
    """
    from reeltag.recipe.json_schema import recipe_schema

    say(recipe_schema(), (), json=True)


def _difference(one: str, other: str, key: str, first: Any, second: Any) -> str:
    """Format the line of a key that differs, or of a table that only one of two recipes has."""
    from reeltag.recipe.tables import keys_of

    for name, table in ((one, first), (other, second)):
        if isinstance(table, Mapping):
            return f"{key}: only in {name} ({keys_of(table)})"
    return f"{key}: {toml(first)} → {toml(second)}"


def _without_none(value: Any) -> Any:
    """Return a value without keys that are None, which TOML cannot express."""
    if isinstance(value, dict):
        return {key: _without_none(each) for key, each in value.items() if each is not None}
    return [_without_none(each) for each in value] if isinstance(value, list) else value
