"""Registration of families that are defined outside reeltag."""

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
    """Register a family; required before any recipe or model of it is read.

    Recipes, training, quantization, model files and all modes then support the family; ONNX export does not. Every
    process that reads its recipes or loads its models must register it, so call this at the top of a module: worker
    processes import that module too. The same family may be registered again, as happens in a notebook.

    Args:
        name: of the family, as in `family = "NAME"` of a recipe.
        config: class of its configuration, in which `family` is `Literal["NAME"]`.
        pooling: builds the pooling from a configuration and the widths D_f of the features.

    Raises:
        UsageError: another family has this name, or the configuration names another family.
    """
    known = FAMILIES.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (config.__module__, config.__qualname__):
        raise UsageError(f"family {name!r}: is registered already, with another configuration; choose another name")
    if get_args(config.model_fields["family"].annotation) != (name,):
        raise UsageError(f'family {name!r}: {config.__name__} should say family: Literal["{name}"]')
    FAMILIES[name], POOLINGS[name] = config, pooling
    for table in (*HEADERS, ModelSettings, StudentSettings, Recipe):
        table.model_rebuild(force=True)
    known_keys.cache_clear()
