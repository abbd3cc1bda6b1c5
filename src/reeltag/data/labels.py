"""Read the labels of a video in any form that people write them in: class numbers, N-hot, names or ids.

The form is told or found. It is found from all labels together, and only if no other form fits them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from reeltag.core.errors import UsageError
from reeltag.core.text import is_utf8
from reeltag.core.validation import format_value
from reeltag.data.vocabulary import MAX_CLASSES, Vocabulary, class_number, named, nfc

Encoding = Literal["index", "n-hot", "name"]

_BETWEEN = re.compile(r"[\s,;|]+")  # between numbers or ids, which hold none of these
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)
_ID = re.compile(r"/[a-z]/[\w-]+")
_DECIMAL = re.compile(r"\d+,0+")  # 3.0, as spreadsheets of some countries write it
_TRUTH = {"true": 1, "false": 0}
_TELL = "set label_encoding to index, n-hot or name"

Token = str | float  # bool is a number


class RawLabels(NamedTuple):
    """Labels of a video as they were found.

    Attributes:
        place: file, and line or record, for messages.
        id: of the video.
        raw: a list of numbers, truth values or names, an array of them, one text with separators, or None.
    """

    place: str
    id: str
    raw: Any


@dataclass(frozen=True)
class LabelForm:
    """The form of a data set's labels, and their classes.

    Attributes:
        encoding: `index`, a list of class numbers; `n-hot`, 0 or 1 for every class; `name`, a list of names or ids.
        classes: C.
        vocabulary: names of the classes; None if they have none.
        separator: between the names of a text, "" if a text is one name; or the vocabulary whose names a text has.
    """

    encoding: Encoding
    classes: int
    vocabulary: Vocabulary | None
    separator: str | Vocabulary

    def numbers(self, labels: RawLabels) -> list[int]:
        """Return the class numbers of a video, in the order in which they are given; one may occur twice.

        Raises:
            UsageError: the labels have another form, or name an unknown class.
        """
        tokens = _split(labels, self.separator)
        try:
            if self.encoding == "n-hot":
                return self._present(tokens)
            if self.encoding == "index":
                return [self._number(token) for token in tokens]
            assert self.vocabulary is not None
            return [self.vocabulary.number(str(token)) for token in tokens]
        except UsageError as error:
            raise _fault(labels, str(error)) from error

    def _present(self, tokens: Sequence[Token]) -> list[int]:
        if not tokens:
            return []
        values = [_value(token) for token in tokens]
        if odd := [token for token, value in zip(tokens, values, strict=True) if value not in (0, 1)]:
            raise UsageError(f"{odd[0]!r} among N-hot labels, which are 0 or 1; {_TELL}")
        if len(values) != self.classes:
            raise UsageError(f"has {len(values)} N-hot labels for {self.classes} classes; give one for every class")
        return [number for number, value in enumerate(values) if value]

    def _number(self, token: Token) -> int:
        number = _index(token)
        if number is None:
            raise UsageError(f"{token!r} is not the number of a class, 0 to {MAX_CLASSES - 1:,}; {_TELL}")
        if number >= self.classes:
            raise UsageError(f"label {number} is outside the {self.classes} classes 0 to {self.classes - 1}")
        return number


def find_form(
    found: Iterable[RawLabels],
    *,
    encoding: Encoding | None = None,
    vocabulary: Vocabulary | None = None,
    classes: int | None = None,
    source: str = "the source",
) -> LabelForm:
    """Find the form of a data set's labels.

    Args:
        found: labels of all videos, or of so many that they show the form and have all names; read twice.
        encoding: the form, where it is known.
        vocabulary: names of the classes; without it, names are numbered in sorted order.
        classes: C; by default that of the vocabulary, or one more than the highest class.
        source: of the labels, for messages.

    Raises:
        UsageError: no video has labels, or they may be read in two ways.
    """
    if vocabulary and classes not in (None, vocabulary.classes):
        raise UsageError(f"{source}: has {classes} classes, but the label names {vocabulary.classes}; give all names")
    classes = vocabulary.classes if vocabulary else classes
    separator = vocabulary or _separator(found, source)
    seen = _Seen()
    for each in found:
        seen.see(each, _split(each, separator))
    if not seen.tokens:
        raise UsageError(f"{source}: gives no video a label; check the columns, and how labels are written")
    if encoding is None:
        encoding = seen.encoding(vocabulary)
        if encoding == "index":
            _refuse_decimals(found)
    if encoding == "n-hot":
        return LabelForm(encoding, classes or seen.longest, vocabulary, separator)
    if encoding == "index":
        highest = max((_index(token) or 0 for token in seen.tokens), default=0)
        return LabelForm(encoding, classes or highest + 1, vocabulary, separator)
    known = vocabulary or named(sorted({nfc(str(token)) for token in seen.tokens}))
    if classes not in (None, known.classes):
        raise UsageError(f"{source}: names {known.classes} classes, not {classes}; give the names of all classes")
    return LabelForm(encoding, known.classes, known, separator)


class _Seen:
    """Distinct labels of a data set, and what all lists of them have in common.

    Attributes:
        tokens: each distinct label, and where it was first seen.
        longest: number of labels of the video that has most.
    """

    def __init__(self) -> None:
        self.tokens: dict[Token, RawLabels] = {}
        self.longest = 0
        self._shortest = MAX_CLASSES
        self._truths = True  # all labels are truth values; in the dictionary, True is 1

    def see(self, labels: RawLabels, tokens: Sequence[Token]) -> None:
        """Add the labels of a video."""
        if not tokens:
            return
        self.longest = max(self.longest, len(tokens))
        self._shortest = min(self._shortest, len(tokens))
        for token in tokens:
            if token not in self.tokens or (self._truths and not isinstance(token, bool)):
                self.tokens.setdefault(token, labels)
                self._truths &= isinstance(token, bool) or str(token).lower() in _TRUTH

    def encoding(self, vocabulary: Vocabulary | None) -> Encoding:
        """Return the only encoding that all labels fit.

        Raises:
            UsageError: there are several.
        """
        if self._truths:
            if self.longest == 1:
                (token, first), *_ = self.tokens.items()
                what = f"every video has one label, such as {token!r}, which may be of one class (n-hot) or a name"
                raise _fault(first, f"{what}; {_TELL}")
            return "n-hot"
        numbers = [token for token in self.tokens if _value(token) is not None]
        if len(numbers) < len(self.tokens):
            if numbers and vocabulary is None:
                what = f"{numbers[0]!r} is a number among names of classes; {_TELL}, or give the label names"
                raise _fault(self.tokens[numbers[0]], what)
            return "name"
        if 1 < self.longest == self._shortest and all(_value(token) in (0, 1) for token in numbers):
            what = f"every video has {self.longest} labels, all of them 0 or 1: N-hot or the classes 0 and 1"
            raise _fault(self.tokens[numbers[0]], f"{what}; {_TELL}")
        for token in numbers:
            if vocabulary and str(token) in vocabulary and _index(token) != vocabulary.number(str(token)):
                what = f"{token} is the number of one class and the name of another; {_TELL}"
                raise _fault(self.tokens[token], what)
        return "index"


def _split(labels: RawLabels, separator: str | Vocabulary) -> list[Token]:
    """Return the labels as a list of numbers and names."""
    raw = labels.raw.tolist() if isinstance(labels.raw, np.ndarray | np.generic) else labels.raw
    if isinstance(raw, bytes):
        raw = _decoded(labels, raw)
    if isinstance(raw, str):
        text = raw.strip()
        raw = _listed(labels, text) if text.startswith("[") else _pieces(labels, text, separator)
    if raw is None:
        return []
    return [_token(labels, each) for each in (raw if isinstance(raw, list | tuple) else [raw])]


def _token(labels: RawLabels, given: Any) -> Token:
    if isinstance(given, bytes):
        given = _decoded(labels, given)
    if isinstance(given, str) and (name := nfc(given)) and name.lower() != "nan" and is_utf8(name):
        return name
    if given is None or isinstance(given, str) or given != given:  # NaN differs from itself
        raise _fault(labels, f"a label is {given!r}; leave it out if there is none")
    if not isinstance(given, str | int | float):
        raise _fault(labels, f"{format_value(given)} is not a label; give numbers or names")
    return given


def _decoded(labels: RawLabels, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise _fault(labels, f"the label {raw!r} is not UTF-8") from error


def _listed(labels: RawLabels, text: str) -> list[Any]:
    """Read a list in a cell, as JSON or Python write it."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    how = 'write it as JSON, such as [1, 2] or ["a", "b"], or the labels alone, separated by |'
    raise _fault(labels, f"{format_value(text)} is not a list; {how}")


