"""Recipes: every fault in one message, with its key and a suggestion."""

from pathlib import Path

import pytest

from reeltag.core.errors import BudgetError, RecipeError, UsageError
from reeltag.models.families import FAMILIES
from reeltag.pipeline.plan import plan
from reeltag.pipeline.stages.trained_model import recipe_model
from reeltag.recipe.load import known_keys, load_recipe
from reeltag.training.schedule import TrainingSettings

RECIPES = Path(__file__).parents[2] / "recipes"
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
def test_the_recipes_that_come_with_reeltag_are_valid_and_can_be_planned(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert plan(recipe, without_data=True)[-1].name == "report"


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
        "models.a.hidden: must be 0 or more, not -3",
        "trainig: unknown key; did you mean 'training'?",
        "budget_mb: ",
        "models.b.family: choose one of attention, dbof, ",
        "not 'netvald'; did you mean 'netvlad'?",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("[data.synthetic]", "[data]\ntrain = ['*.tfrecord']\n[data.synthetic]"), "generates the data"),
        (("[data.synthetic]\nclasses = 12", "[data]\nschema = 'audioset'"), "data.test: missing or empty"),
        (("[data.synthetic]\nclasses = 12", "[data]\nschema = 'audioste'"), "no preset 'audioste'"),
        (("[models.a]", "[models.'a b']"), "models.a b"),
        (("classes = 12", "classes = 12\n[data.holdout]\nfraction = 0.1\nshards = 2"), "either fraction or shards"),
        (("family = \"netvlad\"", "clusters = 8"), "models.a.family: choose one of attention, dbof"),
        (("name = \"small\"", "name = 'small'\nname = 'twice'"), "is not TOML"),
        (("[models.a]", "[ensemble]\nweights = { a = 0.4, b = 0.5 }\n[models.a]"), "weights: sum to 0.9, not to 1"),
        (("[models.a]", "[ensemble]\nweights = { a = 1.5, b = -0.5 }\n[models.a]"), "weights.a: must be 1 or less"),
        (("[models.a]", "[ensemble]\nweights = { a = 1 }\nmembers = ['a']\n[models.a]"), "leave ensemble.members out"),
        (("[models.a]", "[ensemble]\nmembers = ['aa']\n[models.a]"), "no model aa; did you mean 'a'?"),
        (("[models.a]", "[ensemble]\nmembers = ['a', 'a']\n[models.a]"), "members: a is named twice; name each"),
        (("classes = 12", "classes = 12\nfloor = 1e"), "is not TOML"),
    ],
)  # fmt: skip
def test_contradictions_are_named(tmp_path, change, fault):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD.replace(*change)))
    assert fault in str(caught.value)


# Contradictions and wrong values in models' tables: the table beside family and data, and the expected message.
MODEL_FAULTS = {
    'family = "netvlad"\ncentres = "coupled"': "models.a.centres: must be 'free' or 'none', not 'coupled'",
    'family = "netvlad"\ncoupling = 0.1': "models.a.coupling: unknown key of netvlad, but of netfv; netvlad has ",
    'family = "netfv"\ncoupling = 0.1': 'models.a.coupling: 0.1 needs centres = "coupled"',
    'family = "netvlad"\nclusters = 0': "models.a.clusters: must be more than 1, not 0",
    'family = "dbof"\nclusters = 7': "models.a.clusters: 7 must be at least 8, because each further feature gets 1/8",
    'family = "dbof"\npooling = "median"': "'max', 'mean', 'soft', 'soft+max' or 'gated', not 'median'",
    'family = "nextvlad"\ngroups = 6': "models.a.groups: 6 must divide expansion·D for every feature, here 2·64 by 6; "
    "allowed: 1, 2, 4, 8, 16, 32, 64",
    'family = "attention"\nwidth = 12\nheads = 5': "heads: 5 must divide width = 12; allowed: 1, 2, 3, 4, 6, 12",
    'family = "mean"\ngating = "none"': "models.a.gating: must be a table, { key = value, … }, not 'none'",
    'family = "mean"\nhidden = -1': "models.a.hidden: must be 0 or more, not -1",
    'family = "rnn"\ncells = 7': "models.a.cells: must be a multiple of 2, not 7",
    'family = "rnn"\ncells = 24\npaths = "dual"': "cells = 24 is no multiple of 16",
    'family = "rnn"\nactivation = "relu6"': "models.a.activation: 'relu6' needs a hidden layer; leave it out, or give",
    'family = "mean"\nhead = { kind = "logistic", prob_gating = true }': "models.a.head.prob_gating: True needs kind",
    'family = "mean"\nhead = { prob_gating_input = "hidden" }': "'hidden' needs prob_gating = true",
    'family = "mean"\nhead = { prob_gating = true, prob_gating_input = "hidden", prob_gating_diagonal = false }': (
        "gates fed by the hidden vector have no diagonal"
    ),
    'family = "mean"\ngating = { kind = "se", norm = false }': 'models.a.gating.norm: False needs kind = "context"',
    'family = "netvlad"\nhidden = 4\ngating = { kind = "se" }': "reduction = 8 must be at most hidden = 4",
    'family = "mean"\n[models.a.training]\nepoch = 3': "models.a.training.epoch: unknown key; did you mean 'epochs'?",
}


