"""Recipes: every fault at once, with its key and what was meant."""

from pathlib import Path

import pytest

from reeltag.errors import BudgetError, RecipeError, UsageError
from reeltag.recipe import known_keys, load_recipe
from reeltag.stages.model import ModelStages
from reeltag.stages.plan import plan

RECIPES = Path(__file__).parent.parent / "recipes"
GOOD = """
name = "small"
budget_mb = 1
[data.synthetic]
classes = 12
[models.a]
family = "netvlad"
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_that_we_ship_are_valid(path):
    assert load_recipe(path).name == path.stem


def test_all_faults_come_in_one_message(tmp_path):
    text = GOOD.replace("budget_mb = 1", 'budget_mb = "much"').replace("classes = 12", "clases = 12")
    text += 'clustres = 8\nhidden = -3\n[models.b]\nfamily = "netvald"\n[trainig]\nepochs = 3\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    message = str(caught.value)
    assert "6 faults" in message
    for expected in (
        "data.synthetic.clases: unknown key; did you mean 'classes'?",
        "models.a.clustres: unknown key; did you mean 'clusters'?",
        "models.a.hidden: Input should be greater than or equal to 0, not -3",
        "trainig: unknown key; did you mean 'training'?",
        "budget_mb: ",
        "models.b.family: choose one of attention, dbof, mean, netfv, netvlad",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("[data.synthetic]", "[data]\ntrain = ['*.tfrecord']\n[data.synthetic]"), "generates the data"),
        (("[data.synthetic]\nclasses = 12", "[data]\nschema = 'audioset'"), "train, test missing"),
        (("[data.synthetic]\nclasses = 12", "[data]\nschema = 'audioste'"), "no preset 'audioste'"),
        (("[models.a]", "[models.'a b']"), "models.a b"),
        (("classes = 12", "classes = 12\n[data.holdout]\nfraction = 0.1\nshards = 2"), "either fraction or shards"),
        (("family = \"netvlad\"", "clusters = 8"), "models.a.family: choose one of attention, dbof"),
        (("name = \"small\"", "name = 'small'\nname = 'twice'"), "is not TOML"),
        (("classes = 12", "classes = 12\nfloor = 1e"), "is not TOML"),
    ],
)  # fmt: skip
def test_contradictions_are_named(tmp_path, change, fault):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD.replace(*change)))
    assert fault in str(caught.value)


def test_a_key_in_the_wrong_table_is_sent_to_the_right_one(tmp_path):
    with pytest.raises(RecipeError, match=r"label_names: unknown key in this table; it belongs to another one"):
        load_recipe(write(tmp_path, GOOD), ["label_names=x.csv"])


def test_the_recipe_in_the_readme_is_valid_and_fits_its_budget(tmp_path):
    text = (RECIPES.parent / "README.md").read_text()
    recipe = load_recipe(write(tmp_path, text[text.index("```toml") + 7 :].partition("```")[0]))
    sizes = [ModelStages(recipe, name).quantized_bytes for name in recipe.models]
    assert 0.5 * recipe.budget < sum(sizes) < recipe.budget


def test_a_wrong_file_of_label_names_is_found_before_anything_trains(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.tfrecord").touch()
    (tmp_path / "labels.csv").write_text("index,name\n0,only one\n")
    data = f"""[data]
root = "{tmp_path}"
schema = "audioset"
train = ["train.tfrecord"]
test = ["test.tfrecord"]
label_names = "labels.csv"
"""
    text = GOOD.replace("[data.synthetic]\nclasses = 12\n", data)
    with pytest.raises(UsageError, match="should name each of 527 classes once"):
        plan(load_recipe(write(tmp_path, text), ["budget_mb=20"]))


def test_a_missing_recipe_is_one_message(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.toml: 1 fault\n  cannot be read"):
        load_recipe(tmp_path / "nowhere.toml")


def test_overrides_set_any_key_and_their_faults_are_listed_too(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["training.rate=1e-2", "training.frames=all", "models.a.head.kind=logistic"])
    assert recipe.training.rate == 0.01
    assert recipe.training.frames == "all"
    assert recipe.models["a"].head.kind == "logistic"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["training.rat=1", "nonsense", "name.first=x"])
    assert "did you mean 'rate'" in str(caught.value)
    assert "--set nonsense" in str(caught.value)
    assert "name is a value" in str(caught.value)


def test_the_fingerprint_covers_everything_but_the_place_of_the_data(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path)
    assert load_recipe(path, ["data.root=/elsewhere"]).fingerprint == recipe.fingerprint
    assert load_recipe(path, ["training.rate=3e-4"]).fingerprint != recipe.fingerprint


def test_weights_that_cannot_fit_the_budget_are_refused_before_anything_is_read(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), ["budget_mb=0.5", "models.b.family=netvlad", "models.b.hidden=8"])
    with pytest.raises(BudgetError, match=r"over the budget of 0.50 MB; members: a .*, b .*; b would fit"):
        plan(recipe)


def test_every_key_stands_in_the_documentation():
    text = "".join((RECIPES.parent / "docs" / name).read_text() for name in ("recipes.md", "models.md"))
    tables = {"data", "training", "averaging", "ensemble", "models", "imported"}
    missing = [key for key in known_keys() if f"`{key}`" not in text and key not in tables]
    assert not missing
    assert all(f"`[{table}" in text for table in tables)