def _pieces(labels: RawLabels, text: str, separator: str | Vocabulary) -> list[str]:
    """Split a text at what separates its labels."""
    if not text:
        return []
    if _plain(text):
        return _BETWEEN.split(text.strip(" ,;|"))
    if isinstance(separator, str):
        return _at(text, separator)
    splits = {tuple(_at(text, each)) for each in ("", "|", ";", ",", " ")}
    ways = {pieces for pieces in splits if all(piece in separator for piece in pieces)}
    if len(ways) > 1:
        raise _fault(labels, f"{format_value(text)} may be one class or several; separate names by |, or write a list")
    return list(ways.pop()) if ways else _at(text, "|" if "|" in text else ";")


def _at(text: str, separator: str) -> list[str]:
    return [piece.strip() for piece in text.split(separator) if piece.strip()] if separator else [text]


def _plain(text: str) -> bool:
    """Tell if a text consists of numbers, or of ids such as /m/01mw1, with anything between them."""
    if text[:1].isalpha():
        return False
    words = [word for word in _BETWEEN.split(text) if word]
    return all(_NUMBER.fullmatch(word) for word in words) or all(_ID.fullmatch(word) for word in words)


def _separator(found: Iterable[RawLabels], source: str) -> str:
    """Find the separator of the names in texts: | or ;. Beside one of these, commas are parts of names."""
    used: set[str] = set()
    comma = None
    for each in found:
        text = each.raw.strip() if isinstance(each.raw, str) else ""
        if not text.startswith("[") and not _plain(text):
            used |= {separator for separator in "|;" if separator in text}
            comma = each if comma is None and "," in text else comma
    if len(used) > 1:
        raise UsageError(f"{source}: has | and ; in them; separate labels by one of the two, or give the label names")
    if comma and not used:
        how = "separate names by |, write a list, or give the label names"
        raise _fault(comma, f"{format_value(comma.raw)} may be one name or several; {how}")
    return used.pop() if used else ""


