"""Environment of a run: package versions, state of the git repository, CPUs and devices."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from reeltag.core.errors import UsageError
from reeltag.core.version import __version__

OPENMP_SPIN_COUNT = "1000"  # tens of microseconds
GPU_PROVIDER = "CUDAExecutionProvider"  # of onnxruntime
# Instruction sets of CPUs, as Linux names them, that multiply bfloat16 and 8-bit integers.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
PACKAGES = ("torch", "numpy", "pydantic", "protobuf", "google-crc32c", "zstandard")


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result may depend on."""
    from importlib.metadata import version  # slow to import, and not needed by most commands

    return {"python": platform.python_version(), "reeltag": __version__} | {name: version(name) for name in PACKAGES}


@cache
def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation: from a clone or another folder, or from an index."""
    from importlib.metadata import distribution

    told = distribution("reeltag").read_text("direct_url.json")
    place = urlsplit(json.loads(told)["url"] if told else "")
    if place.scheme != "file":
        return f"pip install 'reeltag[{extra}]'"
    folder = Path(unquote(place.path))
    pinned = f"-c {shlex.quote(str(folder / 'constraints.txt'))} " if (folder / "constraints.txt").exists() else ""
    editable = "-e " if json.loads(told or "{}").get("dir_info", {}).get("editable") else ""
    return f"pip install {pinned}{editable}{shlex.quote(f'{folder}[{extra}]')}"


def describe_environment(recipe: Path) -> dict[str, Any]:
    """Describe the environment of a run; the description is saved beside the results and does not influence them.

    Args:
        recipe: path of the recipe.

    Returns:
        `versions`, and `git`: the `commit` of the repository that holds the recipe, and `dirty`, which is true if
        tracked files or the recipe differ from that commit. `git` is None without a repository or without git.
    """
    return {"versions": versions(), "git": _git_state(recipe)}


def _git_state(file: Path) -> dict[str, Any] | None:
    commit = _git(file, "rev-parse", "HEAD")
    tracked, own = _git(file, "status", "--porcelain", "-uno"), _git(file, "status", "--porcelain", "--", file.name)
    if commit is None or tracked is None or own is None:
        return None
    return {"commit": commit, "dirty": bool(tracked or own)}


def _git(file: Path, *arguments: str) -> str | None:
    """Return the output of a git command run in the file's folder; None if it fails."""
    command = ["git", "-C", str(file.resolve().parent), *arguments]
    try:
        said = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    except OSError:  # no git
        return None
    return said.stdout.strip() if said.returncode == 0 else None


def cpuinfo_value(key: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return a field of the first CPU in /proc/cpuinfo, such as `model name`; empty if it is not listed."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    told = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in told if name.strip() == key), "")


def cpu_flags() -> set[str] | None:
    """Return the instruction-set flags that Linux reports for this CPU, or None on other systems."""
    return set(cpuinfo_value("flags").split()) or None


def available_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """Return the bytes of memory that this machine has, or that the container's limit allows of them."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no container, or one without a limit
        return total


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Limit torch to one thread within a block, because with more the last bit of a sum depends on their number."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def onnx_runtime(extra: str) -> ModuleType:
    """Import onnxruntime with its telemetry switched off.

    Args:
        extra: the extra of reeltag that installs it.

    Raises:
        UsageError: onnxruntime is not installed.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the module is imported
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"onnxruntime is not installed; `{install_command(extra)}`") from error
    return onnxruntime  # type: ignore[no-any-return]


def onnx_providers(onnxruntime: ModuleType) -> list[str | tuple[str, dict[str, str]]]:
    """Return where onnxruntime is to compute extractors: on an NVIDIA GPU if its build can use one, else on the CPU.

    Providers for other devices are left out: several compute in half precision without being asked to.
    """
    if GPU_PROVIDER not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    # Neither rounding to ten bits nor algorithms that are chosen by the time they took.
    exact = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    return [(GPU_PROVIDER, exact), "CPUExecutionProvider"]


def check_device(name: str) -> None:
    """Check that a device is available before work starts.

    Raises:
        UsageError: the device is not available.
    """
    import torch

    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(name):
        what = f"{name} is not available on this machine"
        raise UsageError(f"training.device: {what}; use 'auto' or 'cpu', and see `reeltag doctor`")


def default_device() -> str:
    """Return the default device for predictions: a GPU if there is one, otherwise the CPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in the process for the next step.

    Otherwise every large tensor is returned to the system and allocated again as new pages, which the kernel has to
    zero: half the time of a training step with 321 M weights. Other allocators are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def return_freed_memory() -> None:
    """Return to the system the memory that `keep_freed_memory` kept; other allocators than glibc's are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def return_unused_memory() -> None:
    """Free objects that only refer to each other, as those of a finished training do, and return freed memory."""
    gc.collect()
    return_freed_memory()


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Leave the objects that exist now, such as those of torch, out of the garbage collections in a block."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def limit_openmp_spinning() -> None:
    """Shorten the time that OpenMP threads spin before they sleep, unless the environment already sets it.

    By default they spin for milliseconds and so take CPU time from the threads that they wait for when the machine has
    other work. This affects only libraries that are loaded later, above all torch.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPIN_COUNT)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as in malloc.h
