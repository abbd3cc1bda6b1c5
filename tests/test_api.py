"""The Python API: same files and numbers as the command line."""

import html.parser
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from torch import nn

import reeltag
from conftest import SMALL_RECIPE
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError, UsageError
from reeltag.data.pca import to_codes
from reeltag.models.config import TaggerConfig
from reeltag.models.families import FAMILIES, parse_config
from reeltag.models.mean import Mean
from reeltag.models.tagger import POOLINGS, build_tagger
from reeltag.recipe.json_schema import recipe_schema


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(SMALL_RECIPE)
    return path


def test_every_public_name_exists_with_docstring_and_types():
    assert (Path(reeltag.__file__).parent / "py.typed").exists()
    for name in reeltag.__all__:
        thing = getattr(reeltag, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            assert signature.return_annotation is not inspect.Signature.empty, name
            assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values()), name
    assert dir(reeltag) == sorted(reeltag.__all__)
    with pytest.raises(AttributeError):
        _ = reeltag.nothing


def test_importing_needs_no_torch():
    code = "import sys, reeltag; dir(reeltag); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_stay_functions_when_modules_are_imported():
    """Check that no module has a public function's name; importing it would replace the function."""
    source = Path(reeltag.__file__).parent
    modules = {path.stem for path in source.glob("*.py")} | {path.parent.name for path in source.glob("*/__init__.py")}
    assert not modules & set(reeltag.__all__)


