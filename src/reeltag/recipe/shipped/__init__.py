"""The recipes and machines that come with reeltag, by their names."""

from __future__ import annotations

import re
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.text import did_you_mean

FOLDER = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def names(folder: Path = FOLDER) -> list[str]:
    """The recipes that come with reeltag, or what else lies in a folder of it."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def path_of(given: str | Path, folder: Path = FOLDER) -> Path:
    """The file of a shipped recipe, for a name; any other text is a path and stays one.

    Args:
        given: a name has letters, digits, `-` and `_` alone.
        folder: where names are looked up.

    Raises:
        UsageError: a name that there is not.
    """
    if isinstance(given, Path) or not _NAME.fullmatch(given):
        return Path(given)
    known = names(folder)
    if given not in known:
        hint = did_you_mean(given, known) or f"there are {', '.join(known)}."
        kind = "recipe" if folder == FOLDER else "description"
        raise UsageError(f"no {kind} named {given!r} comes with reeltag; {hint} A file of this name is ./{given}")
    return folder / f"{given}.toml"


def description(path: Path) -> str:
    """What a recipe's first comment says, up to its commands."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text or text.startswith("reeltag "):
            break
        lines.append(text)
    return " ".join(lines)
