"""Videos that a Python program yields."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import DataError, UsageError
from reeltag.data.sources.conversion import to_feature
from reeltag.data.sources.videos import FEATURES, SourceVideo, as_id, as_labels

# A video: its id, its features (one array or arrays by name), and its labels or None.
Item = tuple[str, Any, Any]
Items = Iterable[Item] | Callable[[], Iterable[Item]]


@dataclass(frozen=True)
class PythonVideos:
    """Videos in an iterable that can be iterated several times, or that a function returns.

    Args:
        items: the videos.
        wanted: names of the features to read; by default all.

    Raises:
        UsageError: the iterable is used up after one pass.
    """

    items: Items
    wanted: tuple[str, ...] = ()
    kind = "Python"

    def __post_init__(self) -> None:
        if not callable(self.items) and (not isinstance(self.items, Iterable) or isinstance(self.items, Iterator)):
            what = f"{type(self.items).__name__} cannot be iterated twice, which an import does"
            raise UsageError(f"{what}; give a list, or the function that returns the iterator")

    def parts(self) -> Sequence[str]:
        """Return one part, as the videos come in one order."""
        return ("",)

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos in order.

        Raises:
            DataError: something that is not a video.
        """
        for number, item in enumerate(self.items() if callable(self.items) else self.items):
            place = f"video {number}"
            if not isinstance(item, tuple) or len(item) != 3:
                raise DataError(f"is a {type(item).__name__}; give a tuple of id, features and labels", file=place)
            name, given, labels = item
            if (known := as_id(name)) is None:
                raise DataError(f"its id is {name!r}; give text or a whole number", file=place)
            arrays = given if isinstance(given, Mapping) else {FEATURES: given}
            if missing := [key for key in self.wanted if key not in arrays]:
                raise DataError(f"no feature {missing[0]!r}; it has {', '.join(arrays)}", file=place)
            place = f"{place}, {known!r}"
            features = {key: _array(arrays[key], key, place) for key in self.wanted or sorted(arrays)}
            yield SourceVideo(known, features, as_labels(labels), place)


def _array(values: Any, name: str, place: str) -> npt.NDArray[Any]:
    try:
        return to_feature(np.asanyarray(values), name, place)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name!r} is not an array: {error}", file=place) from error