def _refuse_decimals(found: Iterable[RawLabels]) -> None:
    """Refuse class numbers that all look like 3,0, which may be one class with a decimal comma or two classes."""
    texts = [each for each in found if isinstance(each.raw, str) and each.raw.strip()]
    if texts and all(_DECIMAL.fullmatch(each.raw.strip()) for each in texts):
        what = f"every video has labels such as {texts[0].raw.strip()!r}, which may be one class or two"
        raise _fault(texts[0], f"{what}; write whole numbers, or set label_encoding to index if they are two")


def _value(token: Token) -> float | None:
    """Return the number that a token is, or its truth value; None if it is a name."""
    if isinstance(token, str):
        return _TRUTH.get(token.lower(), float(token) if _NUMBER.fullmatch(token) else None)
    return float(token)


def _index(token: Token) -> int | None:
    """Return the class number that a token is; spreadsheets and NumPy may write 3 as 3.0."""
    if isinstance(token, bool):
        return None
    if isinstance(token, str):
        return class_number(re.sub(r"\.0*$", "", token))
    return int(token) if 0 <= token < MAX_CLASSES and token == int(token) else None


def _fault(labels: RawLabels, reason: str) -> UsageError:
    return UsageError(f"{labels.place}: {labels.id!r}: {reason}")
