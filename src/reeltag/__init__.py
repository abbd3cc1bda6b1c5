"""Train video taggers from frame features and ship an ensemble of them as one small file.

Names in `__all__` are the public interface; every other module may change between versions. `load` opens a model,
`run` runs a recipe; docs/python.md has the rest. The command line calls the same functions.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from reeltag.core.version import __version__ as __version__

if TYPE_CHECKING:
    from reeltag.core.errors import ReeltagError
    from reeltag.data.import_features import Imported, import_features
    from reeltag.data.video.extractors.registry import register_encoder
    from reeltag.inference.evaluate import evaluate
    from reeltag.inference.onnx_export import export_onnx
    from reeltag.inference.onnx_session import open_onnx
    from reeltag.inference.predictor import Predictor, from_pretrained, load
    from reeltag.inference.quantize_file import quantize_file
    from reeltag.inference.shard_tagger import predict_to_file
    from reeltag.pipeline.run import RunResult, Work, run, train_models
    from reeltag.pipeline.thresholds import Chosen, choose_thresholds
    from reeltag.recipe.load import load_recipe
    from reeltag.recipe.register_family import register_family

# The module of each public name.
_MODULES = {
    "Chosen": "pipeline.thresholds",
    "Imported": "data.import_features",
    "Predictor": "inference.predictor",
    "ReeltagError": "core.errors",
    "RunResult": "pipeline.run",
    "Work": "pipeline.run",
    "choose_thresholds": "pipeline.thresholds",
    "evaluate": "inference.evaluate",
    "export_onnx": "inference.onnx_export",
    "from_pretrained": "inference.predictor",
    "import_features": "data.import_features",
    "load": "inference.predictor",
    "load_recipe": "recipe.load",
    "open_onnx": "inference.onnx_session",
    "predict_to_file": "inference.shard_tagger",
    "quantize_file": "inference.quantize_file",
    "register_encoder": "data.video.extractors.registry",
    "register_family": "recipe.register_family",
    "run": "pipeline.run",
    "train_models": "pipeline.run",
}
__all__ = [
    "Chosen",
    "Imported",
    "Predictor",
    "ReeltagError",
    "RunResult",
    "Work",
    "choose_thresholds",
    "evaluate",
    "export_onnx",
    "from_pretrained",
    "import_features",
    "load",
    "load_recipe",
    "open_onnx",
    "predict_to_file",
    "quantize_file",
    "register_encoder",
    "register_family",
    "run",
    "train_models",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, so `import reeltag` and `reeltag --help` do without it.
    if name in _MODULES:
        return getattr(import_module(f"reeltag.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'reeltag' has no attribute {name!r}")
