"""Averaged weights that a whole family keeps or drops, and a file that holds exactly the given members."""

import json

import pytest
import torch

from conftest import TINY_RUN
from reeltag.artifact.file import load_artifact
from reeltag.artifact.quantization.quantize import dequantize_state
from reeltag.cli.main import main
from reeltag.pipeline.plan import plan
from reeltag.recipe.load import load_recipe

RECIPE = (
    'name = "families"\nseed = 3\nbudget_mb = 1\n'
    + TINY_RUN
    + """decide = "family"
[models.mean]
family = "mean"
hidden = 16
bn_decay = 0.9
grid = { "head.experts" = [2, 3] }
[models.bag]
family = "dbof"
clusters = 16
hidden = 16
bn_decay = 0.9
[distillation]
families = []
teachers = 2
[students.taught]
family = "mean"
hidden = 16
bn_decay = 0.9
[students.cross]
family = "netvlad"
teachers = ["mean"]
clusters = 4
hidden = 16
bn_decay = 0.9
[ensemble.weights]
taught = 0.25
cross = 0.35
bag = 0.4
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    (folder / "recipe.toml").write_text(RECIPE)
    assert main(["run", str(folder / "recipe.toml"), "--out", str(folder / "out")]) == 0
    return folder


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "out" / "results.json").read_text())


def weights(folder, stage):
    (path,) = folder.glob(f"out/stages/{stage}-*/model.reeltag")
    (member,) = load_artifact(path).members
    return dequantize_state(member.state)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("family", "deciding"), [("mean", ["mean-2", "mean-3"]), ("dbof", ["bag"]), ("netvlad", ["cross"])]
)
def test_all_models_of_a_family_keep_what_helps_those_that_learn_labels_only(folder, results, family, deciding):
    members = {name: member for name, member in results["members"].items() if member["family"] == family}
    scores = [members[name]["averaging"] for name in deciding]
    averaged = sum(each["averaged"] - each["plain"] for each in scores) > 0
    for name, member in members.items():
        assert member["averaged"] == averaged
        plain, after = weights(folder, f"train.{name}"), weights(folder, f"average.{name}")
        assert not same(plain, after)
        assert same(weights(folder, f"weights.{name}"), after if averaged else plain)
        kept = member["averaging"]["averaged" if averaged else "plain"]
        assert member["holdout"]["float32"]["gap"] == pytest.approx(kept, abs=1e-6)


def test_the_file_holds_exactly_the_given_members_and_weights(folder, results):
    shipped = {entry["name"]: entry["weight"] for entry in results["shipped"]}
    assert shipped == {"taught": 0.25, "cross": 0.35, "bag": 0.4}
    members = load_artifact(folder / "out" / "model.reeltag").members
    assert {member.name: member.weight for member in members} == shipped
    assert results["evidence"] is None


def test_a_finished_run_is_not_repeated(folder, capsys):
    assert main(["run", str(folder / "recipe.toml"), "--out", str(folder / "out")]) == 0
    stages = len(plan(load_recipe(folder / "recipe.toml")))
    assert capsys.readouterr().err.count("done before") == stages


def test_members_alone_get_searched_weights(folder):
    command = [
        "run",
        str(folder / "recipe.toml"),
        "--out",
        str(folder / "out"),
        "--set",
        "ensemble={members=['bag','mean-2']}",
    ]
    assert main(command) == 0
    results = json.loads((folder / "out" / "results.json").read_text())
    assert sorted(entry["name"] for entry in results["shipped"]) == ["bag", "mean-2"]
    assert sum(entry["weight"] for entry in results["shipped"]) == pytest.approx(1)


def test_members_that_do_not_fit_are_refused_before_any_training(folder, tmp_path, capsys):
    command = ["run", str(folder / "recipe.toml"), "--out", str(tmp_path / "new"), "--set", "budget_mb=0.03"]
    assert main(command) == 2
    assert "over the budget of 30,000 bytes; members: taught " in (message := capsys.readouterr().err), message
    assert not (tmp_path / "new").exists()


def test_a_student_decides_for_a_family_without_models_and_stages_are_in_order(folder):
    stages = {stage.name: stage for stage in plan(load_recipe(folder / "recipe.toml"))}
    assert stages["averaging.netvlad"].inputs == ("average.cross",)
    assert stages["averaging.mean"].inputs == ("average.mean-2", "average.mean-3")
    seen = set()
    for name, stage in stages.items():
        assert set(stage.inputs) <= seen, name
        seen.add(name)


def held(tmp_path, root, train):
    """Write a recipe for copies of the tiny shards; returns its path."""
    features = '[{ name = "rgb", width = 8 }, { name = "audio", width = 4 }]'
    path = tmp_path / "recipe.toml"
    path.write_text(
        f'name = "held"\nbudget_mb = 1\n[data]\nroot = "{root}"\ntrain = {train}\ntest = ["test-*"]\n'
        f'schema = {{ preset = "yt8m-frame", classes = 4, features = {features} }}\n[models.a]\nfamily = "mean"\n'
    )
    return path


def test_a_hold_out_of_shards_that_do_not_train_is_refused_before_anything(tiny_shards, tmp_path, capsys):
    recipe = held(tmp_path, tiny_shards, '["train-*"]')
    shown = {
        '["test-*"]': "data.holdout.from: test-* matches none of the 2 training shards",
        '["train-*", "test-*"]': "data.holdout.from: test-* matches none of the 2 training shards",
        '["*-00000-*"]': "which data.train does not; the hold-out is drawn from the training shards",
    }
    for patterns, message in shown.items():
        drawn = f"data.holdout={{ shards = 1, from = {patterns} }}"
        for how in ([], ["--dry-run"]):
            assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--set", drawn, *how]) == 2
            assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_hold_out_whose_patterns_match_other_folders_too_is_refused(tiny_shards, tmp_path, capsys):
    for folder in ("", "more"):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        for path in tiny_shards.iterdir():
            (tmp_path / "data" / folder / f"{folder}{path.name}").write_bytes(path.read_bytes())
    recipe = held(tmp_path, tmp_path / "data", '["train-*", "more/moretrain-*"]')
    command = ["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run", "--set"]
    assert main([*command, 'data.holdout={ shards = 1, from = ["*train-*"] }']) == 2
    assert "data.holdout.from: matches " in (message := capsys.readouterr().err)
    assert "by its last folders or from data.root, and not by both" in message
    assert main([*command, 'data.holdout={ shards = 1, from = ["more/*"] }']) == 2  # test shards too
    assert "which data.train does not" in capsys.readouterr().err
    for patterns in ('["train-*"]', '["more/moretrain-*"]'):
        assert main([*command, f"data.holdout={{ shards = 1, from = {patterns} }}"]) == 0
        capsys.readouterr()
