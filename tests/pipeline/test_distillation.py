"""A small version of the paper's Figure 1: candidates, teachers, students, second level, one file."""

import json
import re
from itertools import combinations
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import reeltag
from conftest import TINY_RUN
from reeltag.artifact.file import load_artifact
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.cli.main import main
from reeltag.core import tensorfile
from reeltag.core.errors import DataError
from reeltag.core.progress import Progress
from reeltag.data.holdout import split_folds
from reeltag.data.shards import Manifest, Shards
from reeltag.data.soft_targets import SoftTargets
from reeltag.inference.metrics.video_metrics import Metrics
from reeltag.pipeline import executor
from reeltag.pipeline.plan import plan
from reeltag.pipeline.stages.check import Beside, room
from reeltag.pipeline.stages.ensemble import MEMBER_ROOM
from reeltag.pipeline.stages.files import split
from reeltag.pipeline.stages.teachers import family_teacher
from reeltag.recipe.load import load_recipe

RECIPE = (
    """
name = "figure-1"
seed = 5
budget_mb = 0.25
[data]
holdout = { fraction = 0.2 }
"""
    + TINY_RUN
    + """[quantization]
encodings = ["uniform-8", "group-4"]
[models.netvlad]
family = "netvlad"
hidden = 40
bn_decay = 0.9
grid = { clusters = [4, 6, 8] }
[models.mean]
family = "mean"
hidden = 600
bn_decay = 0.9
[distillation]
teachers = 2
folds = 2
top_k = 5
training = { epochs = 7 }
[students.cross]
family = "mean"
hidden = 32
bn_decay = 0.9
teachers = ["netvlad"]
[students.second]
family = "netvlad"
level = 2
hidden = 40
bn_decay = 0.9
grid = { clusters = [2, 4] }
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figure-1")
    (folder / "recipe.toml").write_text(RECIPE)
    run(folder)
    return folder


def run(folder, *overrides):
    options = [part for override in overrides for part in ("--set", override)]
    assert main(["run", str(folder / "recipe.toml"), "--out", str(folder / "out"), *options]) == 0
    return json.loads((folder / "out" / "results.json").read_text())


def stage_folder(folder, name, *overrides):
    """Return the folder of a finished stage."""
    found = executor.run(plan(load_recipe(folder / "recipe.toml", overrides)), folder / "out", Progress())
    return found[name]


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "out" / "results.json").read_text())


@pytest.fixture(scope="module")
def manifest(folder):
    return Manifest.load(stage_folder(folder, "data.train") / "manifest.safetensors")


def test_the_file_is_within_the_budget_and_beats_the_prior(folder, results):
    assert (folder / "out" / "model.reeltag").stat().st_size == results["bytes"] <= 250_000
    assert results["test"]["file"]["gap"] > results["test"]["prior"]["gap"] + 0.1
    artifact = load_artifact(folder / "out" / "model.reeltag")
    assert [member.name for member in artifact.members] == [entry["name"] for entry in results["shipped"]]
    assert sum(entry["weight"] for entry in results["shipped"]) == pytest.approx(1)


def test_a_budget_that_just_fits_the_smallest_member_is_kept(folder, results):
    recipe = load_recipe(folder / "recipe.toml")
    members = [model for name, model in results["members"].items() if name not in results["left_out"]]
    smallest = min(model["holdout"][encoding]["bytes"] for model in members for encoding in ("uniform-8", "group-4"))
    budget = smallest + MEMBER_ROOM + recipe.budget - room(recipe, Beside(None, {}))
    override = f"budget_mb={budget / 1e6}"
    assert len(run(folder, override)["shipped"]) == 1
    assert (folder / "out" / "model.reeltag").stat().st_size <= budget
    run(folder)
    less = ["--set", f"budget_mb={(budget - 1) / 1e6}"]
    assert main(["run", str(folder / "recipe.toml"), "--out", str(folder / "out"), *less]) == 2


def test_every_model_is_in_the_results(results):
    students = {"netvlad-student-1", "netvlad-student-2", "mean-student-1", "cross", "second-2", "second-4"}
    assert {name for name, model in results["members"].items() if model["taught_by"]} == students
    assert set(results["members"]) - students == {"netvlad-4", "netvlad-6", "netvlad-8", "mean"}


def test_the_teachers_are_the_best_combination_on_the_hold_out(folder, results):
    selection = json.loads((stage_folder(folder, "select.netvlad") / "selection.json").read_text())
    names = ["netvlad-4", "netvlad-6", "netvlad-8"]
    found = {
        name: tensorfile.load_tensors(stage_folder(folder, f"predict.{name}") / "predictions.safetensors")[0]
        for name in names
    }
    gaps = {
        pair: Metrics.of((found[pair[0]]["float32"] + found[pair[1]]["float32"]) / 2, found[pair[0]]["labels"]).gap()
        for pair in combinations(names, 2)
    }
    assert gaps[tuple(selection["names"])] == max(gaps.values())
    ranked = results["teachers"]["netvlad"]
    assert {tuple(each["models"]): each["gap"] for each in ranked} == pytest.approx(gaps, abs=1e-6)
    assert [each["gap"] for each in ranked] == sorted(gaps.values(), reverse=True)
    assert results["teachers"]["mean"] == [{"models": ["mean"], "gap": pytest.approx(ranked_alone(results, "mean"))}]


def ranked_alone(results, name):
    return results["members"][name]["holdout"]["float32"]["gap"]


def test_a_student_of_its_own_has_a_gain_beside_the_model_of_its_architecture(folder, results):
    likes = {name: model["like"] for name, model in results["members"].items() if "like" in model}
    assert likes.pop("second-4") == "netvlad-4"
    assert set(likes) == {"netvlad-student-1", "netvlad-student-2", "mean-student-1"}
    student, before = (results["members"][name]["test"]["float32"]["gap"] for name in ("second-4", "netvlad-4"))
    row = next(
        line for line in (folder / "out" / "report" / "tables.md").read_text().splitlines() if "second-4" in line
    )
    assert f"| {student:.5f} | {before:.5f} | {student - before:+.5f} |" in row


def test_a_student_has_its_teachers_architecture(folder, results):
    for number in (1, 2):
        name = f"netvlad-student-{number}"
        (student,) = load_artifact(stage_folder(folder, f"average.{name}") / "model.reeltag").members
        (teacher,) = load_artifact(
            stage_folder(folder, f"average.{results['members'][name]['like']}") / "model.reeltag"
        ).members
        assert student.config == teacher.config
        name = "pooling.parts.0.assign.weight"
        assert not torch.equal(student.state[name], teacher.state[name])


@pytest.mark.parametrize("teacher", ["netvlad", "mean", "netvlad-students"])
def test_hold_out_videos_have_no_targets_and_all_others_do(folder, manifest, teacher):
    targets = SoftTargets(stage_folder(folder, f"targets.{teacher}"), manifest)
    train, holdout = split(load_recipe(folder / "recipe.toml"), manifest)
    assert torch.isfinite(targets.rows(train)).all()
    for index in holdout:
        with pytest.raises(DataError, match="the teacher skipped this video"):
            targets.rows(np.array([index]))


@pytest.mark.parametrize("cross", [True, False])
def test_students_learn_from_their_own_family_or_from_all(folder, cross):
    override = f"distillation.cross_family={str(cross).lower()}"
    stages = plan(load_recipe(folder / "recipe.toml", [override]))
    taught_by = {s.name: {each for each in s.inputs if each.startswith("targets.")} for s in stages}
    netvlad, mean = "targets.netvlad", "targets.mean"
    assert taught_by["train.netvlad-student-1"] == ({netvlad, mean} if cross else {netvlad})
    assert taught_by["train.mean-student-1"] == ({netvlad, mean} if cross else {mean})
    assert taught_by["train.cross"] == {netvlad}
    assert taught_by["train.second-2"] == {"targets.netvlad-students"}


def test_a_students_own_label_weight_decides_its_loss(folder):
    """With weight 1 the teacher makes no difference, with any other it does."""
    states = {}
    for weight in (1.0, 0.2):
        for teacher in ("netvlad", "mean"):
            overrides = (f"students.cross.label_weight={weight}", f'students.cross.teachers=["{teacher}"]')
            (member,) = load_artifact(stage_folder(folder, "train.cross", *overrides) / "model.reeltag").members
            states[weight, teacher] = torch.cat([each.flatten().float() for each in member.state.values()])
    assert torch.equal(states[1.0, "netvlad"], states[1.0, "mean"])
    assert not torch.equal(states[0.2, "netvlad"], states[0.2, "mean"])
    assert not torch.equal(states[0.2, "netvlad"], states[1.0, "netvlad"])


def test_a_grid_over_the_label_weight_makes_a_student_of_each(folder):
    weights = {"cross-0_4": 0.4, "cross-0_5": 0.5, "cross-0_6": 0.6, "second-2": 0.7, "mean-student-1": 0.7}
    overrides = ["students.cross.grid.label_weight=[0.4, 0.5, 0.6]", "distillation.label_weight=0.7"]
    stages = plan(load_recipe(folder / "recipe.toml", overrides))
    found = {stage.name: stage.parameters.get("label_weight") for stage in stages}
    assert {name: found[f"train.{name}"] for name in weights} == weights
    assert found["train.mean"] is None


def top_five(probabilities):
    values, classes = torch.from_numpy(probabilities).topk(5)
    return torch.zeros(len(probabilities)).scatter(0, classes, values.half().float())


def test_cross_fitted_targets_come_from_teachers_that_never_saw_the_video(folder, manifest):
    recipe = load_recipe(folder / "recipe.toml")
    teacher, _ = family_teacher(recipe, "netvlad")
    targets = SoftTargets(stage_folder(folder, "targets.netvlad"), manifest)
    train, _ = split(recipe, manifest)
    folds = split_folds(train, recipe.seed, 2)
    for number, trainings in enumerate(teacher._folds()):
        models = []
        for training in trainings:
            assert sorted([*training.videos(manifest), *folds[number]]) == train.tolist()
            models.append(reeltag.load(stage_folder(folder, training.stage_name) / "model.reeltag"))
        for index in folds[number][:3]:
            frames = Shards(manifest).read(index).frames()
            expected = top_five(np.mean([model.predict(frames) for model in models], 0))
            torch.testing.assert_close(targets.rows(np.array([index]))[0], expected, atol=2e-3, rtol=0)


def test_in_sample_targets_come_from_the_finished_models(folder, manifest):
    override = "distillation.folds=0"
    names = json.loads((stage_folder(folder, "select.netvlad", override) / "selection.json").read_text())["names"]
    models = [reeltag.load(stage_folder(folder, f"average.{name}", override) / "model.reeltag") for name in names]
    targets = SoftTargets(stage_folder(folder, "targets.netvlad", override), manifest)
    train, _ = split(load_recipe(folder / "recipe.toml"), manifest)
    for index in train[:3]:
        frames = Shards(manifest).read(index).frames()
        expected = top_five(np.mean([model.predict(frames) for model in models], 0))
        torch.testing.assert_close(targets.rows(np.array([index]))[0], expected, atol=2e-3, rtol=0)


def test_of_the_second_level_the_smallest_that_hold_the_gap_are_kept(folder, results):
    overrides = ("distillation.tolerance=1", "distillation.keep=1")
    kept = json.loads((stage_folder(folder, "keep.netvlad", *overrides) / "kept.json").read_text())
    assert kept["kept"] == ["second-2"]
    strict = json.loads((stage_folder(folder, "keep.netvlad") / "kept.json").read_text())
    gaps = {name: model["holdout"]["float32"]["gap"] for name, model in results["members"].items()}
    bar = (gaps["netvlad-student-1"] + gaps["netvlad-student-2"]) / 2 - 0.001
    assert strict["bar"] == pytest.approx(bar)
    assert strict["kept"] == [name for name in ("second-2", "second-4") if gaps[name] >= bar]
    assert not set(strict["left_out"]) & {entry["name"] for entry in results["shipped"]}


def test_auto_takes_the_smallest_encoding_that_loses_little(folder):
    overrides = ("quantization.encodings=auto", "quantization.max_loss=0.002")
    results = run(folder, *overrides)
    for entry in results["shipped"]:
        scores = results["members"][entry["name"]]["holdout"]
        assert set(scores) == set(ENCODINGS)
        smaller = [e for e, s in scores.items() if s["bytes"] < scores[entry["encoding"]]["bytes"]]
        found = {}
        for stage in ("predict", "quantize"):
            path = stage_folder(folder, f"{stage}.{entry['name']}", *overrides) / "predictions.safetensors"
            found |= tensorfile.load_tensors(path)[0]
        order = np.random.default_rng([5, 0xA1F]).permutation(len(found["labels"]))
        half = torch.from_numpy(order[: (len(order) + 1) // 2])
        gaps = {e: Metrics.of(found[e][half], found["labels"][half]).gap() for e in scores}
        assert gaps[entry["encoding"]] >= gaps["float32"] - 0.002
        assert all(gaps[encoding] < gaps["float32"] - 0.002 for encoding in smaller)


def test_the_diversity_of_each_level_is_the_correlation_of_its_models_errors(folder, results):
    levels = {
        "trained on labels": ["netvlad-4", "netvlad-6", "netvlad-8", "mean"],
        "first-level students": ["netvlad-student-1", "netvlad-student-2", "mean-student-1", "cross"],
        "second-level students": ["second-2", "second-4"],
    }
    assert {each["group"]: each["models"] for each in results["diversity"]} == levels
    report = (folder / "out" / "report" / "report.md").read_text()
    for each in results["diversity"]:
        stages = [stage_folder(folder, f"predict.{name}") for name in each["models"]]
        found = [tensorfile.load_tensors(stage / "predictions.safetensors")[0] for stage in stages]
        errors = np.stack([(one["labels"].double() - one["float32"].double()).flatten().numpy() for one in found])
        expected = np.corrcoef(errors)[np.triu_indices(len(errors), 1)].mean()
        assert each["correlation"] == pytest.approx(expected, abs=6e-6)
        assert f"| {each['group']} | {', '.join(each['models'])} | {each['correlation']:.5f} |" in report


def test_the_tables_are_the_papers(folder, results):
    run(folder)
    tables = (folder / "out" / "report" / "tables.md").read_text()
    for title in ("Table 1. Weight averaging", "Table 2. Quantisation", "Table 3. Distillation", "Table 4. The file"):
        assert f"## {title}" in tables
    student, before = (results["members"][name]["test"]["float32"]["gap"] for name in ("mean-student-1", "mean"))
    assert f"| mean-student-1 (like mean) | mean | {student:.5f} | {before:.5f} | {student - before:+.5f} |" in tables
    averaging = [results["members"][f"netvlad-{k}"]["averaging"] for k in (4, 6, 8)]
    change = np.mean([scores["averaged"] - scores["plain"] for scores in averaging])
    assert f"| netvlad | 3 | {change:+.5f} |" in tables
    for entry in results["shipped"]:
        assert f"| {entry['weight']:.4f} |" in tables
    chart = ElementTree.parse(folder / "out" / "report" / "frontier.svg")
    texts = [element.text for element in chart.iter("{http://www.w3.org/2000/svg}text")]
    assert f"budget {results['budget'] / 1e6:.2f} MB" in texts
    assert "hold-out GAP@20" in texts


def test_map_over_all_scores_is_reported_where_asked_for(folder, capsys):
    override, out = "test.all_scores=true", folder / "out"
    done = executor.statuses(plan(load_recipe(folder / "recipe.toml", [override])), out)
    measured_anew = {stage for stage in ALL_MODELS if stage.startswith("test.")} | {"test.file", "report"}
    assert {name for name, status in done.items() if status != "done"} == measured_anew
    results = run(folder, override)
    report = (out / "report" / "report.md").read_text()
    assert "mAP, all scores" in report
    assert sorted(re.findall(r"^\| (\w+) \| \d\.\d{5} \|$", report, re.M)) == sorted(map(str, range(12)))
    manifest = Manifest.load(stage_folder(folder, "data.test") / "manifest.safetensors")
    shards = [str(shard.path) for shard in manifest.shards]
    capsys.readouterr()
    assert main(["evaluate", str(out / "model.reeltag"), *shards, "--all-scores", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["map_all"] == results["test"]["file"]["map_all"] > 0.3
    assert all("map_all" in member["test"]["float32"] for member in results["members"].values())
    assert "map_all" not in run(folder)["test"]["file"]


def test_a_candidate_that_is_not_selected_recomputes_no_student(folder):
    before = ["distillation.folds=0"]
    selection = json.loads((stage_folder(folder, "select.netvlad", *before) / "selection.json").read_text())
    (loser,) = {4, 6, 8} - {int(name.removeprefix("netvlad-")) for name in selection["names"]}
    sizes = [2 if size == loser else size for size in (4, 6, 8)]
    after = [*before, f"models.netvlad.grid.clusters={sizes}"]
    assert stage_folder(folder, "train.netvlad-2", *after).is_dir()
    for stage in ("targets.netvlad", "train.netvlad-student-1", "train.second-2"):
        folders = {stage_folder(folder, stage, *overrides) for overrides in (before, after)}
        assert len(folders) == (2 if stage.startswith("targets") else 1)


ENDS = {"ensemble", "pack", "test.file", "report"}


def stages_of(*names):
    return {f"{s}.{name}" for name in names for s in ("train", "average", "quantize", "predict", "test")}


FOLDS = {f"fold.netvlad-{kind}-{n}.{f}" for kind in ("teacher", "student") for n in (1, 2) for f in (1, 2)}
TAUGHT_BY_NETVLAD = {"select.netvlad", "targets.netvlad", "targets.netvlad-students", "keep.netvlad"} | FOLDS
STUDENTS = stages_of("netvlad-student-1", "netvlad-student-2", "cross", "second-2", "second-4")
OF_STUDENTS = {"targets.netvlad-students", "keep.netvlad"} | {stage for stage in FOLDS if "student" in stage}
ALL_MODELS = STUDENTS | stages_of("mean-student-1", "mean", "netvlad-4", "netvlad-6", "netvlad-8")
ALL_STUDENTS = STUDENTS | stages_of("mean-student-1") | OF_STUDENTS


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        (
            "models.netvlad.grid.clusters=[4, 6, 10]",
            ENDS | stages_of("netvlad-10") | TAUGHT_BY_NETVLAD | STUDENTS,
        ),
        (
            "models.mean.hidden=601",
            ENDS | stages_of("mean", "mean-student-1") | {"select.mean", "targets.mean", "fold.mean-teacher-1.1"}
            | {"fold.mean-teacher-1.2"},
        ),
        (
            "distillation.cross_family=true",
            ENDS | (ALL_STUDENTS - stages_of("cross")),
        ),
        ("distillation.dropout=0.1", ENDS | (ALL_STUDENTS - stages_of("cross"))),
        ("distillation.label_weight=0.3", ENDS | ALL_STUDENTS),
        ("students.cross.label_weight=0.5", ENDS - {"ensemble"}),  # the value that it had; the recipe's hash changes
        ("students.cross.label_weight=0.3", ENDS | stages_of("cross")),
        ("students.second.label_weight=0.3", ENDS | stages_of("second-2", "second-4") | {"keep.netvlad"}),
        ("distillation.training.epochs=8", ENDS | ALL_STUDENTS),
        ("distillation.top_k=4", ENDS | ALL_STUDENTS | {"targets.netvlad", "targets.mean"}),
        ("distillation.tolerance=0.5", ENDS | {"keep.netvlad"}),
        ("distillation.training.workers=1", set()),
        ("students.cross.training.workers=1", set()),
        ("students.cross.hidden=33", ENDS | stages_of("cross")),
        ("students.second.hidden=33", ENDS | stages_of("second-2", "second-4") | {"keep.netvlad"}),
        ("distillation.keep=1", ENDS | {"keep.netvlad"}),
        ("ensemble.trials=7", ENDS),
    ],
)  # fmt: skip
def test_a_change_recomputes_its_family_and_later_stages_only(folder, override, redone):
    done = executor.statuses(plan(load_recipe(folder / "recipe.toml", [override])), folder / "out")
    assert {name for name, status in done.items() if status != "done"} == redone