@pytest.mark.parametrize(("table", "fault"), MODEL_FAULTS.items(), ids=range(len(MODEL_FAULTS)))
def test_a_model_that_cannot_be_built_is_refused_with_what_is_allowed(tmp_path, table, fault):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD.replace('family = "netvlad"', table)))
    assert len(caught.value.faults) == 1
    assert fault in str(caught.value)


def test_contradictions_and_wrong_values_of_several_models_come_in_one_message(tmp_path):
    text = GOOD.replace("budget_mb = 1", "budget_mb = -1").replace(
        'family = "netvlad"', 'family = "nextvlad"\nclusters = 0\ngroups = 7\nhead = { kind = "logistic", experts = 3 }'
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text + '[models.b]\nfamily = "netvlad"\ncentres = "coupled"\n'))
    keys = [fault.partition(":")[0] for fault in caught.value.faults]
    expected = ["budget_mb", "models.a.clusters", "models.a.groups", "models.a.head.experts", "models.b.centres"]
    assert sorted(keys) == expected


def test_groups_are_checked_against_the_features_of_the_data(tmp_path):
    text = GOOD.replace('family = "netvlad"', 'family = "nextvlad"\ngroups = 24\n').replace("classes = 12", "rgb = 48")
    assert load_recipe(write(tmp_path, text), ["data.synthetic.audio=24"])
    with pytest.raises(RecipeError, match=r"here 2·16 by 12; allowed: "):
        load_recipe(write(tmp_path, text), ["data.synthetic.audio=16"])


def test_a_model_may_override_the_training(tmp_path):
    text = GOOD.replace("[models.a]", "[training]\nlearning_rate = 0.5\nepochs = 7\n[models.a]")
    recipe = load_recipe(write(tmp_path, text), ["models.a.training.epochs=3", "models.b.family=mean"])
    a, b = (recipe.training_with(recipe.models[name].training) for name in "ab")
    assert (a.epochs, a.learning_rate) == (3, 0.5)
    assert b == recipe.training
    assert recipe.training_with(recipe.models["a"].training, TrainingSettings(epochs=4)).epochs == 4
    assert recipe.dump()["models"]["a"]["training"] == {"epochs": 3.0}
    assert "training" not in recipe.dump()["models"]["b"]
    # `recipe.json` of a run is the recipe again
    assert type(recipe).model_validate(recipe.dump()).fingerprint == recipe.fingerprint


def test_a_recipe_needs_a_member_and_each_name_once(tmp_path):
    without = GOOD.partition("[models.a]")[0]
    with pytest.raises(RecipeError, match=r"no members; give at least one \[models\.NAME\]"):
        load_recipe(write(tmp_path, without))
    assert load_recipe(write(tmp_path, without), ["imported.b=b.reeltag"])
    with pytest.raises(RecipeError, match="a has a table under models already"):
        load_recipe(write(tmp_path, GOOD), ["imported.a=a.reeltag"])


def test_a_key_in_the_wrong_table_is_named_as_one_of_another_table(tmp_path):
    with pytest.raises(RecipeError, match=r"label_names: unknown key in this table; it belongs to another one"):
        load_recipe(write(tmp_path, GOOD), ["label_names=x.csv"])


def test_the_recipe_in_the_quickstart_is_valid_and_fits_its_budget(tmp_path):
    text = (RECIPES.parent / "docs" / "quickstart.md").read_text()
    recipe = load_recipe(write(tmp_path, text[text.index("```toml") + 7 :].partition("```")[0]))
    sizes = [recipe_model(recipe, name).sizes("uniform-8")[0] for name in recipe.models]
    assert 0.5 * recipe.budget < sum(sizes) < recipe.budget


