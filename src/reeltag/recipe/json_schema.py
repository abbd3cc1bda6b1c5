"""JSON schema of recipe files, for editors."""

from __future__ import annotations

from typing import Any

from reeltag.data.schema import PRESETS
from reeltag.models.families import FAMILIES
from reeltag.recipe.schema import Recipe

Node = dict[str, Any]


def recipe_schema() -> Node:
    """Return the JSON schema: all keys with their types, bounds, defaults and meanings.

    It lacks the rules between keys, which only `load_recipe` checks. It describes the file and not the loaded recipe: a
    model is one table, grids are allowed, and a data set's schema may be a preset.
    """
    schema = Recipe.model_json_schema()
    tables: dict[str, Node] = schema["$defs"]
    for name in ("ModelSettings", "StudentSettings"):
        tables[name] = _by_family(tables[name], tables)
    for config in FAMILIES.values():
        del tables[config.__name__]
    preset = {"enum": sorted(PRESETS)}
    layout = tables["Schema"]
    layout["properties"]["preset"] = {**preset, "description": "start from a preset and override keys"}
    layout["anyOf"] = [{"required": ["preset"]}, {"required": layout.pop("required")}]
    tables["DataSettings"]["properties"]["schema"] = {"anyOf": [preset, {"$ref": "#/$defs/Schema"}]}
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A recipe of reeltag", **_plain(schema)}


def _by_family(table: Node, tables: dict[str, Node]) -> Node:
    """Return the schema of a model's table: the keys of its family, chosen by `family`, and those of every model."""
    own = {key: value for key, value in table["properties"].items() if key != "config"}
    own["grid"] = {
        "description": "one model for each combination of these values; nested keys in quotes",
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"type": "array", "minItems": 1},
    }
    branches = []
    for family, config in sorted(FAMILIES.items()):
        then = {"properties": {**tables[config.__name__]["properties"], **own}, "additionalProperties": False}
        branches.append({"if": {"properties": {"family": {"const": family}}}, "then": then})
    return {
        "description": table["description"],
        "type": "object",
        "properties": {"family": {"enum": sorted(FAMILIES)}},
        "required": ["family"],
        "allOf": branches,
    }


def _plain(node: Any) -> Any:
    """Remove the titles that pydantic derives from names, and `null`, which TOML does not have."""
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if not (key == "title" and isinstance(value, str))}
    if kept.get("default", ...) is None:
        del kept["default"]
    if "anyOf" in kept and {"type": "null"} in kept["anyOf"]:
        others = [each for each in kept.pop("anyOf") if each != {"type": "null"}]
        kept |= others[0] if len(others) == 1 else {"anyOf": others}
    return {key: _plain(value) for key, value in kept.items()}
