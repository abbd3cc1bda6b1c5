"""reeltag trains video taggers from frame features and ships an ensemble of them as one small file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reeltag.export.session import open_onnx
    from reeltag.predict import Predictor, load
    from reeltag.sharing import from_pretrained

__version__ = "0.1.0"
__all__ = ["Predictor", "from_pretrained", "load", "open_onnx"]

_HOMES = {"Predictor": "predict", "from_pretrained": "sharing", "load": "predict", "open_onnx": "export.session"}


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, so `import reeltag` and `reeltag --help` do without it.
    if name in _HOMES:
        return getattr(import_module(f"reeltag.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'reeltag' has no attribute {name!r}")