def test_a_wrong_file_of_label_names_is_found_before_anything_trains(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.tfrecord").touch()
    (tmp_path / "labels.csv").write_text("index,name\n527,one too many\n")
    data = f"""[data]
root = "{tmp_path}"
schema = "audioset"
train = ["train.tfrecord"]
test = ["test.tfrecord"]
label_names = "labels.csv"
"""
    text = GOOD.replace("[data.synthetic]\nclasses = 12\n", data)
    with pytest.raises(UsageError, match="numbers a class 527"):
        plan(load_recipe(write(tmp_path, text), ["budget_mb=20"]))


def test_a_grid_makes_one_model_for_each_combination(tmp_path):
    text = (
        GOOD
        + 'hidden = 8\ngrid = { clusters = [4, 8], "training.batch_size" = [80, 160], "head.kind" = ["logistic"] }\n'
    )
    recipe = load_recipe(write(tmp_path, text))
    found = {
        name: (model.config.clusters, model.training.batch_size, model.config.head.kind, model.config.hidden)
        for name, model in recipe.models.items()
    }
    assert found == {
        f"a-{clusters}-{batch}-logistic": (clusters, batch, "logistic", 8) for clusters in (4, 8) for batch in (80, 160)
    }
    assert recipe.families == {"netvlad": list(found)}
    assert type(recipe).model_validate(recipe.dump()).fingerprint == recipe.fingerprint


@pytest.mark.parametrize(
    ("grid", "fault"),
    [
        ("grid = 3", "models.a.grid: must be a table of keys with lists"),
        ("grid = { clusters = 3 }", "models.a.grid: clusters must be a list of values to try, not 3"),
        ("grid = { head = { l2 = [1] } }", "write nested keys in quotes, as 'head.l2'"),
        ("grid = { clusters = [] }", "clusters must be a list of values to try"),
        ("grid = { clusters = [4, 4] }", "clusters must be a list of different plain values"),
        ("dropout = 0.1\ngrid = { 'dropout.rate' = [0.2] }", "models.a.grid: dropout.rate is inside a value"),
        ("grid = { clustres = [4] }", "models.a.clustres: unknown key; did you mean 'clusters'?"),
        ("grid = { clusters = [4, 0] }", "models.a-0.clusters: must be more than 1, not 0"),
        (
            "grid = { clusters = [4] }\n[models.a-4]\nfamily = 'mean'",
            "models: a-4 occurs twice, at least once made by a grid",
        ),
    ],
)
def test_an_invalid_grid_is_refused(tmp_path, grid, fault):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD + grid + "\n"))
    assert fault in str(caught.value)


def test_a_fault_that_all_models_of_a_grid_share_is_reported_once(tmp_path):
    grid = "grid = { clusters = [4, 8], hidden = [16, 32] }\n"
    text = GOOD + "clustres = 3\n" + grid + '[models.b]\nfamily = "netvald"\n' + grid
    text += '[models.c]\nfamily = "mean"\ngrid = { hidden = [4, -1, -2] }\n'
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, text))
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == [
        "models.a.clustres",
        "models.b.family",
        "models.c-_1.hidden",
        "models.c-_2.hidden",
    ]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("training.epochs=abc", "training.epochs: must be a number, not 'abc'"),
        ("training.batch_size=1.5", "training.batch_size: must be a whole number, not 1.5"),
        ("training.frames=some", "training.frames: must be a whole number, 1 or more, or \"all\", not 'some'"),
        ("training.schedule=cosin", "must be 'staircase' or 'cosine', not 'cosin'; did you mean 'cosine'?"),
        ("test.all_scores=perhaps", "test.all_scores: must be true or false, not 'perhaps'"),
        ("data.root=3", "data.root: must be a folder, or its URL, not 3"),
        ("imported.x=3", "imported.x: must be a path, not 3"),
        ("name=a b", "name: a name begins with a letter or digit, and has only these, - and _, not 'a b'"),
        ("name=3", "name: must be text, not 3"),
        ("data.synthetic.frames=[1, 2, 3]", "data.synthetic.frames: must have 2 or fewer values, not [1, 2, 3]"),
        ("training.epochs.x=3", "training.epochs: must be a number, not a table"),
    ],
)
def test_wrong_values_have_clear_messages(tmp_path, override, fault):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(tmp_path, GOOD), [override])
    assert len(caught.value.faults) == 1
    assert fault in caught.value.faults[0]


TO_TEACHERS = "[quantization]\nfine_tune = 9\nfine_tune_targets = 'teachers'\n"
STUDENT = "[students.s]\nfamily = 'mean'\n"


