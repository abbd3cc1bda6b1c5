"""A tiny recipe with every kind of stage, an undisturbed run of it, and the comparison of two runs."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from killing import killer
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.core.storage import LOCK
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.recipe.load import load_recipe

RUN = ("run", "recipe.toml", "--out")
RECIPE = """
name = "kills"
seed = 5
budget_mb = 0.25
[data]
holdout = { fraction = 0.2 }
[data.synthetic]
train_videos = 120
test_videos = 30
shards = 2
classes = 8
rgb = 8
audio = 4
frames = [4, 6]
order_pairs = 1
[training]
epochs = 1
batch_size = 16
frames = 6
learning_rate = 5e-3
schedule = "cosine"
device = "cpu"
[averaging]
epochs = 0.5
time_constant = 5
[quantization]
encodings = ["uniform-8", "group-4"]
[ensemble]
trials = 4
[models.netvlad]
family = "netvlad"
hidden = 16
bn_decay = 0.9
grid = { clusters = [4, 6] }
training = { evaluate_every = 0.5, patience = 2 }
[distillation]
teachers = 1
folds = 2
top_k = 5
[students.second]
family = "netvlad"
level = 2
clusters = 4
hidden = 8
bn_decay = 0.9
[imported]
other = "other.reeltag"
"""
TRAINED = ("train", "average", "fold")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with the recipe, the model that it imports, and `whole`, an undisturbed run in one process."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "other.reeltag").touch()
    (folder / "recipe.toml").write_text(RECIPE)
    schema, config = load_recipe(folder / "recipe.toml").data.record_schema, parse_config({"family": "mean"})
    state = build_tagger(config, schema.widths, schema.classes, 1).state_dict()
    save_artifact(folder / "other.reeltag", Artifact(schema, None, (Member("other", config, 1.0, state),), {}))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
    code = "import sys; from reeltag.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "run", "recipe.toml", "--out", "whole"]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def commands(folder):
    """Client that runs commands of reeltag that may be killed."""
    with killer(folder) as opened:
        yield opened


def contents(out):
    """Return a hash of each file's content, by its path.

    Durations are left out, and so are the manifests, which contain the shards' modification times; the stages' markers
    have hashes of the shards' content.
    """
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in (LOCK, "manifest.safetensors"))
    return {str(path.relative_to(out)): hashlib.sha256(timeless(path)).hexdigest() for path in files}


def timeless(path):
    content = path.read_bytes()
    if path.suffix == ".json":
        return re.sub(rb'"seconds": [0-9.e-]+', b"", content)
    if path.name == "report.html":
        return re.sub(rb'(?s)<section id="timings">.*?</section>|<h3>Table 2.*?</table>', b"", content)
    durations = rb"(?m)[0-9.]+ s \| [0-9.]+ \|$"  # Table 2: time and relative
    return re.sub(durations, b"", content) if path.name == "tables.md" else content
