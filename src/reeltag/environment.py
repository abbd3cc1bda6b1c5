"""What reeltag runs on: versions and the device."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("torch", "lightning-fabric", "numpy", "safetensors", "pydantic", "protobuf", "google-crc32c")


def versions() -> dict[str, str]:
    """Versions that a result may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("reeltag", *PACKAGES)}


def default_device() -> str:
    """The device that predicts: a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
