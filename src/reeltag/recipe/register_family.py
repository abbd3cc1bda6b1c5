"""Families that are defined outside reeltag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from reeltag.artifact.file import HEADERS
from reeltag.core.errors import UsageError
from reeltag.models.config import TaggerConfig
from reeltag.models.families import FAMILIES
from reeltag.models.layers import Pooling
from reeltag.models.tagger import POOLINGS
from reeltag.recipe.load import known_keys
from reeltag.recipe.schema import ModelSettings, Recipe, StudentSettings


def register_family(name: str, config: type[TaggerConfig], pooling: Callable[[Any, Sequence[int]], Pooling]) -> None:
    """Add a family, before a recipe or a model of it is read.

    Recipes, training, quantisation, the file and all modes know it from there on; ONNX does not. A process that did not
    register it can neither read its recipes nor load its models, so do it at the top of a module: the processes of
    `devices` import that too. The same family may be registered again, as a notebook does.

    Args:
        name: as `family = "NAME"` of a recipe has it.
        config: its keys; `family` is `Literal["NAME"]` there.
        pooling: makes the pooling from a configuration and the widths D_f of the features.

    Raises:
        UsageError: another family has the name, or the configuration has another.
    """
    known = FAMILIES.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (config.__module__, config.__qualname__):
        raise UsageError(f"family {name!r}: there is one already; choose another name")
    if get_args(config.model_fields["family"].annotation) != (name,):
        raise UsageError(f'family {name!r}: {config.__name__} should say family: Literal["{name}"]')
    FAMILIES[name], POOLINGS[name] = config, pooling
    for table in (*HEADERS, ModelSettings, StudentSettings, Recipe):
        table.model_rebuild(force=True)
    known_keys.cache_clear()
