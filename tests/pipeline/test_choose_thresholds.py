"""Thresholds and calibration of a file: chosen, stored, carried on or left out, and applied everywhere."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import reeltag
from conftest import TINY_RUN
from reeltag.artifact.file import (
    Artifact,
    Member,
    average_artifacts,
    combine_artifacts,
    load_artifact,
    save_artifact,
)
from reeltag.artifact.tagging_rule import Calibration, Thresholds
from reeltag.cli.main import main
from reeltag.core import tensorfile
from reeltag.core.errors import ArtifactError, DataError, UsageError
from reeltag.core.storage import write_json
from reeltag.data.formats.example import Video
from reeltag.data.holdout import split_holdout
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples, scan, write_videos
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.serve.app import create_app
from reeltag.serve.limits import Limits
from reeltag.serve.models import in_thread

WORDS = ("cat", "dog, wet", "eel", "fox")  # no video is a fox
SCHEMA = Schema(features=({"name": "rgb", "width": 6},), dtype="float32", classes=4, max_frames=5)
PRECISION = ("--precision", "0.6")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with two shards of 90 videos, and a model whose probabilities their labels were drawn from."""
    folder = tmp_path_factory.mktemp("thresholds")
    config = parse_config({"family": "mean", "hidden": 0, "head": {"kind": "logistic"}, "gating": {"kind": "none"}})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    member = Member(
        "a", config, 1.0, {name: 4 * t if "weight" in name and t.ndim == 2 else t for name, t in state.items()}
    )
    provenance = {"recipe": "own", "data": {"shards": ["train-*.tfrecord"], "videos": 5}}
    save_artifact(folder / "model.reeltag", Artifact(SCHEMA, WORDS, (member,), provenance))
    tagger = reeltag.load(folder / "model.reeltag", "exact")
    rng = np.random.default_rng(0)
    for shard in ("valid-0", "train-0"):
        videos = []
        for number in range(90):
            frames = rng.normal(size=(3, 6)).astype(np.float32)
            drawn = rng.random(4) < tagger.predict(frames) * [1, 1, 1, 0]
            videos.append(Video(f"{shard}-{number}", np.flatnonzero(drawn), (frames,), 0))
        write_videos(folder / f"{shard}.tfrecord", videos, SCHEMA)
    return folder


@pytest.fixture(scope="module")
def tuned(made):
    """The model's file with thresholds and a calibration."""
    options = {"precision": 0.6, "calibrate": "per-class", "mode": "exact"}
    reeltag.choose_thresholds(made / "model.reeltag", made / "valid-0.tfrecord", out=made / "tuned.reeltag", **options)
    return made / "tuned.reeltag"


def command(capsys, *arguments):
    capsys.readouterr()
    code = main(list(map(str, arguments)))
    return (code, *capsys.readouterr())


def truth(made, shard):
    """Return ids, frames and labels [N, 4] of a shard."""
    videos = list(read_examples([made / f"{shard}.tfrecord"], SCHEMA))
    labels = np.array([np.isin(range(4), video.labels) for video in videos])
    return [video.id for video in videos], np.stack([video.features[0] for video in videos]), labels


def test_the_command_chooses_stores_and_tells(made, tmp_path, capsys):
    out, table = tmp_path / "out.reeltag", tmp_path / "classes.csv"
    shown = command(
        capsys,
        "thresholds",
        made / "model.reeltag",
        made / "valid-0.tfrecord",
        *PRECISION,
        "--mode",
        "exact",
        "--out",
        out,
        "--csv",
        table,
        "--json",
    )
    assert shown[0] == 0 and shown[2] == ""
    result = json.loads(shown[1])
    assert result["videos"] == 90 and result["thresholds"]["goal"] == "precision 0.6"
    assert result["bytes"] == out.stat().st_size
    _, frames, labels = truth(made, "valid-0")
    tagged = reeltag.load(out, "exact").predict(frames) >= reeltag.load(out, "exact").thresholds
    rows = list(csv.DictReader(table.open()))
    assert [row["name"] for row in rows] == list(WORDS)
    for number, (row, known) in enumerate(zip(rows, result["thresholds"]["classes"], strict=True)):
        assert known["positives"] == labels[:, number].sum() == int(row["positives"])
        assert known["tagged"] == tagged[:, number].sum()
        assert known["correct"] == (tagged & labels)[:, number].sum()
        if known["state"] == "chosen":
            assert float(row["precision"]) == pytest.approx(known["correct"] / known["tagged"], abs=1e-5)
            assert known["precision_low"] < known["precision"] <= known["precision_high"]
    assert [row["state"] for row in rows][3] == "no positives" and rows[3]["threshold"] == ""
    assert "chosen" in {row["state"] for row in rows}
    code, text, _ = command(capsys, "inspect", out)
    assert code == 0 and "goal precision 0.6" in text


