"""Names of classes that Hugging Face's `datasets` keeps beside the numbers of a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reeltag.core.environment import install_command
from reeltag.core.errors import DataError, UsageError

DAMAGE = (ValueError, TypeError, LookupError, AttributeError)  # what datasets raises where its JSON is damaged


def import_datasets() -> Any:
    """Import Hugging Face's `datasets`.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"data of Hugging Face datasets needs datasets ({error}): {install_command('import')}"
        ) from error
    return datasets


def class_names(schema: Any, path: Path) -> dict[str, Sequence[str]]:
    """Return the names of the classes that the numbers of a column stand for, by column.

    Hugging Face's `datasets` keeps them beside the columns, and each file may number the classes in its own order.

    Args:
        schema: of pyarrow.
        path: of the file, for messages.

    Raises:
        UsageError: there are such names, but datasets is not installed.
        DataError: the names are damaged.
    """
    if b'"ClassLabel"' not in (schema.metadata or {}).get(b"huggingface", b""):
        return {}
    datasets = import_datasets()
    try:
        return names_of(datasets.Features.from_arrow_schema(schema))
    except DAMAGE as error:
        raise DataError(f"its names of classes cannot be read ({error!r}); write it again", file=str(path)) from error


def names_of(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """Return the names of the classes of each column that holds class numbers, from a description by `datasets`."""
    inner = {name: getattr(feature, "feature", feature) for name, feature in features.items()}
    return {name: feature.names for name, feature in inner.items() if isinstance(feature, import_datasets().ClassLabel)}


def named_classes(labels: Any, names: Sequence[str], place: str) -> list[str] | None:
    """Return the names of a video's classes; None where it has none, as -1 says.

    Args:
        labels: number of a class, or a list of them.
        names: of the classes.
        place: of the video, for messages.

    Raises:
        DataError: a number without a name.
    """
    numbers = labels if isinstance(labels, list) else [labels]
    if numbers in ([None], [-1]):
        return None
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise DataError(f"label {number} is none of the {len(names)} classes that the file names", file=place)
    return [names[number] for number in numbers]
