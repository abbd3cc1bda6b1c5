"""Renamed keys of recipes: an old key is an error that names the new one, in every table."""

import pytest

from reeltag.core.errors import RecipeError
from reeltag.recipe.load import load_recipe
from reeltag.recipe.renamed_keys import rename_old_keys

RECIPE = """
name = "small"
budget_mb = 1
[data.synthetic]
classes = 12
[training]
[averaging]
[models.a]
family = "netvlad"
[distillation]
[students.s]
family = "netvlad"
"""
TRAINING = {
    "rate": ("learning_rate", 0.1),
    "decay": ("learning_rate_decay", 0.5),
    "decay_examples": ("learning_rate_decay_examples", 7),
    "warmup": ("warmup_ratio", 0.1),
    "watch": ("evaluate_every", 1.0),
}
RENAMED = {
    f"{table}.{old}": (f"{table}.{new}", value)
    for table in ("training", "models.a.training", "distillation.training", "students.s.training")
    for old, (new, value) in TRAINING.items()
} | {
    "averaging.rate_divisor": ("averaging.learning_rate_divisor", 4.0),
    "data.window": ("data.shuffle_window", 3),
    "distillation.label_share": ("distillation.label_weight", 0.3),
}
GRIDS = {
    f"{entry}.grid.training.{old}": (f"{entry}.grid.training.{new}", value)
    for entry in ("models.a", "students.s")
    for old, (new, value) in TRAINING.items()
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def faults(recipe, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, overrides)
    return list(caught.value.faults)


@pytest.mark.parametrize(("old", "new", "value"), [(old, *new) for old, new in RENAMED.items()])
def test_an_old_key_is_an_error_that_names_the_new_one(recipe, monkeypatch, old, new, value):
    said = f"{old} is called {new} now"
    assert faults(recipe, [f"{old}={value}"]) == [said]

    table, _, key = old.rpartition(".")
    in_file = recipe.with_name("old.toml")
    known = f"[{table}]"
    text = RECIPE.replace(f"{known}\n", f"{known}\n{key} = {value}\n")
    in_file.write_text(text if text != RECIPE else f"{RECIPE}{known}\n{key} = {value}\n")
    assert faults(in_file) == [said]

    monkeypatch.setenv("REELTAG_SET", f"training.epochs=3; {old}={value}")
    assert faults(recipe) == [f"{said} (REELTAG_SET sets it)"]

    monkeypatch.setenv("REELTAG_SET", f"{new}={value}")
    load_recipe(recipe)  # the new key is valid


@pytest.mark.parametrize(("old", "new", "value"), [(old, *new) for old, new in GRIDS.items()])
def test_an_old_key_of_a_grid_is_an_error_that_names_the_new_one(recipe, old, new, value):
    entry, _, key = old.partition(".grid.")
    assert faults(recipe, [f"{entry}.grid={{ '{key}' = [{value}] }}"]) == [f"{old} is called {new} now"]
    load_recipe(recipe, [f"{entry}.grid={{ '{new.partition('.grid.')[2]}' = [{value}] }}"])


def test_every_old_key_and_every_other_fault_come_in_one_message(recipe):
    old = [f"{key}={value}" for key, (_, value) in RENAMED.items()]
    said = faults(recipe, [*old, "training.epoch=3", "nonsense"])
    assert set(said) == {
        *(f"{key} is called {new} now" for key, (new, _) in RENAMED.items()),
        "training.epoch: unknown key; did you mean 'epochs'?",
        "--set nonsense: give it as dotted.key=value",
    }


def test_the_value_of_an_old_key_is_checked_as_that_of_the_new_one(recipe):
    assert faults(recipe, ["training.rate=-1"]) == [
        "training.rate is called training.learning_rate now",
        "training.learning_rate: must be more than 0, not -1",
    ]


def test_a_new_key_beside_the_old_one_keeps_its_value():
    table = {"training": {"rate": 1, "learning_rate": 2}, "models": {"a": 3}, "students": [], "data": {}}
    assert rename_old_keys(table) == [("training.rate", "training.learning_rate")]
    assert table == {"training": {"learning_rate": 2}, "models": {"a": 3}, "students": [], "data": {}}