def test_run_equals_the_command(recipe, tmp_path, capsys):
    done = reeltag.run(recipe, out=tmp_path / "python", overrides=["seed=3"])
    assert main(["run", str(recipe), "--set", "seed=3", "--out", str(tmp_path / "command"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert Path(done.file).read_bytes() == Path(printed["file"]).read_bytes()
    assert done.results["test"]["file"] == printed["results"]["test"]["file"]
    assert Path(done.report).is_file()
    shards = [str(next((tmp_path / "python" / "stages").glob("synthetic-*")) / "test-*.tfrecord")]
    scores = reeltag.evaluate(done.file, shards)
    assert main(["evaluate", done.file, *shards, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed.pop("computed")["ways"].values()) == {"exact"}
    assert printed.pop("at_threshold")["threshold"] == 0.5
    assert scores.summary() == printed


def test_arguments_take_text_paths_and_sequences_of_them(recipe, tiny_model, tiny_shards, tmp_path):
    assert reeltag.load_recipe(recipe, "training.epochs=3") == reeltag.load_recipe(recipe, ["training.epochs=3"])
    pattern = tiny_shards / "test-*"
    scores = reeltag.evaluate(str(tiny_model), str(pattern)).summary()
    tagger = reeltag.load(tiny_model)
    for model, shards in (
        (tiny_model, pattern),
        (tagger, [pattern]),
        (tagger, sorted(map(str, tiny_shards.glob("test-*")))),
    ):
        assert reeltag.evaluate(model, shards).summary() == scores
    reeltag.predict_to_file(str(tiny_model), str(pattern), str(tmp_path / "p.jsonl"))
    reeltag.predict_to_file(tagger, pattern, tmp_path / "q.jsonl")
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "q.jsonl").read_bytes()
    assert list(reeltag.train_models(recipe, "a", out=tmp_path / "run", overrides="seed=3")) == ["a"]
    reeltag.export_onnx(tagger, tmp_path / "m.onnx", check=str(pattern))


def test_a_predictor_in_place_of_a_file_keeps_its_mode(tiny_model, tiny_shards, tmp_path):
    pattern = str(tiny_shards / "test-*")
    reeltag.predict_to_file(tiny_model, pattern, tmp_path / "p.jsonl", mode="bf16")
    reeltag.predict_to_file(reeltag.load(tiny_model, "bf16"), pattern, tmp_path / "q.jsonl")
    assert (tmp_path / "p.jsonl").read_bytes() == (tmp_path / "q.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reeltag.evaluate(3, "x"), "3: is not a model"),
        (lambda: reeltag.predict_to_file(None, "x", "p.csv"), "None: is not a model"),
        (lambda: reeltag.load_recipe("quickstart", {"training.epochs=3": 3}.values()), "3: is neither text nor a path"),
        (lambda: reeltag.load_recipe("quickstart", 3), "3: is neither text nor a path"),
    ],
)
def test_arguments_of_other_types_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_the_error_for_float_frames_names_the_conversion(tiny_model):
    tagger = reeltag.load(tiny_model)
    values = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    with pytest.raises(UsageError, match=r"codes of values from -2 to 2, as `reeltag\.data\.pca\.to_codes"):
        tagger.predict(values)
    assert tagger.predict(to_codes(values)).shape == (8,)


def test_train_quantize_and_export_equal_the_commands(recipe, tmp_path):
    files = reeltag.train_models(recipe, ["a"], out=tmp_path / "run")
    assert list(files) == ["a"]
    size = reeltag.quantize_file(files["a"], tmp_path / "small.reeltag", "float16")
    assert main(["quantize", files["a"], "--out", str(tmp_path / "other.reeltag"), "--encoding", "float16"]) == 0
    assert (tmp_path / "small.reeltag").read_bytes() == (tmp_path / "other.reeltag").read_bytes()
    assert size == (tmp_path / "small.reeltag").stat().st_size
    size, difference = reeltag.export_onnx(files["a"], tmp_path / "m.onnx")
    assert size == (tmp_path / "m.onnx").stat().st_size
    assert difference < 1e-4
    with pytest.raises(UsageError, match="did you mean"):
        reeltag.train_models(recipe, ["aa"], out=tmp_path / "run")


def test_the_representation_of_a_predictor_describes_its_members(tiny_model, tiny_schema, tmp_path):
    predictor = reeltag.load(tiny_model)
    text = repr(predictor)
    tagger = build_tagger(parse_config({"family": "netvlad", "clusters": 4, "hidden": 8}), (6, 2), 8, 0)
    parameters = f"{sum(each.numel() for each in tagger.parameters()):,} parameters"
    for expected in ("[T, 8] uint8", "rgb 6 + audio 2", "[8] float32", "netvlad", parameters, str(tiny_model), "bytes"):
        assert expected in text
    config = parse_config({"family": "mean"})
    state = build_tagger(config, tiny_schema.widths, 8, 0).state_dict()
    path = tmp_path / "odd.reeltag"
    save_artifact(path, Artifact(tiny_schema, None, (Member("<script>alert(1)", config, 1.0, state),), {}))
    page = reeltag.load(path)._repr_html_()
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(page)
    assert "table" in tags
    assert "script" not in tags
    assert "&lt;script&gt;" in page


class OwnConfig(TaggerConfig):
    """Configuration of a user-defined family."""

    family: Literal["own"]
    strength: int = 3


@pytest.fixture
def own():
    yield
    if FAMILIES.pop("own", None):
        del POOLINGS["own"]
        reeltag.register_family("mean", FAMILIES["mean"], POOLINGS["mean"])  # rebuilds the pydantic models


def test_a_registered_family_works_in_recipes_and_files(own, recipe, tmp_path):
    recipe.write_text(SMALL_RECIPE.replace('"mean"', '"own"\nstrength = 4\nhidden = 4'))
    with pytest.raises(RecipeError, match="choose one of attention"):
        reeltag.load_recipe(recipe)
    reeltag.register_family("own", OwnConfig, Mean)
    reeltag.register_family("own", OwnConfig, Mean)  # again, as rerunning a notebook cell does
    assert reeltag.load_recipe(recipe).models["a"].config.strength == 4
    with pytest.raises(RecipeError, match="did you mean 'strength'"):
        reeltag.load_recipe(recipe, ["models.a.strenght=5"])
    done = reeltag.run(recipe, out=tmp_path / "run")
    assert isinstance(reeltag.load(done.file).model, nn.Module)
    assert "own" in repr(reeltag.load(done.file))
    assert "strength" in json.dumps(recipe_schema())
    elsewhere = [sys.executable, "-m", "reeltag", "inspect", done.file]
    done = subprocess.run(elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'own'" in done.stderr


def test_registering_refuses_other_names_and_taken_names(own):
    with pytest.raises(UsageError, match=r'should say family: Literal\["other"\]'):
        reeltag.register_family("other", OwnConfig, Mean)
    with pytest.raises(UsageError, match="family 'rnn': is registered already, with another configuration"):
        reeltag.register_family("rnn", OwnConfig, Mean)
