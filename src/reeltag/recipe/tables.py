"""Tables of a recipe before validation: read TOML, override keys, expand grids, compare."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

from reeltag.core.errors import RecipeError
from reeltag.core.remote_files import is_url
from reeltag.core.storage import require_regular

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Table = dict[str, Any]

VARIABLE = "REELTAG_SET"
MOST_DOTS, MOST_COMBINATIONS = 32, 1000
FEW_KEYS = 6  # a table with more keys is summarised
_DOTTED = re.compile(r"""[\w"'-]+(?:[ \t]*\.[ \t]*[\w"'-]+)*""")


def read_table(path: Path) -> Table:
    """Read a TOML file.

    Raises:
        RecipeError: the file cannot be read, or is not TOML.
    """
    try:
        text = require_regular(path).read_text(encoding="utf-8")
        _refuse_dots(text)
        table: Table = tomllib.loads(text)
        return table
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read ({error.strerror})"]) from error
    except (ValueError, RecursionError) as error:  # invalid TOML, invalid UTF-8, or a number with too many digits
        raise RecipeError(str(path), [f"is not TOML: {error}"]) from error


def start_from_folder(table: Table, folder: Path) -> None:
    """Let a relative `data.root` of a recipe's table, or none, start from the recipe's folder."""
    data = table.get("data")
    if isinstance(data, dict) and "synthetic" not in data:
        root = data.get("root", "")
        if isinstance(root, str) and not is_url(root):
            data["root"] = str(folder / root)


def _refuse_dots(text: str) -> None:
    """Refuse keys with many dots, for which the TOML parser's memory grows with the square of their number."""
    dots = max((key.group().count(".") for key in _DOTTED.finditer(text)), default=0)
    if dots > MOST_DOTS:
        raise ValueError(f"a key has {dots} dots; at most {MOST_DOTS} are allowed")


def leaves(table: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each leaf."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}", value


def differences(before: Mapping[str, Any], after: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values of each difference; a table that only one side has is one value."""
    for key in dict.fromkeys([*before, *after]):
        name, old, new = f"{place}{key}", before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{name}.")
        elif old != new:
            yield name, old, new


def keys_of(table: Mapping[str, Any]) -> str:
    """Format a small table with its values, and a larger one as its number of keys."""
    found = [(key, value) for key, value in leaves(table) if value is not None]
    if len(found) > FEW_KEYS:
        return f"{len(found)} keys"
    return ", ".join(f"{key} = {value}" for key, value in found) or "empty"


def from_environment() -> list[str]:
    """Return the overrides in `$REELTAG_SET`: `dotted.key=value`, separated by `;`."""
    return [text.strip() for text in os.environ.get(VARIABLE, "").split(";") if text.strip()]


def override(table: Table, overrides: Sequence[str], origin: str = "--set") -> list[str]:
    """Set keys of a table by `dotted.key=value`; a value is parsed as TOML, or else taken as a string.

    Args:
        table: changed in place.
        overrides: the texts.
        origin: the option or variable with the overrides, for messages.

    Returns:
        Descriptions of the faults.
    """
    return [f"{origin} {text}: {fault}" for text in overrides if (fault := _override(table, text))]


def _override(table: Table, text: str) -> str | None:
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        return "give it as dotted.key=value"
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value
    blocking = _set(table, key, parsed)
    return blocking and f"{blocking} is a value, not a table"


def _set(table: Table, dotted: str, value: Any) -> str | None:
    """Set one key; return the first parent key that holds a value instead of a table, if any."""
    *parents, last = dotted.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            return parent
        table = inner
    table[last] = value
    return None


def with_values(table: Table, values: Mapping[str, Any]) -> Table:
    """Return a copy of a table with some dotted keys set.

    Raises:
        ValueError: a key lies inside a value that is not a table.
    """
    table = deepcopy(table)
    for key, value in values.items():
        if blocking := _set(table, key, value):
            raise ValueError(f"{blocking} is a value, not a table")
    return table


def spell_out_grids(table: Table, section: str) -> list[str]:
    """Replace each entry of a section that has a `grid` by one entry for each combination, named after its values.

    `grid = { clusters = [16, 32], "training.batch_size" = [80, 160] }` in `[models.a]` makes `a-16-80`, `a-16-160`,
    `a-32-80` and `a-32-160`.

    Returns:
        Descriptions of the faults.
    """
    entries = table.get(section)
    if not isinstance(entries, dict):
        return []
    faults: list[str] = []
    spelled: Table = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or "grid" not in entry:
            found = {name: entry}
        elif wrong := _grid_faults(entry):
            faults += [f"{section}.{name}.grid: {fault}" for fault in wrong]
            found = {name: {key: value for key, value in entry.items() if key != "grid"}}
        else:
            found = dict(_combinations(name, entry))
        if twice := sorted(set(spelled) & set(found)):
            faults.append(
                f"{section}: {', '.join(twice)} occurs twice, at least once made by a grid; choose another name"
            )
        spelled |= found
    table[section] = spelled
    return faults


def grid_names(table: Table, section: str) -> dict[str, list[str]]:
    """Return the names of the entries that each valid grid of a section makes."""
    entries = table.get(section)
    if not isinstance(entries, dict):
        return {}
    grids = {name: each for name, each in entries.items() if isinstance(each, dict) and "grid" in each}
    return {
        name: [made for made, _ in _combinations(name, each)] for name, each in grids.items() if not _grid_faults(each)
    }


def _grid_faults(entry: Mapping[str, Any]) -> list[str]:
    grid = entry["grid"]
    if not isinstance(grid, dict) or not grid:
        return ["must be a table of keys with lists, such as { clusters = [16, 32] }"]
    faults = []
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            how = "write nested keys in quotes, as 'head.l2'"
            faults.append(f"{key} must be a list of values to try, not {values!r}; {how}")
        elif any(isinstance(value, dict | list) for value in values) or len(set(map(str, values))) < len(values):
            faults.append(f"{key} must be a list of different plain values, not {values!r}")
        if _set(deepcopy(dict(entry)), key, None):
            faults.append(f"{key} is inside a value that is not a table")
    if not faults and (count := math.prod(map(len, grid.values()))) > MOST_COMBINATIONS:
        faults.append(f"makes {count:,} models; at most {MOST_COMBINATIONS:,} are allowed; leave values out")
    return faults


def _combinations(name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, Table]]:
    grid = entry["grid"]
    for values in product(*grid.values()):
        copy = dict(deepcopy(entry))
        del copy["grid"]
        for key, value in zip(grid, values, strict=True):
            _set(copy, key, value)
        yield "-".join([name, *map(_plain, values)]), copy


def _plain(value: object) -> str:
    """Format a value as part of a name."""
    return "".join(c if c.isalnum() else "_" for c in str(value))
