"""Format text for people: safe to print, escaped, counted, and as TOML."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_LISTED = 5  # lines of a list

NAME_SEPARATOR = " · "  # names of classes, which may have commas


def printable(text: str) -> str:
    """Replace characters that would control a terminal or that YAML forbids by spaces; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def same_form(text: str) -> str:
    """Return text in Unicode's composed form, so that names compare equal that look the same.

    Names of files from macOS are decomposed: é is e and an accent there.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def is_utf8(text: str) -> bool:
    """Return True if text can be written in UTF-8, unlike names of files in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(value: object) -> str:
    """Format a value as one line of printable text."""
    return " ".join(printable(str(value)).split())


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a question that suggests the closest known word; empty if none is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close and close[0] != given else ""


def escaped(value: object) -> str:
    """Format a value as one line with the characters of Markdown and HTML escaped."""
    return re.sub(r"([\\`*_\[\]<>&|~$#])", r"\\\1", one_line(value))


def toml(value: Any) -> str:
    """Format a value as TOML on one line; None becomes `none`, since TOML has no null."""
    import tomli_w

    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(each)}' for key, each in value.items())} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return "none" if value is None else tomli_w.dumps({"value": value}).removeprefix("value = ").rstrip()


def megabytes(size: int) -> str:
    """Format a size in bytes, with MB = 10⁶ bytes."""
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size:,} bytes"


def counted(count: int, noun: str) -> str:
    """Format a count and its noun, in the plural if needed."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def first_lines(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list, and a last line that counts the rest."""
    more = len(lines) - MAX_LISTED
    return [*lines[:MAX_LISTED], *([f"and {more:,} more"] if more > 0 else [])]
