"""Commands at the door: odd shards are tagged and counted, other files are named, and empty answers are errors."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import make_video
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.storage import write_json
from reeltag.data.formats.example import encode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import frame_record, write_shard
from reeltag.data.schema import Feature, Schema
from reeltag.data.shards import write_videos
from reeltag.inference.predictor import load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SCHEMA = Schema(features=(Feature(name="rgb", width=12), Feature(name="audio", width=4)), classes=9, max_frames=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = parse_config({"family": "mean", "hidden": 3})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    path = tmp_path_factory.mktemp("model") / "m.reeltag"
    save_artifact(path, Artifact(SCHEMA, None, (Member("a", config, 1.0, state),), {}))
    return str(path)


def changed(name: str, change: Callable[[Any], object], frames: int = 4) -> bytes:
    message = SequenceExample.FromString(encode(make_video(SCHEMA, frames, [1], name), SCHEMA))
    change(message)
    return message.SerializeToString()


def nameless(message: Any) -> None:
    del message.context.feature["id"]


def without_audio(message: Any) -> None:
    del message.feature_lists.feature_list["audio"]


def shorter(message: Any) -> None:
    del message.feature_lists.feature_list["audio"].feature[-1]


def odd_shards(folder: Path) -> list[str]:
    write_shard(folder / "a.tfrecord", [changed("x", nameless), changed("y", shorter), changed("z", without_audio)])
    (folder / "b.tfrecord").touch()
    write_shard(folder / "c.tfrecord", [changed(str(n), nameless if n % 2 else shorter) for n in range(5)])
    return [str(folder / f"{name}.tfrecord") for name in "abc"]


REMARKS = {
    "records without an id, called SHARD:NUMBER": 3,
    "records whose features differ in length, cut to the shortest": 4,
    "records without 'audio', filled with zeros": 1,
    "empty shards, passed over": 1,
}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_predict_answers_for_incomplete_records(
    model: str, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = odd_shards(tmp_path)
    out = tmp_path / f"p{ending}"
    assert main(["predict", model, *shards, "--out", str(out), "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["remarks"] == REMARKS
    for what, count in REMARKS.items():
        assert f"{what}: {count}\n" in printed.err
    assert main(["predict", model, *shards]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    names = ["a.tfrecord:0", "y", "z", "0", "c.tfrecord:1", "2", "c.tfrecord:3", "4"]
    assert [line["id"] for line in lines] == names
    if ending == ".csv":
        with out.open(newline="") as file:
            assert [row[0] for row in csv.reader(file)][1:] == names
    # What is cut and filled is what the same frames give.
    z = make_video(SCHEMA, 4, [1], "z").features[0]
    expected = load(model).predict(np.concatenate([z, np.zeros((4, 4), np.uint8)], axis=1))
    assert lines[2]["tags"][0]["score"] == pytest.approx(float(expected.max()), abs=1e-5)


def test_predict_counts_the_same_after_an_interruption(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = odd_shards(tmp_path)
    (tmp_path / "c.tfrecord").rename(tmp_path / "kept")
    (tmp_path / "c.tfrecord").write_bytes(frame_record(b"broken"))
    out = str(tmp_path / "p.csv")
    assert main(["predict", model, *shards, "--out", out, "--quiet"]) == 2
    (tmp_path / "kept").rename(tmp_path / "c.tfrecord")
    capsys.readouterr()
    assert main(["predict", model, *shards, "--out", out, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"] == REMARKS


def test_evaluate_and_verify_are_strict(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = odd_shards(tmp_path)
    assert main(["evaluate", model, shards[0]]) == 2
    assert "record 0, byte 0: no id: expected a text" in capsys.readouterr().err
    assert main(["evaluate", model, shards[1]]) == 2
    assert "b.tfrecord: is empty" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[], [[], []], [None, None]])
def test_evaluating_without_a_single_label_is_an_error(
    model: str, labels: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [make_video(SCHEMA, 2, each, str(number)) for number, each in enumerate(labels or [[]])]
    write_videos(tmp_path / "s", videos, SCHEMA)
    assert main(["evaluate", model, str(tmp_path / "s")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "label" in captured.err
    assert ("none of" in captured.err) == (labels != [None, None])


def hot(message: Any) -> None:
    message.context.feature["labels"].int64_list.value[:] = [0, 1, 0, 0, 1, 0, 0, 0, 0]


def test_labels_that_may_be_n_hot_are_called_out_everywhere(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "train", [changed(str(n), hot) for n in range(6)])
    write_shard(tmp_path / "test", [changed(str(n), hot) for n in range(6, 9)])
    recipe = tmp_path / "r.toml"
    text = RECIPE.replace("%s", "")
    recipe.write_text(text)
    for command in (
        ["data", "verify", str(tmp_path / "train"), "--schema", str(recipe)],
        ["run", str(recipe), "--out", str(tmp_path / "run"), "--quiet"],
        ["evaluate", model, str(tmp_path / "train")],
    ):
        assert main(command) == 2
        message = capsys.readouterr().err
        assert "every list has 9 values, all 0 or 1" in message
        assert 'encoding = "n-hot"' in message
    assert main(["data", "inspect", str(tmp_path / "train")]) == 0
    drafted = capsys.readouterr().out
    assert 'labels = { name = "labels", encoding = "n-hot" }' in drafted
    assert "all 0 or 1" in drafted
    recipe.write_text(text.replace("classes = 9", 'classes = 9\nlabels = { encoding = "n-hot" }'))
    assert main(["data", "verify", str(tmp_path / "train"), "--schema", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes_that_occur"] == 2


RECIPE = """name = "r"
budget_mb = 1
[data]
train = ["train"]
test = ["test"]
[data.schema]
features = [{ name = "rgb", width = 12 }, { name = "audio", width = 4 }]
classes = 9
max_frames = 20
%s
[training]
epochs = 1
batch_size = 4
frames = 4
device = "cpu"
[models.a]
family = "mean"
hidden = 3
"""


def test_a_test_set_without_a_label_ends_a_run_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_videos(tmp_path / "train", [make_video(SCHEMA, 2, [n % 9], str(n)) for n in range(30)], SCHEMA)
    write_videos(tmp_path / "test", [make_video(SCHEMA, 2, [], f"t{n}") for n in range(3)], SCHEMA)
    (tmp_path / "r.toml").write_text(RECIPE % "")
    assert main(["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 2
    printed = capsys.readouterr()
    assert "data.test: none of 3 videos has a label" in printed.err
    assert "the hold-out has 3 videos, and models are chosen by" in printed.out + printed.err
    assert not list((tmp_path / "run" / "stages").glob("train*"))


def test_a_run_counts_what_its_schema_forgives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [changed(str(n), shorter if n % 3 else without_audio) for n in range(30)]
    write_shard(tmp_path / "train", records)
    write_videos(tmp_path / "test", [make_video(SCHEMA, 2, [], f"t{n}") for n in range(3)], SCHEMA)
    (tmp_path / "r.toml").write_text(RECIPE % 'missing = "skip"\nunequal = "cut"')
    assert main(["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 2  # of the test set
    printed = capsys.readouterr()
    assert "records without 'audio', left out: 10" in printed.out + printed.err
    assert "records whose features differ in length, cut to the shortest: 20" in printed.out + printed.err


# --- verify without a schema ----------------------------------------------------------------------


def test_verify_takes_the_schema_of_the_manifest_beside_the_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "train-0.tfrecord"
    write_videos(shard, [make_video(SCHEMA, 2, [8], "a")], SCHEMA)
    wider = SCHEMA.model_copy(update={"classes": 40}).model_dump(mode="json")
    write_json(tmp_path / "manifest.json", {"format": 1, "schema": wider, "shards": {}})
    assert main(["data", "verify", str(shard)]) == 0
    printed = capsys.readouterr().out
    assert f"schema    of {tmp_path / 'manifest.json'}" in printed
    assert "1 of 40 occur" in printed
    (tmp_path / "other").mkdir()
    own = SCHEMA.model_dump(mode="json")
    write_json(tmp_path / "other" / "manifest.json", {"format": 1, "schema": own, "shards": {}})
    write_videos(tmp_path / "other" / "s", [make_video(SCHEMA, 2, [8], "b")], SCHEMA)
    assert main(["data", "verify", str(shard), str(tmp_path / "other" / "s")]) == 2
    assert "have different schemas" in capsys.readouterr().err
    write_json(tmp_path / "other" / "manifest.json", {"schema": "of something else"})
    assert main(["data", "verify", str(tmp_path / "other" / "s")]) == 0
    assert "schema    drafted" in capsys.readouterr().out


def test_verify_drafts_a_schema_from_all_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, label in enumerate((3, 8)):
        write_videos(tmp_path / f"s{number}", [make_video(SCHEMA, 2 + number, [label], str(number))], SCHEMA)
    shards = [str(tmp_path / "s0"), str(tmp_path / "s1")]
    assert main(["data", "verify", *shards]) == 0
    printed = capsys.readouterr().out
    assert "schema    drafted from these records: { features = [{ name = " in printed
    assert "2 of 9 occur" in printed
    write_videos(tmp_path / "t", [make_video(SCHEMA, 2, None, "9")], SCHEMA)
    assert main(["data", "verify", str(tmp_path / "t")]) == 0
    assert "no labels were found" in capsys.readouterr().out
    write_shard(tmp_path / "u", [b"\x0a\x00"])  # an empty context
    assert main(["data", "verify", str(tmp_path / "u")]) == 2
    assert "no schema fits them: " in capsys.readouterr().err


# --- other kinds of file --------------------------------------------------------------------------


def archive(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def tar(file: io.BytesIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as out:
        info = tarfile.TarInfo("a.npy")
        info.size = 3
        out.addfile(info, io.BytesIO(b"abc"))


def stored_zip(file: io.BytesIO) -> None:
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("notes.txt", "notes")


RECORD = frame_record(encode(make_video(SCHEMA, 2, [1], "a"), SCHEMA))
FILES: dict[str, tuple[bytes, str]] = {
    "gzip": (gzip.compress(RECORD), "is gzip"),
    "gzip of text": (gzip.compress(b"text"), "is gzip"),
    "zlib": (zlib.compress(RECORD), "is zlib"),
    "zlib, best": (zlib.compress(RECORD, 9), "is zlib"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "is HDF5"),
    "npy": (archive(lambda file: np.save(file, np.zeros((3, 4)))), "is .npy"),
    "npz": (archive(lambda file: np.savez(file, rgb=np.zeros(3))), "is .npz"),
    "npz, compressed": (archive(lambda file: np.savez_compressed(file, rgb=np.zeros(3))), "is .npz"),
    "zip": (archive(stored_zip), "is zip"),
    "pickle": (pickle.dumps({"rgb": [0] * 9}), "is a pickle, not a shard"),
    "pickle, protocol 2": (pickle.dumps([1, 2, 3], 2), "is a pickle, not a shard"),
    "Parquet": (b"PAR1" + bytes(100), "is Parquet"),
    "tar": (archive(tar), "is tar"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html>\n<title>404</title>", "is a web page, not a shard"),
    "XML": (b"\n<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page, not a shard"),
    "a bare record": (encode(make_video(SCHEMA, 2, [1], "a"), SCHEMA), "is one SequenceExample outside a TFRecord"),
    "JSON": (b'{"a": 1}\n', "is JSON"),
    "text": (b"id,labels\na,1\nb,2\n", "is text"),
}


@pytest.mark.parametrize("kind", FILES)
def test_files_of_other_kinds_are_called_what_they_are(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, told = FILES[kind]
    path = tmp_path / "a.tfrecord"
    path.write_bytes(content)
    for command in (["data", "inspect"], ["data", "verify", "--schema", "audioset"]):
        assert main([*command, str(path)]) == 2
        message = capsys.readouterr().err
        assert told in message
        assert message.count("\n") == 1
        assert (f"`reeltag data import {path} --out FOLDER`" in message) == ("not a TFRecord file" in message)
