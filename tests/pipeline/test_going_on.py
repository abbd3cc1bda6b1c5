"""A training goes on from a finished model: what is kept is planned, computed once, and reported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import SMALL_RECIPE, make_video
from reeltag.artifact.file import Artifact, Member, load_artifact, quantize_artifact, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError, UsageError
from reeltag.core.progress import Progress
from reeltag.data.extractor_origin import describe_other_input
from reeltag.data.schema import Feature, Origin, preset_schema
from reeltag.data.shards import write_videos
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.pipeline import executor
from reeltag.pipeline.plan import plan
from reeltag.pipeline.run import train_models
from reeltag.pipeline.stages.architectures import FixedArchitecture
from reeltag.pipeline.stages.check import check_recipe
from reeltag.pipeline.stages.data import shard_changes
from reeltag.pipeline.stages.start import model_start
from reeltag.recipe.load import load_recipe
from reeltag.training.schedule import StartSettings

NAMES = [f"class {number}" for number in range(8)]  # of the recipe


def save_model(path, schema, names=(*NAMES[:5], "gone"), members=("a",), encoding="float32", **keys):
    """Write a file of untrained models that read the data of SMALL_RECIPE."""
    config = parse_config({"family": "mean"} | keys, schema.widths)
    schema = schema.model_copy(update={"classes": 8 if names is None else len(names)})
    states = [build_tagger(config, schema.widths, schema.classes, seed).state_dict() for seed in range(len(members))]
    parts = tuple(Member(name, config, 1 / len(members), s) for name, s in zip(members, states, strict=True))
    save_artifact(path, quantize_artifact(Artifact(schema, names and tuple(names), parts, {}), encoding))
    return path


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL_RECIPE)
    return path


@pytest.fixture
def schema(recipe):
    return load_recipe(recipe).data.record_schema


def checked(recipe, *overrides):
    return check_recipe(load_recipe(recipe, overrides)).starts


def test_a_run_does_not_start_from_its_own_folder(recipe, schema, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["train", str(recipe), "--out", str(out)]) == 0
    before = {path: path.read_bytes() for path in out.rglob("*.reeltag")}
    again = ["train", str(recipe), "--out", str(out), "--set", f"training.start={out}", "--set", "training.epochs=2"]
    assert main(again) == 2
    assert f"training.start: {out} is the folder of this run as well; give another --out" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.reeltag")} == before


def test_a_run_goes_on_from_a_quantised_file_and_reports_what_it_kept(
    recipe, schema, tmp_path, capsys, everything_is_large
):
    file = save_model(tmp_path / "old.reeltag", schema, None, ("a", "b"), "uniform-8")
    out = tmp_path / "out"
    options = ["--set", f"training.start={file}", "--out", str(out)]
    assert main(["run", str(recipe), *options, "--dry-run"]) == 0
    kept = f"a of {file}: 8 of 8 classes kept by number"
    assert f"start.a     {kept}\n" in capsys.readouterr().out
    assert main(["run", str(recipe), *options]) == 0
    assert f"{kept}; the hold-out may contain videos that it was trained on" in capsys.readouterr().err

    (begun,) = out.glob("stages/start.a-*/model.reeltag")
    member, other = load_artifact(file).members
    (started,) = load_artifact(begun).members
    assert {name: value.dequantize().tolist() for name, value in member.state.items()} == {
        name: value.tolist() for name, value in started.state.items()
    }
    assert other.name == "b"
    results = json.loads((out / "results.json").read_text())["members"]["a"]["start"]
    assert results == {"file": str(file), "member": "a", "kept": 8, "by": "number", "new": [], "dropped": []}
    report = (out / "report" / "report.md").read_text()
    assert "a went on from a finished model, which may have been trained on videos of the hold-out" in report
    assert "- a, from a of" in report

    moved, digest = tmp_path / "moved.reeltag", {"start.a", "train.a"}
    shutil.move(file, moved)
    done = executor.statuses(plan(load_recipe(recipe, [f"training.start={moved}"])), out)
    assert set(done.values()) == {"done"}, "the path of the file decides nothing"
    save_model(moved, schema, None, ("b", "a"))
    done = executor.statuses(plan(load_recipe(recipe, [f"training.start={moved}"])), out)
    assert digest <= {name for name, status in done.items() if status == "to do"}
    done = executor.statuses(plan(load_recipe(recipe, [f"training.start={{file='{moved}', member='b'}}"])), out)
    assert done["data.train"] == "done" != done["start.a"]

    again = start_from(recipe, out, names=None)
    assert again.file.parent.name.startswith("train.a-")
    assert str(again) == f"a of {out}: 8 of 8 classes kept by number"
    with pytest.raises(UsageError, match="the run has no finished model b; name another one"):
        start_from(recipe, out, member="b")
    shutil.copytree(again.file.parent, again.file.parent.with_name(f"train.a-{'0' * 12}"))
    with pytest.raises(UsageError, match=r"2 recipes trained a there; give a file, such as .*model\.reeltag"):
        start_from(recipe, out)


def test_a_trained_file_names_its_classes_so_that_others_can_go_on_from_it(recipe, schema, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    write_videos(tmp_path / "a.tfrecord", [make_video(schema, name=f"v{n}") for n in range(20)], schema)
    features = "[{ name = 'rgb', width = 6 }, { name = 'audio', width = 2 }]"
    data = f"""[data]
