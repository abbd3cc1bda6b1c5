"""What reeltag runs on: versions, the state of the repository, and the device."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from reeltag.errors import UsageError

PACKAGES = ("torch", "lightning-fabric", "numpy", "pydantic", "protobuf", "google-crc32c")


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("reeltag", *PACKAGES)}


def surroundings(recipe: Path) -> dict[str, Any]:
    """What a run was made with; it is kept beside the results and decides none of them.

    Args:
        recipe: the file.

    Returns:
        `versions`, and `git`: the `commit` of the repository that the recipe lies in, and whether tracked files or the
        recipe differ from it (`dirty`); None where there is no repository, or no git.
    """
    return {"versions": versions(), "git": _git_state(recipe)}


def _git_state(file: Path) -> dict[str, Any] | None:
    commit = _git(file, "rev-parse", "HEAD")
    tracked, own = _git(file, "status", "--porcelain", "-uno"), _git(file, "status", "--porcelain", "--", file.name)
    if commit is None or tracked is None or own is None:
        return None
    return {"commit": commit, "dirty": bool(tracked or own)}


def _git(file: Path, *arguments: str) -> str | None:
    """What git says in a file's folder; None where it cannot say it."""
    command = ["git", "-C", str(file.resolve().parent), *arguments]
    try:
        said = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:  # no git
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def check_device(name: str) -> None:
    """See that a device is there before work starts.

    Raises:
        UsageError: it is not.
    """
    import torch

    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(name):
        raise UsageError(f"training.device: there is no {name} here; use 'auto' or 'cpu', and see `reeltag doctor`")


def default_device() -> str:
    """The device that predicts: a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next step, where glibc allocates.

    Otherwise every large tensor is given back to the system and comes again as new pages, each of them filled with
    zeros first: half the time of a training step of 321 M weights.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as in malloc.h
