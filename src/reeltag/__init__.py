"""reeltag trains video taggers from frame features and ships an ensemble of them as one small file.

`load` opens a model, `run` does a recipe; docs/python.md has the rest. The command line calls the same functions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reeltag.pipeline.run import RunResult, Work, evaluate, export_onnx, quantize_file, run, train_models
    from reeltag.inference.shards import predict_to_file
    from reeltag.core.errors import ReeltagError
    from reeltag.inference.onnx import open_onnx
    from reeltag.recipe.register_family import register_family
    from reeltag.inference.predictor import Predictor, load
    from reeltag.recipe.load import load_recipe
    from reeltag.artifact.hub import from_pretrained

__version__ = "0.1.0"

# Where each name of the public interface is at home. What a command does has a name of its own where a module has its.
_HOMES = {
    "Predictor": "predict",
    "ReeltagError": "errors",
    "RunResult": "api",
    "Work": "api",
    "evaluate": "api",
    "export_onnx": "api",
    "from_pretrained": "sharing",
    "load": "predict",
    "load_recipe": "recipe_file",
    "open_onnx": "export.session",
    "predict_to_file": "bulk",
    "quantize_file": "api",
    "register_family": "families",
    "run": "api",
    "train_models": "api",
}
__all__ = [
    "Predictor",
    "ReeltagError",
    "RunResult",
    "Work",
    "evaluate",
    "export_onnx",
    "from_pretrained",
    "load",
    "load_recipe",
    "open_onnx",
    "predict_to_file",
    "quantize_file",
    "register_family",
    "run",
    "train_models",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, so `import reeltag` and `reeltag --help` do without it.
    if name in _HOMES:
        return getattr(import_module(f"reeltag.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'reeltag' has no attribute {name!r}")
