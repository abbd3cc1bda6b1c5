"""Match the classes of a data set with those of a model that was trained on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reeltag.core.errors import UsageError
from reeltag.core.text import MAX_LISTED, NAME_SEPARATOR
from reeltag.data.vocabulary import nfc

Names = Sequence[str] | None


@dataclass(frozen=True)
class ClassMatch:
    """Classes of a data set, C in all, matched with those of a model.

    Attributes:
        sources: [C] number of each class in the model; None for a new class.
        by: what classes were matched by, `name` or `number`.
        new: names of the classes that the model does not have, or their numbers.
        dropped: names of the classes that the model alone has, or their numbers.
    """

    sources: tuple[int | None, ...] = field(repr=False)
    by: str
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def kept(self) -> int:
        """Number of classes that both have."""
        return len(self.sources) - len(self.new)

    def __str__(self) -> str:
        """Describe the match on one line, with the first names."""
        noun = "class" if len(self.sources) == 1 else "classes"
        kept = f"{self.kept:,} of {len(self.sources):,} {noun} kept by {self.by}"
        changes = {"new": self.new, "dropped": self.dropped}
        return ", ".join([kept, *(f"{len(each):,} {how}{_first(each)}" for how, each in changes.items() if each)])


def match_classes(names: Names, classes: int, model_names: Names, model_classes: int) -> ClassMatch:
    """Match classes by their names, or by their numbers where one side has no names.

    Args:
        names: [C] names of the data set's classes, or None.
        classes: C.
        model_names: names of the model's classes, or None.
        model_classes: their number.

    Raises:
        UsageError: a name stands for two classes, or only one side has names and the numbers of classes differ.
    """
    if names is None or model_names is None:
        if classes != model_classes and (names is not None or model_names is not None):
            which = "it names them, and data.label_names is missing" if names is None else "it does not name them"
            how = "give the names of the recipe's classes" if names is None else "start from a file that names them"
            raise UsageError(f"has {model_classes:,} classes and the recipe {classes:,}, and {which}; {how}")
        names, model_names, by = list(map(str, range(classes))), list(map(str, range(model_classes))), "number"
    else:
        names, model_names, by = list(map(nfc, names)), list(map(nfc, model_names)), "name"
    if names == model_names:  # names may occur twice then
        return ClassMatch(tuple(range(classes)), by, (), ())
    numbers = _numbers(model_names, "its classes")
    _numbers(names, "the recipe's classes")
    sources = tuple(map(numbers.get, names))
    new = tuple(name for name in names if name not in numbers)
    dropped = tuple(name for name in model_names if name not in set(names))
    return ClassMatch(sources, by, new, dropped)


def _numbers(names: Sequence[str], whose: str) -> dict[str, int]:
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        if (other := numbers.setdefault(name, number)) != number:
            raise UsageError(f"{whose} {other} and {number} are both called {name!r}; give them different names")
    return numbers


def _first(names: Sequence[str]) -> str:
    more = len(names) - MAX_LISTED
    listed = NAME_SEPARATOR.join(names[:MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")
    return f" ({listed})"