@pytest.mark.parametrize("option", ["--out", "--csv"])
def test_a_file_that_cannot_be_written_is_refused_by_its_own_name_and_leftovers_go(made, tmp_path, capsys, option):
    given = ("thresholds", made / "model.reeltag", "nowhere-*", "--f1", option)
    long = tmp_path / f"{'x' * 240}.reeltag"  # its partial file's name is longer than the system's 255 bytes
    code, _, err = command(capsys, *given, long)
    assert code == 2 and f"{long}: cannot be written (File name too long)" in err and ".partial" not in err
    (tmp_path / ".a.reeltag.1-00000000.partial").touch()  # of a killed process
    assert command(capsys, *given, tmp_path / "a.reeltag")[0] == 2
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_met_is_said(made, capsys):
    code, out, _ = command(
        capsys, "thresholds", made / "model.reeltag", made / "valid-0.tfrecord", "--precision", "0.99"
    )
    assert code == 0
    assert "0 of 4 classes have a threshold" in out and "3 cannot be met: cat · dog, wet · eel" in out
    assert "1 no positives: fox" in out


def test_training_shards_and_unknown_origins_are_remarked_on(made, tmp_path, capsys):
    *_, err = command(capsys, "thresholds", made / "model.reeltag", made / "*.tfrecord", "--f1")
    assert "1 of 2 files are named like its training files (train-*.tfrecord), the first is train-0.tfrecord" in err
    _, out, err = command(capsys, "evaluate", made / "model.reeltag", made / "*.tfrecord")
    assert "gap" in out and "1 of 2 files are named like its training files" in err and "are too good" in err
    *_, err = command(capsys, "evaluate", made / "model.reeltag", made / "valid-0.tfrecord")
    assert "named like" not in err
    model = load_artifact(made / "model.reeltag")
    save_artifact(tmp_path / "unknown.reeltag", replace(model, provenance={}))
    *_, err = command(capsys, "thresholds", tmp_path / "unknown.reeltag", made / "valid-0.tfrecord", "--f1")
    assert "does not say which videos trained it" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["valid-0.tfrecord"], "give a goal"),
        (["--f1"], "give labelled shards, or the folder of a run"),
        (["valid-0.tfrecord", "--holdout", ".", "--f1"], "one of both"),
        (["--holdout", "nowhere", "--f1"], "nowhere: not the folder of a finished run"),
        (["--holdout", ".", "--labels", "labels.csv", "--f1"], "hold-out of a run has its own"),
        (["valid-0.tfrecord", "--f1", "--recall", "0.5"], "recall and f1"),
        (["valid-0.tfrecord", "--f1", "--out", "model.reeltag"], "exists"),
        (["valid-0.tfrecord", "--calibrate", "shared", "--csv", "a.csv"], "give a goal"),
    ],
)
def test_bad_combinations_are_refused(made, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(made)
    before = sorted(Path().iterdir())
    code, _, err = command(capsys, "thresholds", "model.reeltag", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_the_hold_out_is_read_from_the_folder_of_the_run(made, tmp_path):
    manifest = scan([made / "valid-0.tfrecord"], SCHEMA, labelled=True)
    write_json(tmp_path / "recipe.json", {"seed": 5, "data": {"holdout": {"fraction": 0.5, "shards": None}}})
    stage = tmp_path / "stages" / "data.train-1"
    stage.mkdir(parents=True)
    manifest.save(stage / "manifest.safetensors")
    write_json(stage / "stage.json", {"digest": "1"})
    shutil.copy(made / "model.reeltag", tmp_path)
    chosen = reeltag.choose_thresholds(made / "model.reeltag", holdout=tmp_path, f1=True, mode="exact")
    _, held = split_holdout(manifest, 5, fraction=0.5)
    _, frames, labels = truth(made, "valid-0")
    tagged = reeltag.load(made / "model.reeltag", "exact").predict(frames[held]) >= chosen.thresholds.values
    assert chosen.videos == 45 and chosen.thresholds.about["holdout"] == tmp_path.name
    assert chosen.thresholds.positives.tolist() == labels[held].sum(0).tolist()
    assert chosen.thresholds.correct.tolist() == (tagged & labels[held]).sum(0).tolist()
    assert "made it, so the videos that this run held out may have trained it" in chosen.remarks[0]
    later = tmp_path / "stages" / "data.train-2"  # of other shards, on which this model was not trained
    later.mkdir()
    scan([made / "train-0.tfrecord", made / "valid-0.tfrecord"], SCHEMA, labelled=True).save(
        later / "manifest.safetensors"
    )
    write_json(later / "stage.json", {"digest": "2"})
    for trained, expected, doubts in ((45, 45, 0), (46, 90, 1)):
        provenance = {"recipe_hash": "x", "data": {"shards": [], "videos": trained}}
        (tmp_path / "model.reeltag").unlink()
        save_artifact(tmp_path / "model.reeltag", replace(load_artifact(made / "model.reeltag"), provenance=provenance))
        again = reeltag.choose_thresholds(tmp_path / "model.reeltag", holdout=tmp_path, f1=True, mode="exact")
        assert (again.videos, len(again.remarks)) == (expected, doubts)
    shutil.rmtree(later)
    other = replace(load_artifact(made / "model.reeltag"), schema=SCHEMA.model_copy(update={"max_frames": 9}))
    save_artifact(tmp_path / "other.reeltag", other)
    with pytest.raises(UsageError, match="another schema than the model"):
        reeltag.choose_thresholds(tmp_path / "other.reeltag", holdout=tmp_path, f1=True)
    moved = replace(manifest, shards=(replace(manifest.shards[0], path=str(tmp_path / "gone.tfrecord")),))
    moved.save(stage / "manifest.safetensors")
    with pytest.raises(DataError, match=r"gone\.tfrecord"):
        reeltag.choose_thresholds(made / "model.reeltag", holdout=tmp_path, f1=True)


@pytest.mark.slow
def test_the_hold_out_of_a_run_is_the_one_that_it_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(f'name = "tiny"\nbudget_mb = 0.3\n{TINY_RUN}[models.a]\nfamily = "mean"\n')
    run = reeltag.run("tiny.toml", out="run", overrides="training.epochs=0.1", work=reeltag.Work(quiet=True))
    chosen = reeltag.choose_thresholds(run.file, holdout="run", f1=True)
    held = load_artifact(Path(run.file)).provenance["holdout_gap"]
    assert chosen.videos == held["videos"] + held["chosen_on"] and chosen.remarks == ()
    again = reeltag.evaluate(run.file, "run/stages/synthetic-*/train-*.tfrecord")
    assert chosen.videos < again.summary()["videos"]


def test_a_file_without_rules_keeps_its_bytes_and_one_with_rules_loads_as_it_was_saved(made, tuned, tmp_path):
    save_artifact(tmp_path / "again.reeltag", load_artifact(made / "model.reeltag"))
    assert (tmp_path / "again.reeltag").read_bytes() == (made / "model.reeltag").read_bytes()
    assert not {"thresholds", "calibration"} & set(tensorfile.TensorFile(made / "model.reeltag").content)
    save_artifact(tmp_path / "tuned.reeltag", load_artifact(tuned))
    assert (tmp_path / "tuned.reeltag").read_bytes() == tuned.read_bytes()


def test_thresholds_of_another_vocabulary_and_impossible_ones_are_refused(tuned, tmp_path):
    good = load_artifact(tuned)
    assert good.thresholds is not None and good.calibration is not None
    three = Thresholds(*(getattr(good.thresholds, name)[:3] for name in ("values", "positives", "tagged", "correct")))
    flat = Calibration(np.zeros(4, np.float32), np.zeros(4, np.float32))
    for bad, message in (
        (replace(good, thresholds=three), "not those of 4 classes"),
        (replace(good, thresholds=replace(good.thresholds, values=np.full(4, np.nan, np.float32))), "no probability"),
        (replace(good, calibration=flat), "not above 0"),
    ):
        save_artifact(tmp_path / "bad.reeltag", bad)
        with pytest.raises(ArtifactError, match=message):
            load_artifact(tmp_path / "bad.reeltag")


def test_files_of_other_probabilities_leave_the_rules_out_with_a_remark(tuned, tmp_path, caplog):
    good = load_artifact(tuned)
    for other in (combine_artifacts({"a": good, "b": good}), average_artifacts({"a": good, "b": good})):
        assert other.rules == []
    assert "a: its thresholds and calibration hold for its own probabilities and are left out" in caplog.text
    assert main(["share", str(tuned), "--out", str(tmp_path / "shared")]) == 0
    assert (
        "Thresholds: goal precision 0.6, videos 90; applied on request" in (tmp_path / "shared/README.md").read_text()
    )
    np.testing.assert_array_equal(reeltag.load(tmp_path / "shared").thresholds, reeltag.load(tuned).thresholds)


def test_python_applies_them_on_request(made, tuned):
    plain, calibrated = reeltag.load(tuned, "exact"), reeltag.load(tuned, "exact", calibrated=True)
    _, frames, _ = truth(made, "train-0")
    before, after = plain.predict(frames), calibrated.predict(frames)
    about = load_artifact(tuned).calibration.about
    if about["log_loss_after"] < about["log_loss_before"]:
        assert not np.allclose(before, after)
    np.testing.assert_array_equal(before >= plain.thresholds, after >= calibrated.thresholds)  # both scales agree
    shown = plain.tags(frames[0], top=4, thresholds=True)
    assert [name for name, _ in shown] == [
        name for name, score in plain.tags(frames[0], top=4) if score >= plain.thresholds[WORDS.index(name)]
    ]
    assert plain.tags(frames[0], top=4, threshold=1.0) == []
    assert np.isinf(plain.thresholds[3]) and "fox" in dict(plain.tags(frames[0], top=4))
    bare = reeltag.load(made / "model.reeltag", "exact")
    for ask in (lambda: bare.thresholds, lambda: bare.tags(frames[0], thresholds=True)):
        with pytest.raises(UsageError, match="the model has none"):
            ask()
    with pytest.raises(UsageError, match="no calibration"):
        reeltag.load(made / "model.reeltag", calibrated=True)
    with pytest.raises(UsageError, match="one number for all classes"):
        plain.tags(frames[0], threshold=0.5, thresholds=True)


def test_predict_applies_them_in_every_format(made, tuned, tmp_path, capsys):
    ids, frames, _ = truth(made, "train-0")
    model = reeltag.load(tuned, "exact", calibrated=True)
    scores = model.predict(frames)
    expected = {
        name: [int(c) for c in np.argsort(-row, kind="stable")[:2] if row[c] >= model.thresholds[c]]
        for name, row in zip(ids, scores, strict=True)
    }
    assert 0 < sum(map(len, expected.values())) < 2 * len(ids)
    shared = (
        "predict",
        tuned,
        made / "train-0.tfrecord",
        "--mode",
        "exact",
        "--top",
        2,
        "--thresholds",
        "--calibrated",
    )
    lines = [json.loads(line) for line in command(capsys, *shared)[1].splitlines()]
    assert {line["id"]: [tag["class"] for tag in line["tags"]] for line in lines} == expected
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert command(capsys, *shared, "--out", tmp_path / name)[0] == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    pairs = {row["VideoId"]: row["LabelConfidencePairs"].split() for row in rows}
    assert {name: [int(each) for each in found[::2]] for name, found in pairs.items()} == expected
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == lines
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "a.parquet").to_pylist()
    assert {row["id"]: row["classes"] for row in parquet} == expected
    assert command(capsys, *shared, "--names", "--workers", 1, "--out", tmp_path / "named.csv")[0] == 0
    named = list(csv.DictReader((tmp_path / "named.csv").open()))
    assert [(row["id"], int(row["class"])) for row in named] == [(n, c) for n, found in expected.items() for c in found]
    assert all(row["name"] == WORDS[int(row["class"])] for row in named)
    by_id = dict(zip(ids, scores, strict=True))
    assert all(abs(float(row["score"]) - by_id[row["id"]][int(row["class"])]) < 1e-5 for row in named)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top", "0"], "not a valid number of tags"),
        (["--threshold", "1.5"], "not a probability"),
        (["--threshold", "0.5", "--thresholds"], "one number for all classes"),
        (["--names", "--out", "x.jsonl"], "names are for .csv alone"),
        (["--names"], "--names is for a .csv file"),
        (["--thresholds"], "the model has none"),
        (["--calibrated", "--out", "x.csv"], "no calibration"),
    ],
)
def test_predict_refuses_what_cannot_be_meant(made, capsys, monkeypatch, options, message):
    monkeypatch.chdir(made)
    code, out, err = command(capsys, "predict", "model.reeltag", "valid-0.tfrecord", "--mode", "exact", *options)
    assert code == 2 and message in err and out == "" and not list(Path().glob("x.*"))


