"""Valid recipes, every key that they may have, and the possible faults of each."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel, StringConstraints

from reeltag.models.families import FAMILIES
from reeltag.recipe.schema import ModelSettings, Recipe, StudentSettings

Path = tuple[str, ...]
MODELS = {family: {"family": family} for family in FAMILIES}
SOUND = {
    "name": "x",
    "budget_mb": 1,
    "models": MODELS,
    "averaging": {},
    "distillation": {},
    "students": {"first": {"family": "mean"}, "second": {"family": "mean", "level": 2}},
}
WITH_FILES = SOUND | {
    "data": {
        "schema": {"features": [{"name": "rgb", "width": 64}, {"name": "audio", "width": 16}], "classes": 9},
        "train": ["train-*"],
        "test": ["test-*"],
        "holdout": {"fraction": 0.1},
        "root": "/no/such/folder",
    }
}
GENERATED = SOUND | {"data": {"synthetic": {}, "holdout": {"fraction": 0.1}, "root": "/no/such/folder"}}


@dataclass(frozen=True)
class Fault:
    """Something wrong in a recipe.

    Attributes:
        edits: keys that are set; None removes one.
        said: how a fault in the message begins.
        of: keys that must have no other fault, because this one is about them.
    """

    edits: tuple[tuple[Path, Any], ...]
    said: str
    of: tuple[Path, ...]

    def meets(self, other: "Fault") -> bool:
        """Return True if both faults concern the same key or table."""
        return any(one[: len(two)] == two[: len(one)] for one in self.of for two in other.of)


def faulty(table: dict[str, Any], *faults: Fault) -> dict[str, Any]:
    """Return a copy of a recipe with faults added."""
    table = deepcopy(table)
    for path, value in (edit for fault in faults for edit in fault.edits):
        inner = table
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        if value is None:
            inner.pop(path[-1], None)
        else:
            inner[path[-1]] = deepcopy(value)
    return table


def keys(table: dict[str, Any], model: type[BaseModel] = Recipe, at: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """Yield every key that a recipe may have: its path, its type and the constraints on its values."""
    for name, field in model.model_fields.items():
        path = (*at, field.alias or name)
        if name == "config":
            continue
        yield path, field.annotation, field.metadata
        inner = next((each for each in parts(field.annotation) if is_table(each)), None)
        if inner is not None and (name != "synthetic" or "synthetic" in table["data"]):
            yield from keys(table, inner, path)
    for section, settings in (("models", ModelSettings), ("students", StudentSettings)) if not at else ():
        for name, entry in table[section].items():
            yield from keys(table, settings, (section, name))
            yield from keys(table, FAMILIES[entry["family"]], (section, name))


def parts(annotation: Any) -> list[Any]:
    """Return the types of a union, without constraints."""
    if get_origin(annotation) is Annotated:
        return parts(get_args(annotation)[0])
    inner = get_args(annotation) if get_origin(annotation) is not Literal else ()
    union = inner and get_origin(annotation) not in (tuple, dict, list)
    return [part for each in inner for part in parts(each)] if union else [annotation]


def is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def faults(table: dict[str, Any]) -> list[Fault]:
    """Return faults for each key: misspelled, with a value of a wrong type, and with values out of range."""
    found = []
    for path, annotation, limits in keys(table):
        *above, key = path
        about = (path,) if key != "family" else (tuple(above),)  # without the family no key of a model is known
        dotted = ".".join(path)
        misspelled = (*above, f"{key}q")
        found.append(Fault(((misspelled, 1),), f"{'.'.join(misspelled)}: unknown key", (misspelled,)))
        kinds = parts(annotation)
        table_or_list = any(is_table(kind) or get_origin(kind) in (dict, tuple) for kind in kinds)
        found.append(Fault(((path, 7 if table_or_list else {"x": 1}),), dotted, about))
        found += [Fault(((path, value),), dotted, about) for value in outside(kinds, limits)]
    return found


def outside(kinds: list[Any], limits: list[Any]) -> Iterator[Any]:
    """Yield values of the right type that violate the constraints of a key."""
    if any(get_origin(kind) is Literal for kind in kinds):
        yield "nonsense"
    for limit in limits:
        if isinstance(limit, annotated_types.Ge):
            yield limit.ge - 1
        if isinstance(limit, annotated_types.Gt):
            yield limit.gt
        if isinstance(limit, annotated_types.Le):
            yield limit.le + 1
        if isinstance(limit, annotated_types.Lt):
            yield limit.lt
        if isinstance(limit, annotated_types.MultipleOf):
            yield limit.multiple_of + 1
        if isinstance(limit, StringConstraints):
            yield "not a name"
    if float in kinds:
        yield float("nan")


def contradiction(said: str, **edits: Any) -> Fault:
    """Build a fault between keys that are each valid; keys are written `models__NAME__KEY`."""
    paths = {tuple(key.split("__")): value for key, value in edits.items()}
    return Fault(tuple(paths.items()), said, tuple(paths))


ANYWHERE = [
    contradiction("data.holdout.shards: give either", data__holdout={"fraction": 0.1, "shards": 2}),
    contradiction("models.mean.head.experts: 3 needs kind", models__mean__head={"kind": "logistic", "experts": 3}),
    contradiction(
        "models.netvlad.activation: 'relu6' needs a hidden layer",
        models__netvlad__hidden=0,
        models__netvlad__activation="relu6",
    ),
    Fault(
        ((("models", "dbof", "clusters"), 7),),
        "models.dbof.clusters: 7 must be at least 8",
        (("models", "dbof"), ("data", "schema"), ("data", "synthetic")),
    ),
    contradiction(
        "models.attention.heads: 5 must divide width",
        models__attention={"family": "attention", "width": 12, "heads": 5},
    ),
    contradiction("models.netfv.coupling: 0.5 needs centres", models__netfv__coupling=0.5),
    contradiction("models.rnn.gating.norm: False needs kind", models__rnn__gating={"kind": "se", "norm": False}),
    contradiction("distillation.folds: one fold", distillation__folds=1),
    contradiction("models.mean.grid: hidden must be a list", models__mean__grid={"hidden": 16}),
]
BESIDE_MODELS = [  # about all models, so that none of them may have another fault
    Fault(
        ((("students", "third"), {"family": "mean", "teachers": ["rnnn"]}),),
        "students: third: no model of rnnn to teach it",
        (("models",), ("students",), ("distillation",)),
    ),
    Fault(
        ((("imported",), {"mean": "x.reeltag"}),),
        "imported: mean has a table under models already",
        (("models",), ("imported",)),
    ),
    Fault(
        ((("imported",), {"rnn-student-1": "x.reeltag"}),),
        "imported: rnn-student-1: is the name of a student that [distillation] adds",
        (("models",), ("imported",), ("distillation",)),
    ),
]
OF_FILES = [
    contradiction("data.schema.dtype: video-level", data__schema__level="video", data__schema__dtype="uint8"),
    Fault(
        ((("data", "schema", "features"), [{"name": "rgb", "width": 8}] * 2),),
        "data.schema.features: each name",
        (("data", "schema", "features"), ("models",)),
    ),
    Fault(
        ((("models", "nextvlad", "groups"), 6),),
        "models.nextvlad.groups: 6 must divide",
        (("models", "nextvlad"), ("data", "schema"), ("data", "synthetic")),
    ),
]
OF_GENERATED = [
    Fault(
        ((("data", "train"), ["train-*"]),),
        "data.synthetic: generates the data, so train",
        (("data", "train"), ("data", "synthetic")),
    ),
    contradiction("data.synthetic.shards: each shard", data__synthetic__shards=30, data__synthetic__test_videos=20),
    contradiction("data.synthetic.frames: the fewest", data__synthetic__frames=[30, 20]),
    contradiction(
        "data.synthetic.order_pairs: two classes", data__synthetic__order_pairs=30, data__synthetic__classes=20
    ),
]
