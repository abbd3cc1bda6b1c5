"""`reeltag recipe …`, recipes by name, the schema for editors and overrides from the environment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from reeltag.cli.main import main
from reeltag.core.errors import RecipeError, UsageError
from reeltag.models.families import FAMILIES
from reeltag.pipeline.stages.architectures import member_architectures
from reeltag.recipe import shipped
from reeltag.recipe.json_schema import recipe_schema
from reeltag.recipe.load import load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPO = Path(__file__).parents[2]
NAMES = shipped.names()


def printed(capsys, *arguments):
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def validator():
    schema = recipe_schema()
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def test_the_wheel_has_every_recipe_and_the_clone_has_them_at_their_old_place():
    assert {path.name for path in (REPO / "recipes").glob("*.toml")} == {f"{name}.toml" for name in NAMES}
    assert (REPO / "src" / "reeltag") in shipped.FOLDER.parents
    assert not [
        path for path in shipped.FOLDER.rglob("*") if path.is_file() and path.suffix not in (".toml", ".py", ".pyc")
    ]


def test_a_name_is_looked_up_and_a_path_is_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("not a recipe")
    assert load_recipe("quickstart").name == "quickstart"
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe("./quickstart")
    with pytest.raises(UsageError, match="did you mean 'audioset-small'"):
        load_recipe("audioset-smal")


def test_the_list_says_what_the_files_say(capsys):
    text = printed(capsys, "recipe", "list")
    assert all(len(line) <= 80 for line in text.splitlines())
    listed = json.loads(printed(capsys, "recipe", "list", "--json"))["recipes"]
    assert list(listed) == NAMES
    for name, each in listed.items():
        recipe = load_recipe(name)
        assert (each["budget_mb"], each["models"]) == (recipe.budget_mb, len(member_architectures(recipe)))
        assert each["description"].endswith(".")
        assert each["description"].split(".")[0].split("\n")[0][:40] in Path(each["file"]).read_text()


def test_listing_needs_no_torch():
    code = "import sys; from reeltag.cli.main import main; main(['recipe', 'list']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_the_same_recipe(capsys, tmp_path, name):
    path = tmp_path / "shown.toml"
    path.write_text(printed(capsys, "recipe", "show", name))
    root = "data.root=shards"  # one that is not relative to either file
    assert (
        load_recipe(path, root).dump() == load_recipe(name, root).dump()
    )  # recipes of two files differ in their source
    assert json.loads(printed(capsys, "recipe", "show", name, "--json")) == load_recipe(name).dump()


def test_show_has_overrides_and_grids(capsys):
    shown = tomllib.loads(printed(capsys, "recipe", "show", "audioset", "--set", "training.epochs=1.5"))
    assert shown["training"]["epochs"] == 1.5
    assert list(shown["models"]) == list(load_recipe("audioset").models)


def test_a_copy_is_the_file_and_replaces_none(capsys, tmp_path):
    mine = tmp_path / "mine.toml"
    printed(capsys, "recipe", "copy", "quickstart", str(mine))
    assert mine.read_bytes() == (shipped.FOLDER / "quickstart.toml").read_bytes()
    assert main(["recipe", "copy", "audioset", str(mine)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert printed(capsys, "recipe", "check", str(mine)) == f"{mine}: no faults\n"


def test_check_lists_every_fault_of_every_file(capsys, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text((shipped.FOLDER / "quickstart.toml").read_text().replace("epochs", "epcohs") + "[trial]\n")
    assert main(["recipe", "check", str(bad), "quickstart", "nowhere", "--json"]) == 2
    out, err = capsys.readouterr()
    faults = json.loads(out)["faults"]
    assert [len(found) for found in faults.values()] == [3, 0, 1]
    for fault in [fault for found in faults.values() for fault in found]:
        assert fault in err
    assert main(["recipe", "check", "quickstart", "--set", "budget_mb=0.01"]) == 2
    assert "over the budget" in capsys.readouterr().err


def test_a_difference_is_that_of_the_resolved_recipes(capsys, tmp_path):
    other = tmp_path / "other.toml"
    text = (shipped.FOLDER / "quickstart.toml").read_text()
    other.write_text(text.replace("seed = 1\n", "seed = 2\n"))
    assert printed(capsys, "recipe", "diff", "quickstart", str(other)) == "seed: 1 → 2\n"
    other.write_text(text.replace("seed = 1\n", "seed = 1 # a comment\n"))
    assert printed(capsys, "recipe", "diff", "quickstart", str(other)) == "no difference\n"
    lines = printed(capsys, "recipe", "diff", "audioset", "audioset-small").splitlines()
    assert "averaging: only in audioset (epochs = 1.0, time_constant = 100, learning_rate_divisor = 5.0)" in lines
    assert [line for line in lines if line.startswith("models.rnn")] == [
        *(f"models.rnn-{cells}: only in audioset (23 keys)" for cells in (128, 192, 256)),
        "models.rnn: only in audioset-small (23 keys)",
    ]
    assert "distillation.teachers: 3 → 1" in lines
    found = json.loads(printed(capsys, "recipe", "diff", "audioset", "audioset-small", "--json"))["differences"]
    assert found["models.rnn.cells"] == [None, 256]
    assert found["averaging.epochs"] == [1.0, None]
    found = json.loads(printed(capsys, "recipe", "diff", "audioset-small", "audioset-best", "--json"))["differences"]
    one, other = load_recipe("audioset-small"), load_recipe("audioset-best")
    assert found["name"] == ["audioset-small", "audioset-best"]
    assert found["training.epochs"] == [one.training.epochs, other.training.epochs]
    assert "training.batch_size" not in found or one.training.batch_size != other.training.batch_size


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_holds_for_our_recipes_as_written_and_as_shown(capsys, validator, name):
    validator.validate(tomllib.loads((shipped.FOLDER / f"{name}.toml").read_text()))
    validator.validate(tomllib.loads(printed(capsys, "recipe", "show", name)))


@pytest.mark.parametrize(
    "change",
    [
        ("epochs", "epcohs"),
        ("[training]", "[trainig]"),
        ("clusters", "clustres"),
        ('family = "netvlad"', 'family = "netvald"'),
        ('family = "netvlad"\n', ""),
        ("seed = 1", "seed = -1"),
        ("seed = 1", 'seed = "one"'),
    ],
)
def test_the_schema_refuses_what_a_recipe_may_not_say(validator, tmp_path, change):
    path = tmp_path / "changed.toml"
    path.write_text((shipped.FOLDER / "quickstart.toml").read_text().replace(*change))
    assert not validator.is_valid(tomllib.loads(path.read_text()))
    with pytest.raises(RecipeError):
        load_recipe(path)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_schema_knows_each_familys_keys(validator, family):
    table = tomllib.loads((shipped.FOLDER / "quickstart.toml").read_text())
    keys = FAMILIES[family].model_fields
    for section in ("models", "students"):
        known = {"family": family, "grid": {"hidden": [8, 16]}, "training": {"epochs": 2}}
        assert validator.is_valid(table | {section: {"a": known}})
        others = {key for config in FAMILIES.values() for key in config.model_fields} - set(keys)
        for key in others:
            assert not validator.is_valid(table | {section: {"a": {**known, key: 1}}})
    assert validator.is_valid(table | {"students": {"a": {"family": family, "level": 2, "teachers": ["rnn"]}}})
    assert not validator.is_valid(table | {"models": {"a": {"family": family, "level": 2}}})


def test_the_environment_stands_between_the_file_and_the_command(monkeypatch):
    before = load_recipe("quickstart")
    monkeypatch.setenv("REELTAG_SET", "training.epochs=3; training.learning_rate = 1e-2; data.synthetic.classes=12;")
    changed = load_recipe("quickstart", ["training.epochs=4"])
    assert (changed.training.epochs, changed.training.learning_rate) == (4, 1e-2)
    assert changed.data.synthetic.classes == 12
    assert changed.training.batch_size == before.training.batch_size


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("training.epoch=3", "training.epoch: unknown key; did you mean 'epochs'? (REELTAG_SET sets it)"),
        ("models.netvlad-16.cluster=3", "did you mean 'clusters'? (REELTAG_SET sets it)"),
        ("training.epochs=-3", "not -3 (REELTAG_SET sets it)"),
        ("epochs", "REELTAG_SET epochs: give it as dotted.key=value"),
        ("seed.x=1", "REELTAG_SET seed.x=1: seed is a value, not a table"),
    ],
)
def test_faults_of_the_environment_name_the_variable(monkeypatch, value, fault):
    monkeypatch.setenv("REELTAG_SET", value)
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", ["training.rat=3"])
    assert fault in str(caught.value)
    (other,) = [each for each in caught.value.faults if "training.rat:" in each]
    assert "REELTAG_SET" not in other


def test_check_imports_no_torch_and_still_knows_the_budget():
    """Of every recipe that comes with reeltag, students and grids included."""
    code = """
import sys
from reeltag.cli.main import main
status = main(["recipe", "check", *sys.argv[1:]])
print("torch" in sys.modules)
sys.exit(status)
"""
    every = [sys.executable, "-c", code, *shipped.names()]
    done = subprocess.run(every, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "False"), done.stderr
    small = [sys.executable, "-c", code, "yt8m-2018", "--set", "budget_mb=0.1"]
    refused = subprocess.run(small, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout.splitlines()[-1]) == (2, "False")
    assert "over the budget of 0.10 MB" in refused.stderr