def test_the_service_applies_them_on_request(made, tuned):
    client = pytest.importorskip("starlette.testclient").TestClient
    limits = Limits(64, 1_000_000, 1000, 30, 16)
    _, frames, _ = truth(made, "train-0")
    model = reeltag.load(tuned, "exact", calibrated=True)
    with client(create_app(in_thread(model), "tuned", limits)) as service:
        assert service.get("/model").json()["thresholds"]["goal"] == "precision 0.6"
        answer = service.post("/predict", json={"frames": frames[0].tolist(), "thresholds": True}).json()
        assert [tag["name"] for tag in answer["tags"]] == [name for name, _ in model.tags(frames[0], thresholds=True)]
        assert service.post("/predict", json={"frames": frames[0].tolist(), "thresholds": 1}).status_code == 400
    with client(create_app(in_thread(reeltag.load(made / "model.reeltag", "exact")), "model", limits)) as service:
        refused = service.post("/predict", json={"frames": frames[0].tolist(), "thresholds": True})
        assert refused.status_code == 400 and "the model has none" in refused.json()["error"]


ALONE = """
import json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime
frames, told = np.load("frames.npy"), []
for name in ("all.onnx", "two.onnx"):
    session = onnxruntime.InferenceSession(name)
    outputs = session.run(None, {"frames": frames, "lengths": np.full(len(frames), frames.shape[1])})
    known = session.get_modelmeta().custom_metadata_map
    told.append([[each.tolist() for each in outputs], json.loads(known["reeltag.thresholds"])])
assert "reeltag" not in sys.modules and "torch" not in sys.modules
print(json.dumps(told))
"""


