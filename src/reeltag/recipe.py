"""TOML → typed recipe. Every fault of a recipe is listed in one message, before any data is opened."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails

from reeltag.data.schema import Schema, with_preset
from reeltag.data.synthetic import SyntheticSettings
from reeltag.errors import RecipeError
from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import FAMILIES, AnyTaggerConfig, parse_config
from reeltag.storage import content_hash
from reeltag.train import NOT_DECISIVE, AveragingSettings, TrainingSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, validate_default=True)


class HoldoutSettings(_Table):
    """Which training videos are kept from training, to choose by."""

    fraction: float | None = Field(None, gt=0, lt=1, description="share of the videos, or")
    shards: int | None = Field(None, gt=0, description="number of whole shards")

    @model_validator(mode="after")
    def _one_of_two(self) -> HoldoutSettings:
        if (self.fraction is None) == (self.shards is None):
            raise ValueError("give either fraction or shards")
        return self


class DataSettings(_Table):
    """Where the videos are, or how to generate some."""

    root: Path = Field(Path(), description="folder that the patterns below start from")
    layout: Annotated[Schema | None, BeforeValidator(with_preset)] = Field(None, alias="schema")
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    label_names: str | None = Field(None, description="CSV file that names the classes")
    holdout: HoldoutSettings = HoldoutSettings(fraction=0.1)
    synthetic: SyntheticSettings | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSettings:
        files = {
            "schema": self.layout,
            "train": self.train,
            "label_names": self.label_names,
            "test": self.test,
        }
        if self.synthetic is not None:
            if given := [key for key, value in files.items() if value]:
                raise ValueError(f"data.synthetic generates the data, so {', '.join(given)} cannot be given too")
        elif missing := [key for key in ("schema", "train", "test") if not files[key]]:
            raise ValueError(f"{', '.join(missing)} missing; or generate data with [data.synthetic]")
        return self

    @property
    def record_schema(self) -> Schema:
        """The schema, whichever way it was given."""
        schema = self.synthetic.record_schema if self.synthetic else self.layout
        assert schema is not None  # the validator above saw to it
        return schema


class EnsembleSettings(_Table):
    """The search for the members' weights."""

    trials: int = Field(200, ge=0, description="random weightings beside the equal one")


class ModelSettings(_Table):
    """An architecture, and what its training does otherwise than `[training]` says; one table in TOML."""

    config: AnyTaggerConfig
    training: TrainingSettings = Field(TrainingSettings(), description="only the keys that are given count")

    @model_validator(mode="before")
    @classmethod
    def _split(cls, table: Any) -> Any:
        if not isinstance(table, Mapping):
            return table
        config = {key: value for key, value in table.items() if key != "training"}
        return {"config": config, **({"training": table["training"]} if "training" in table else {})}

    @model_serializer
    def _join(self) -> dict[str, Any]:
        training = self.training.model_dump(mode="json", exclude_unset=True)
        return self.config.model_dump(mode="json") | ({"training": training} if training else {})


