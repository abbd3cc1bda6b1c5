"""What reeltag runs on: versions, the state of the repository, and the device."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from reeltag.core.errors import UsageError
from reeltag.core.version import __version__

OPENMP_SPIN_COUNT = "1000"  # tens of microseconds
PACKAGES = ("torch", "lightning-fabric", "numpy", "pydantic", "protobuf", "google-crc32c")


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {"python": platform.python_version(), "reeltag": __version__} | {name: version(name) for name in PACKAGES}


def describe_environment(recipe: Path) -> dict[str, Any]:
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


def cpuinfo_value(key: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What Linux says of its first processor, such as its `model name`; empty where nobody says."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in told if name.strip() == key), "")


def available_cpus() -> int:
    """How many processors this process may keep busy."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute with one thread in a block; with more, the last bit of a sum depends on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def onnx_runtime(extra: str) -> ModuleType:
    """The module onnxruntime, which sends nothing to anybody.

    Args:
        extra: of reeltag, that brings it.

    Raises:
        UsageError: it is missing.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # it reads this when it is imported
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"onnxruntime is not installed; `pip install 'reeltag[{extra}]'`") from error
    return onnxruntime  # type: ignore[no-any-return]


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


def limit_openmp_spinning() -> None:
    """Let OpenMP's threads sleep after a short while of waiting, unless the environment says how they wait.

    By default they spin for milliseconds, which on a machine with other work to do keeps those from the processor that
    they wait for. Only what is loaded later, torch above all, heeds it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPIN_COUNT)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as in malloc.h