@pytest.mark.parametrize(
    ("tables", "fault"),
    [
        (TO_TEACHERS, r"distillation: has no teachers for quantization.fine_tune_targets = \"teachers\"; add some, or"),
        (
            TO_TEACHERS + "[distillation]\nfamilies = []\n",
            "distillation: has no teachers for quantization.fine_tune_targ",
        ),
        (
            TO_TEACHERS.replace("fine_tune = 9\n", "") + "[distillation]\n",
            "quantization.fine_tune_targets: are those of fine-tuning; give fine_tune too, such as 300",
        ),
        (STUDENT, r"students: need a table \[distillation\], which says how they are taught"),
        ("[distillation]\n" + STUDENT, "students: s: no model of mean to teach it; teachers may be netvlad"),
        ("[distillation]\n" + STUDENT + "teachers = ['rnn']\n", "s: no model of rnn to teach it"),
        (
            "[distillation]\nfamilies = []\n[students.s]\nfamily = 'netvlad'\nlevel = 2\n",
            "students: s: no first-level student of netvlad to teach it",
        ),
        ("[distillation]\n" + STUDENT + "level = 3\n", "students.s.level: must be 1 or 2, not 3"),
        ("[distillation]\n" + STUDENT + "depth = 3\n", "students.s.depth: unknown key"),
        ("[distillation]\n[students.a]\nfamily = 'netvlad'\n", "students: a has a table under models already"),
        ("[distillation]\n[imported]\nnetvlad-student-1 = 'x'\n", "netvlad-student-1: is the name of a student that"),
        ("[training]\nepochs = inf\n", "training.epochs: must be finite"),
        (
            "[distillation]\nfamilies = ['dbof']\n",
            "distillation: families: no model of dbof; the recipe trains netvlad",
        ),
        ("[distillation]\nfolds = 1\n", "distillation.folds: one fold would leave nothing to train on"),
        ("[distillation]\ntop_k = 0\n", 'distillation.top_k: must be a whole number, 1 or more, or "dense", not 0'),
        ("[distillation]\ntop_k = 'all'\n", "distillation.top_k: must be a whole number, 1 or more"),
        ("[distillation]\nfolds = 40\n", "distillation.folds: must be 20 or less, not 40"),
        ("[distillation]\n" + STUDENT + "teachers = 'netvlad'\n", r"teachers: must be a list, such as \['netvlad'\]"),
        ("[distillation]\nlabel_weight = 1.5\n", "distillation.label_weight: must be 1 or less, not 1.5"),
        (
            "[distillation]\n" + STUDENT + "label_weight = 1.01\n",
            "students.s.label_weight: must be 1 or less, not 1.01",
        ),
        (
            "[distillation]\n" + STUDENT + "label_weight = -0.1\n",
            "students.s.label_weight: must be 0 or more, not -0.1",
        ),
        (
            "[distillation]\n" + STUDENT + "grid = { label_weight = [0.4, 2] }\n",
            "students.s-2.label_weight: must be 1 or less, not 2",
        ),
        ("[distillation.training]\nepoch = 3\n", "distillation.training.epoch: unknown key; did you mean 'epochs'"),
        (
            "[quantization]\nencodings = []\n",
            "quantization.encodings: give a list of different encodings out of ",
        ),
        ("[quantization]\nencodings = ['uniform-9']\n", "quantization.encodings"),
        ("[training]\nmixup = -1\n", "training.mixup: must be 0 or more, not -1"),
    ],
)
def test_contradictions_between_tables_are_refused(tmp_path, tables, fault):
    with pytest.raises(RecipeError, match=fault):
        load_recipe(write(tmp_path, GOOD + tables))


def test_a_missing_recipe_is_one_message(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.toml: 1 fault\n  cannot be read"):
        load_recipe(tmp_path / "nowhere.toml")


def test_overrides_set_any_key_and_their_faults_are_listed_too(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["training.learning_rate=1e-2", "training.frames=all", "models.a.head.kind=logistic"])
    assert recipe.training.learning_rate == 0.01
    assert recipe.training.frames == "all"
    assert recipe.models["a"].config.head.kind == "logistic"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["training.learning_rat=1", "nonsense", "name.first=x"])
    assert "did you mean 'learning_rate'" in str(caught.value)
    assert "--set nonsense" in str(caught.value)
    assert "name is a value" in str(caught.value)


def test_the_fingerprint_covers_everything_but_the_location_of_the_data(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path)
    assert load_recipe(path, ["data.root=/elsewhere"]).fingerprint == recipe.fingerprint
    assert load_recipe(path, ["training.learning_rate=3e-4"]).fingerprint != recipe.fingerprint


def test_a_budget_that_no_member_fits_is_refused_before_any_data_is_read(tmp_path):
    path, small = write(tmp_path, GOOD), ["models.b.family=netvlad", "models.b.hidden=8"]
    assert plan(load_recipe(path, ["budget_mb=0.5", *small]))  # which b fits
    with pytest.raises(
        BudgetError, match=r"over the budget of 10,000 bytes; members: a .*, b .*; no single member would"
    ):
        plan(load_recipe(path, ["budget_mb=0.01", *small]))


def test_every_key_is_documented():
    text = "".join((RECIPES.parent / "docs" / name).read_text() for name in ("recipes.md", "models.md"))
    tables = {"data", "training", "averaging", "quantization", "ensemble", "models", "distillation", "students"}
    tables |= {"imported", "tune"}
    missing = [key for key in known_keys() if f"`{key}`" not in text and key not in tables]
    assert not missing
    assert [family for family in FAMILIES if f"### `{family}`" not in text] == []
    assert all(f"`[{table}" in text for table in tables)