class Recipe(_Table):
    """From shards to one file."""

    name: Name
    seed: int = Field(0, ge=0)
    budget_mb: float = Field(gt=0, description="most megabytes (10⁶ bytes) of the shipped file")
    data: DataSettings
    training: TrainingSettings = TrainingSettings()
    averaging: AveragingSettings | None = None
    ensemble: EnsembleSettings = EnsembleSettings()
    models: dict[Name, ModelSettings] = {}
    imported: dict[Name, Path] = Field({}, description="finished .reeltag files that join the ensemble")

    @field_validator("imported")
    @classmethod
    def _members(cls, value: dict[str, Path], info: ValidationInfo) -> dict[str, Path]:
        models = info.data.get("models")
        if models is not None and not models and not value:
            raise ValueError("no members; give at least one [models.NAME], or a file here")
        if twice := sorted(set(models or ()) & set(value)):
            raise ValueError(f"{', '.join(twice)} has a table under models already; choose another name")
        return value

    @property
    def budget(self) -> int:
        """Most bytes of the shipped file."""
        return round(self.budget_mb * 1e6)

    def training_of(self, model: str) -> TrainingSettings:
        """How a model is trained: as `[training]` says, but for what the model's own table says."""
        return self.training.model_copy(update=self.models[model].training.model_dump(exclude_unset=True))

    def dump(self) -> dict[str, Any]:
        """The whole recipe as JSON, defaults and all."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides the result: not where the data lie, nor where and with what help it runs."""
        content = self.model_dump(mode="json", exclude={"data": {"root"}, "training": NOT_DECISIVE, "imported": True})
        return content_hash(content)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: a TOML file.
        overrides: `dotted.key=value`, applied after reading; a value is TOML, or else a string.

    Raises:
        RecipeError: lists every fault with its key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(str(path), [f"cannot be read ({error.strerror})"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(str(path), [f"is not TOML: {error}"]) from error
    faults = [fault for override in overrides if (fault := _apply(table, override))]
    try:
        recipe = Recipe.model_validate(table, context={"widths": _widths(table)})
    except ValidationError as error:
        faults += [_describe(fault) for fault in error.errors()]
    if faults:
        raise RecipeError(str(path), faults)
    return recipe


def _widths(table: Mapping[str, Any]) -> tuple[int, ...]:
    """Widths of the features that the models will read; none where the data's table has faults of its own."""
    try:
        return DataSettings.model_validate(table.get("data")).record_schema.widths
    except ValidationError:
        return ()


def tagger_config(source: str, table: dict[str, Any], overrides: Sequence[str], widths: Sequence[int]) -> TaggerConfig:
    """A model's configuration from a table and `key=value` overrides.

    Raises:
        RecipeError: lists every fault with its key.
    """
    faults = [fault for override in overrides if (fault := _apply(table, override))]
    try:
        config = parse_config(table, widths)
    except ValidationError as error:
        place = ("models", source, "config")  # described as in a recipe
        in_recipe = [_describe({**fault, "loc": (*place, *fault["loc"])}) for fault in error.errors()]
        faults += [fault.removeprefix(f"models.{source}.") for fault in in_recipe]
    if faults:
        raise RecipeError(source, faults)
    return config


def synthetic_settings(overrides: Sequence[str]) -> SyntheticSettings:
    """Settings of generated data from `key=value` overrides.

    Raises:
        RecipeError: lists every fault with its key.
    """
    table: dict[str, Any] = {}
    faults = [fault for override in overrides if (fault := _apply(table, override))]
    try:
        settings = SyntheticSettings.model_validate(table)
    except ValidationError as error:
        faults += [_describe(fault) for fault in error.errors()]
    if faults:
        raise RecipeError("synthetic data", faults)
    return settings


def _apply(table: dict[str, Any], override: str) -> str | None:
    """Set one key; returns what is wrong with the override, if anything."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        return f"--set {override}: give it as dotted.key=value"
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            return f"--set {override}: {parent} is a value, not a table"
        table = inner
    table[last] = value
    return None


def _describe(fault: ErrorDetails) -> str:
    place = list(map(str, fault["loc"]))
    family = None
    if place[0] == "models" and len(place) > 2 and place[2] == "config":
        del place[2]  # the table of a model is split in two
        if len(place) > 2 and place[2] in FAMILIES:
            family = place.pop(2)  # pydantic names the branch that it chose
            family = family if len(place) == 3 else None  # its own keys, not those of a table within
    key = ".".join(place)
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        return f"{key}.family: choose one of {', '.join(FAMILIES)}"
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key" + _hint(place[-1], family)
    if fault["type"] == "missing":
        return f"{key}: is missing"
    if fault["type"] == "value_error":
        return f"{key}: {fault['msg'].removeprefix('Value error, ')}"
    given = fault["input"]
    if fault["type"] in ("model_type", "dict_type"):
        return f"{key}: should be a table, {{ key = value, … }}, not {given!r}"
    return f"{key}: {fault['msg']}" + ("" if isinstance(given, Mapping | BaseModel) else f", not {given!r}")


def _hint(key: str, family: str | None) -> str:
    """What may have been meant by a key that stands where it is not known."""
    here = list(FAMILIES[family][0].model_fields) if family else known_keys()
    if family and (others := [name for name, (config, _) in FAMILIES.items() if key in config.model_fields]):
        return f" of {family}, but of {', '.join(others)}; {family} has {', '.join(here)}"
    if (close := difflib.get_close_matches(key, here, n=1)) and close[0] != key:
        return f"; did you mean {close[0]!r}?"
    if key in known_keys():
        return " in this table; it belongs to another one, see docs/recipes.md"
    return f" of {family}, which has {', '.join(here)}" if family else ""


def known_keys() -> list[str]:
    """Every key that a recipe may have, in any table."""
    schema = Recipe.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    keys = {key for table in tables for key in table.get("properties", {})}
    return sorted(keys - {"config"})  # which is a model's own table
