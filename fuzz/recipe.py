"""A recipe: TOML, and after each line that begins with `--set` an override."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from reeltag.core.errors import RecipeError, ReeltagError
from reeltag.pipeline.plan import plan
from reeltag.recipe.load import load_recipe
from reeltag.recipe.schema import Recipe

PATH = Path(tempfile.mkdtemp()) / "fuzzed.toml"
QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart.toml"


def one_input(data: bytes) -> None:
    """Read a recipe and plan it; what is read is a recipe again, and the same."""
    lines = data.split(b"\n")
    overrides = [line[6:].decode(errors="replace") for line in lines if line.startswith(b"--set ")]
    PATH.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"--set ")))
    try:
        recipe = load_recipe(PATH, overrides)
    except RecipeError as error:
        assert error.faults
        return
    assert Recipe.model_validate(recipe.dump()).fingerprint == recipe.fingerprint
    try:
        plan(recipe, without_data=True)
    except ReeltagError:
        return


def seeds() -> Iterator[bytes]:
    """Recipes that are planned fast: one that we ship, one of files with all that is optional, one with overrides."""
    yield QUICKSTART.read_bytes()
    yield (
        b'name = "y"\nbudget_mb = 1.5\nseed = 3\n[data]\nroot = "/no"\ntrain = ["a-*"]\ntest = ["b"]\nvideos = 100\n'
        b'schema = { preset = "audioset", ids = ["id"] }\nholdout = { shards = 1 }\n[training]\nframes = 3\n'
        b'[averaging]\nepochs = 0.5\n[models.a]\nfamily = "mean"\nhidden = 8\nhead = { kind = "logistic" }\n'
        b'[models.a.training]\nlearning_rate = 0.1\n[models.b]\nfamily = "rnn"\ncells = 4\n'
        b'[distillation]\ntop_k = "dense"\n'
        b'[students.s]\nfamily = "mean"\nteachers = ["rnn"]\n[students.t]\nfamily = "mean"\nlevel = 2\n'
        b'[quantization]\nencodings = "auto"\n'
    )
    yield (
        b'name = "x"\nbudget_mb = 1\n[data.synthetic]\n[models.a]\nfamily = "netvlad"\n'
        b'grid = { clusters = [4, 8], "training.epochs" = [1, 2] }\n'
        b"--set training.learning_rate=1e-2\n--set models.b.family=mean\n--set distillation.folds=3\n"
    )
