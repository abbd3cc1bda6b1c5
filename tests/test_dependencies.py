"""Every third-party package that is imported is declared in pyproject.toml, where its importer needs it."""

import ast
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FOLDERS = ("src", "tests", "bench", "fuzz", "examples")
# The extra whose users run a module; all other modules of the package run without one.
EXTRA_OF = {
    "reeltag/core/environment.py": "onnx",  # opens onnxruntime for the extras onnx and video
    "reeltag/artifact/hub.py": "hub",
    "reeltag/artifact/hub_download.py": "hub",
    "reeltag/artifact/onnx/": "onnx",
    "reeltag/core/distributed/ray_pool.py": "ray",
    "reeltag/data/class_labels.py": "import",
    "reeltag/data/label_table.py": "import",
    "reeltag/data/sources/": "import",
    "reeltag/data/video/extractors/tflite.py": "litert",
    "reeltag/data/video/extractors/torch_model.py": "timm",
    "reeltag/data/video/": "video",
    "reeltag/inference/convert.py": "onnx",
    "reeltag/inference/formats/outcomes.py": "parquet",
    "reeltag/inference/formats/parquet.py": "parquet",
    "reeltag/inference/onnx": "onnx",
    "reeltag/inference/video/": "video",
    "reeltag/pipeline/tuning/": "tune",
    "reeltag/serve/": "serve",
    "reeltag/training/tensorboard.py": "tensorboard",
    "reeltag/training/trackers/mlflow_runs.py": "mlflow",
    "reeltag/training/trackers/weights_and_biases.py": "wandb",
}

# Tests that are skipped where these extras are not installed.
EXTRAS_OF_TESTS = {"tests/training/test_trackers.py": ("wandb", "mlflow")}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def declared(extra=None):
    """Distributions that a plain install brings, with an extra also those of the extra and the extras it names."""
    names = {normalized(Requirement(text).name) for text in PROJECT["dependencies"]}
    for text in PROJECT["optional-dependencies"][extra] if extra else ():
        requirement = Requirement(text)
        for other in requirement.extras if requirement.name == PROJECT["name"] else ():
            names |= declared(other)
        names.add(normalized(requirement.name))
    return names


@cache
def elsewhere():
    """Distributions that are installed into environments of their own: those to compare with, and for fuzzing."""
    files = (ROOT / "bench").glob("peers*.txt")
    peers = (Requirement(line) for path in files for line in path.read_text().splitlines() if line[:1].isalpha())
    fuzzing = re.findall(r"'(atheris)\b", (ROOT / "Makefile").read_text())
    return {"peer_": {normalized(peer.name).removesuffix("-cpu") for peer in peers}, "__main__": set(fuzzing)}


@cache
def distributions():
    """Distributions by the modules they install; reads the metadata of every installed package."""
    return {"mlflow": ["mlflow-skinny"], **metadata.packages_distributions()}  # it need not be installed


def imported(path):
    """Line and top-level module of each absolute import, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip":
            yield node.lineno, ast.literal_eval(node.args[0]).partition(".")[0]


def extra_of(path):
    if path.parts[0] != "src":
        return "dev"
    inside = path.relative_to("src").as_posix()
    return next((extra for start, extra in EXTRA_OF.items() if inside.startswith(start)), None)


def undeclared(folder):
    local = {path.stem for shared in ("bench", "tests", "tests/support") for path in (ROOT / shared).glob("*.py")}
    local |= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    for path in sorted((ROOT / folder).rglob("*.py")):
        known = declared(extra_of(path.relative_to(ROOT)))
        for extra in EXTRAS_OF_TESTS.get(path.relative_to(ROOT).as_posix(), ()):
            known = known | declared(extra)
        if folder in ("bench", "fuzz"):
            known = known.union(*(names for start, names in elsewhere().items() if path.name.startswith(start)))
        for line, module in imported(path):
            if module in sys.stdlib_module_names or module in {"reeltag", *FOLDERS, *local}:
                continue
            if known.isdisjoint(map(normalized, distributions().get(module, [module]))):
                yield f"{path.relative_to(ROOT)}:{line}: {module}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_import_is_declared(folder):
    assert list(undeclared(folder)) == []
