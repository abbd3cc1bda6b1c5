"""Text that came from files, made safe to show."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """Text without characters that a terminal would obey or that YAML forbids; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def plain(value: object) -> str:
    """One line of printable text."""
    return " ".join(printable(str(value)).split())


def escaped(value: object) -> str:
    """One line in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_\[\]<>&|~$#])", r"\\\1", plain(value))
