"""Recipes and descriptions of machines that come with reeltag, by name."""

from __future__ import annotations

import re
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.text import did_you_mean

FOLDER = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def names(folder: Path = FOLDER) -> list[str]:
    """Return the names of the recipes that come with reeltag, or of the files in another folder of it."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def path_of(given: str | Path, folder: Path = FOLDER) -> Path:
    """Return the path of a file that comes with reeltag, by its name; anything that is not a name is a path already.

    Args:
        given: a path, or a name, which has only letters, digits, `-` and `_`.
        folder: folder of the names.

    Raises:
        UsageError: no file has this name.
    """
    if isinstance(given, Path) or not _NAME.fullmatch(given):
        return Path(given)
    known = names(folder)
    if given not in known:
        hint = did_you_mean(given, known) or f"there are {', '.join(known)}."
        kind = "recipe" if folder == FOLDER else "description"
        raise UsageError(f"no {kind} named {given!r} comes with reeltag; {hint} A file of this name is ./{given}")
    return folder / f"{given}.toml"


def is_shipped(path: Path) -> bool:
    """Return True if a recipe came with reeltag, so that its folder is not that of anyone's data."""
    return path.resolve().parent == FOLDER.resolve()


def description(path: Path) -> str:
    """Return the first comment of a recipe, up to its commands."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text or text.startswith("reeltag "):
            break
        lines.append(text)
    return " ".join(lines)