def test_onnx_applies_them_in_a_process_of_onnxruntime_alone(made, tuned, tmp_path):
    pytest.importorskip("onnxruntime")
    _, frames, _ = truth(made, "train-0")
    for name, top in (("all", None), ("two", 2)):
        reeltag.export_onnx(tuned, tmp_path / f"{name}.onnx", top=top, calibrated=True, thresholds=True)
    np.save(tmp_path / "frames.npy", frames)
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, check=True)
    ((probabilities, tagged), known), ((classes, scores, kept), _) = json.loads(done.stdout)
    model = reeltag.load(tuned, "exact", calibrated=True)
    expected = model.predict(frames)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(tagged, expected >= model.thresholds)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, np.array(classes), 1), atol=1e-5)
    np.testing.assert_array_equal(kept, np.take_along_axis(expected >= model.thresholds, np.array(classes), 1))
    assert known["goal"] == "precision 0.6" and known["values"][3] is None
    assert known["values"] == [value if value < np.inf else None for value in model.thresholds.tolist()]


def test_certain_probabilities_stay_certain():
    calibration = Calibration(np.full(3, 2, np.float32), np.full(3, 1, np.float32))
    mapped = calibration(torch.tensor([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(mapped, [0, 1 / (1 + np.exp(-1)), 1], atol=1e-7)
