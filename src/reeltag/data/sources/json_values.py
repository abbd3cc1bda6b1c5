"""JSON objects of features and labels."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from reeltag.core.errors import DataError
from reeltag.data.sources.videos import LABELS


def parse_object(text: str, place: str) -> dict[str, Any]:
    """Parse a JSON object; lists of numbers that are not labels become arrays of float64, as JSON has no other numbers.

    Args:
        text: the object.
        place: for messages.

    Raises:
        DataError: the text is no JSON object, repeats a key, or has ragged or mixed lists.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error}); correct it", file=place) from error
    if not isinstance(content, dict):
        raise DataError(f"is a JSON {type(content).__name__}, not an object {{…}} of a video", file=place)
    return {key: value if key.lower() in LABELS else _as_array(value, key, place) for key, value in content.items()}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return found


def _as_array(value: Any, name: str, place: str) -> Any:
    """Return a list of numbers, or of lists of numbers, as an array; anything else as it is."""
    first = value
    while isinstance(first, list) and first:
        first = first[0]
    if not isinstance(value, list) or isinstance(first, str | dict):
        return value
    try:
        array = np.array(value)
    except ValueError as error:
        raise DataError(f"{name!r} has frames of different widths; all need the same number", file=place) from error
    if value and array.dtype.kind not in "iuf":
        raise DataError(f"{name!r} holds something else than numbers, such as null, true or text", file=place)
    return array.astype(np.float64)