schema = {{ features = {features}, classes = 8, max_frames = 6 }}
train = ["a.tfrecord"]
test = ["a.tfrecord"]
label_names = "names.txt"
"""
    named = tmp_path / "named.toml"
    named.write_text(
        SMALL_RECIPE.split("[data.synthetic]")[0] + data + "[training]" + SMALL_RECIPE.split("[training]")[1]
    )
    out = tmp_path / "out"
    (file,) = train_models(named, out=out).values()
    trained = save_model(tmp_path / "trained.reeltag", schema, NAMES)
    provenance = {"data": {"shards": ["b*.tfrecord", "a*.tfrecord"]}}
    save_artifact(trained, replace(load_artifact(trained), provenance=provenance))
    doubt = "of the test set 1 of 1 file are named like its training files (b*.tfrecord, a*.tfrecord), the first"
    assert doubt in str(start_from(named, trained))
    assert "test set" not in str(start_from(named, file))
    assert load_artifact(Path(file)).label_names == tuple(NAMES)
    for start in (file, out):
        match = start_from(recipe, start, names=["new", *NAMES[:0:-1]]).match
        assert (match.kept, match.by, match.new, match.dropped) == (7, "name", ("new",), (NAMES[0],))


def start_from(recipe, file, *overrides, names=NAMES, **keys):
    loaded = load_recipe(recipe, overrides)
    settings = StartSettings(file=str(file), **keys)
    return model_start(loaded, "a", FixedArchitecture(loaded.models["a"]), settings, names)


def written(start, folder):
    folder.mkdir()
    start.stage().work(executor.Job(folder, {}, Progress()))
    return load_artifact(folder / "model.reeltag").members[0].state["head.gates"]


def test_classes_are_matched_by_name_and_new_ones_drawn_from_the_seed(recipe, schema, tmp_path):
    file = save_model(tmp_path / "old.reeltag", schema)
    names = NAMES[::-1]
    start = start_from(recipe, file, names=names)
    new = "3 new (class 7 · class 6 · class 5), 1 dropped (gone)"
    assert str(start) == f"a of {file}: 5 of 8 classes kept by name, {new}"
    first, again = written(start, tmp_path / "first"), written(start, tmp_path / "again")
    other = written(start_from(recipe, file, "seed=1", names=names), tmp_path / "other")
    old = load_artifact(file).members[0].state["head.gates"]
    assert torch.equal(first, again)
    assert torch.equal(first[:, 9:12], old[:, 12:15])  # class 4; each class has three gates
    assert torch.equal(first[:, 9:], other[:, 9:])
    assert not torch.isclose(first[:, :9], other[:, :9]).any()


def test_a_model_with_other_classes_only_still_gives_its_pooling(recipe, schema, tmp_path):
    file = save_model(tmp_path / "old.reeltag", schema, ["cat", "dog"])
    assert "0 of 8 classes kept by name, 8 new" in str(start_from(recipe, file))


def test_settings_of_training_alone_may_differ(recipe, schema, tmp_path):
    file = save_model(tmp_path / "old.reeltag", schema, dropout=0.5, bn_decay=0.5, head={"l2": 1e-3})
    assert start_from(recipe, file).member == "a"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"head": {"experts": 4}}, r"has another architecture: head.experts = 4 and not 2; give the recipe's model"),
        ({"hidden": 8, "head": {"kind": "logistic"}}, r"hidden = 8 and not 0; head.kind = logistic and not moe"),
    ],
)
def test_another_architecture_is_refused_with_its_keys(recipe, schema, tmp_path, keys, said):
    file = save_model(tmp_path / "old.reeltag", schema, **keys)
    with pytest.raises(UsageError, match=f"a: training.start: {file}: .*{said}"):
        start_from(recipe, file)


def test_another_family_is_named_alone(recipe, schema, tmp_path):
    file = save_model(tmp_path / "old.reeltag", schema, family="dbof", clusters=8)
    with pytest.raises(UsageError, match="another architecture: family = dbof and not mean; give"):
        start_from(recipe, file)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "float32"}, "dtype float32 and not uint8"),
        ({"features": (Feature(name="rgb", width=8),)}, "the features rgb 8 and not rgb 6, audio 2"),
    ],
)
def test_a_model_of_other_features_is_refused(recipe, schema, tmp_path, change, said):
    file = save_model(tmp_path / "old.reeltag", schema.model_copy(update=change))
    with pytest.raises(UsageError, match=f"made for other data than data.schema says, {said}"):
        start_from(recipe, file)


def test_features_of_another_encoder_are_refused_as_far_as_both_are_known(schema):
    one, two = (
        schema.model_copy(update={"features": (Feature(name="rgb", width=6, extractor=origin), schema.features[1])})
        for origin in (Origin(name="clip", hash="a" * 64), Origin(name="clip", hash="b" * 64))
    )
    assert describe_other_input(one, two) == "'rgb' from clip with other weights or settings and not from clip"
    assert describe_other_input(one, schema) == describe_other_input(one, one) == ""


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        ({"name": "vggish:net.onnx,vggish_pca_params.npz", "scale": (0, 1)}, True),
        ({"name": "vggish:net.onnx,vggish_pca_params.npz", "scale": (0, 2)}, False),
        ({"name": "vggish:net.onnx,vggish_pca_params.npz", "scale": (0, 1), "projection": "b" * 64}, False),
        ({"name": "yamnet:net.tflite", "scale": (0, 1)}, False),
        (None, False),
    ],
)
def test_audioset_s_features_are_those_that_vggish_extracts(origin, same):
    published = preset_schema("audioset")
    extractor = origin and Origin(hash="a" * 64, **origin)
    feature = Feature(name="audio", width=128, extractor=extractor)
    extracted = published.model_copy(update={"features": (feature,), "classes": 3, "max_frames": 300})
    for one, two in ((published, extracted), (extracted, published)):
        assert (describe_other_input(one, two) == "") is same


def refused(recipe, capsys, tmp_path, *overrides):
    options = [part for each in overrides for part in ("--set", each)]
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *options]) == 2
    assert not (tmp_path / "out").exists()
    (message,) = capsys.readouterr().err.splitlines()
    return message


def test_a_member_that_does_not_exist_and_a_damaged_file_are_one_message_before_any_training(
    recipe, schema, tmp_path, capsys
):
    file = save_model(tmp_path / "old.reeltag", schema, members=("netvlad", "rnn"))
    message = refused(recipe, capsys, tmp_path, f"training.start={file}")
    how = f'training.start = {{ file = "{file}", member = "NAME" }}, or give a run\'s folder'
    assert message.endswith(f"has no member a; there are netvlad, rnn; name one of the same architecture, {how}")
    message = refused(recipe, capsys, tmp_path, f"training.start.file={file}", "training.start.member=netvald")
    assert "has no member netvald; did you mean 'netvlad'? there are netvlad, rnn" in message
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"a: training.start: {file}: " in refused(recipe, capsys, tmp_path, f"training.start={file}")
    gone = tmp_path / "gone.reeltag"
    assert f"a: training.start: {gone}" in refused(recipe, capsys, tmp_path, f"training.start={gone}")


def test_a_part_that_the_model_does_not_have_cannot_be_frozen(recipe, schema, tmp_path):
    file = save_model(tmp_path / "old.reeltag", schema)
    with pytest.raises(UsageError, match=r"start\.frozen: the model has no hidden with weights; leave it out"):
        start_from(recipe, file, frozen=("hidden",))


def test_students_take_the_start_of_all_trainings_but_not_that_of_their_teacher(recipe, schema, tmp_path):
    recipe.write_text(recipe.read_text() + "[distillation]\nteachers = 1\n")
    file = save_model(tmp_path / "old.reeltag", schema, None)
    starts = checked(recipe, f"models.a.training.start={file}")
    assert [each.name for each in starts] == ["a"]
    starts = checked(recipe, f"training.start={file}")
    assert [(each.name, each.member) for each in starts] == [("a", "a"), ("mean-student-1", "a")]
    stages = {stage.name: stage for stage in plan(load_recipe(recipe, [f"training.start={file}"]))}
    assert stages["train.mean-student-1"].inputs == (
        *("data.train", "select.mean", "start.mean-student-1", "targets.mean"),
    )
    assert "start" not in stages["select.mean"].parameters["models"]["a"].get("training", {})
    with pytest.raises(UsageError, match=r"leave out training\.start, or distillation\.folds"):
        checked(recipe, f"training.start={file}", "distillation.folds=2")


def test_a_recipe_gives_a_path_or_a_table_and_hashes_without_a_start_stay(recipe):
    path, table = (load_recipe(recipe, [f"training.start={each}"]) for each in ("x.reeltag", "{ file = 'x.reeltag' }"))
    assert path.training == table.training
    assert path.training.start == StartSettings(file="x.reeltag")
    assert "start" not in load_recipe(recipe).training.decisive()
    with pytest.raises(RecipeError, match=r"training\.start\.frozen\.0: must be .input_norm., "):
        load_recipe(recipe, ["training.start.file=x", "training.start.frozen=['head']"])


def test_other_shards_than_before_come_with_the_way_to_go_on(recipe, tmp_path):
    run = tmp_path / "run"
    marker = run / "stages" / "data.train-0" / "stage.json"
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"parameters": {"files": [["a.tfrecord", 1]]}}))
    loaded, now = load_recipe(recipe), [["a.tfrecord", 1], ["b.tfrecord", 2]]
    assert shard_changes(loaded, "train", now[:1], run / "stages") == []
    assert shard_changes(loaded, "train", now, run / "stages") == [
        "b.tfrecord is new",
        f"all models are trained anew on these shards; to go on from those of {run}, --set training.start={run} --out "
        "FOLDER (docs/training.md#going-on)",
    ]
    going_on = load_recipe(recipe, [f"training.start={run}"])
    assert shard_changes(going_on, "train", now, run / "stages") == ["b.tfrecord is new"]
