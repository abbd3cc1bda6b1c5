"""What reeltag runs on: versions and the device."""

from __future__ import annotations

import ctypes
import platform
from importlib.metadata import version

from reeltag.errors import UsageError

PACKAGES = ("torch", "lightning-fabric", "numpy", "pydantic", "protobuf", "google-crc32c")


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("reeltag", *PACKAGES)}


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
