"""Quantization of a model file to `coded`, by `reeltag.quantize_file` and `reeltag quantize`."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import reeltag
from killing import killer
from reeltag.artifact.file import Artifact, load_artifact, save_artifact
from reeltag.artifact.quantization.encodings import CodedTensor, HalfTensor
from reeltag.artifact.quantization.quantize import stored_as
from reeltag.cli.main import main
from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.inference import quantize_file as module
from small_models import SCHEMA, in_encoding, in_mode, small_artifact

VIDEOS, LABELS = 640, 2
# A hidden layer and a gate that are large without `everything_is_large`, so that commands in other processes see them.
FORM = {"clusters": 4, "hidden": 320}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write a model, and shards whose labels are the classes that the model finds most probable."""
    folder = tmp_path_factory.mktemp("quantize")
    artifact = small_artifact("netvlad", FORM, "float32")
    save_artifact(folder / "m.reeltag", artifact)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (VIDEOS, 4, SCHEMA.width), dtype=np.uint8)
    best = np.argsort(-in_mode(artifact, "exact").predict(frames), axis=1)[:, :LABELS]
    for name, labels, count in (("videos", best, VIDEOS), ("unlabelled", None, VIDEOS), ("few", best, 12)):
        parts = [tuple(np.split(each, [SCHEMA.widths[0]], axis=1)) for each in frames[:count]]
        made = [Video(f"v{n}", None if labels is None else labels[n], part) for n, part in enumerate(parts)]
        write_shard(folder / f"{name}.tfrecord", (encode(each, SCHEMA) for each in made))
        if name == "videos":  # the tenth that measures the loss
            measured = np.random.default_rng(module.SEED).permutation(VIDEOS)[: VIDEOS // 10]
            write_shard(folder / "measured.tfrecord", (encode(made[n], SCHEMA) for n in sorted(measured)))
    return folder


def gap(model, folder):
    return reeltag.evaluate(model, folder / "measured.tfrecord").gap


def test_the_loss_is_allowed_on_the_videos_that_measure_it(folder, tmp_path):
    before, sizes = gap(folder / "m.reeltag", folder), []
    for number, max_loss in enumerate((0.0, 0.001, 0.05)):
        out = tmp_path / f"{number}.reeltag"
        arguments = {"calibrate": folder / "videos.tfrecord", "max_loss": max_loss}
        sizes.append(reeltag.quantize_file(folder / "m.reeltag", out, "coded", **arguments))
        assert sizes[-1] == out.stat().st_size
        assert before - gap(out, folder) <= max_loss
    assert sizes == sorted(sizes, reverse=True)
    assert (folder / "m.reeltag").stat().st_size / 4 > sizes[0] > 1.2 * sizes[-1]


def test_small_tensors_are_stored_in_float16(folder, tmp_path):
    arguments = {"calibrate": folder / "videos.tfrecord", "max_loss": 0.2}
    reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out.reeltag", "coded", **arguments)
    artifact = load_artifact(tmp_path / "out.reeltag")
    assert artifact.provenance["quantized"] == "coded"
    (member,), (before,) = artifact.members, load_artifact(folder / "m.reeltag").members
    assert stored_as(member.state) == "coded"
    large = {name for name, value in member.state.items() if isinstance(value, CodedTensor)}
    assert large == {"hidden.weight", "gate.weight"}
    for name in member.state.keys() - large:
        assert isinstance(member.state[name], HalfTensor)
        assert torch.equal(member.state[name].half, before.state[name].half())


def test_the_command_writes_the_same_file(folder, tmp_path, capsys):
    shards, model = str(folder / "videos.tfrecord"), str(folder / "m.reeltag")
    reeltag.quantize_file(reeltag.load(model), tmp_path / "a.reeltag", "coded", calibrate=shards, max_loss=0.05)
    command = ["quantize", model, "--out", str(tmp_path / "b.reeltag"), "--encoding", "coded"]
    assert main([*command, "--calibrate", shards, "--max-loss", "0.05"]) == 0
    assert "b.reeltag: " in capsys.readouterr().out
    assert (tmp_path / "a.reeltag").read_bytes() == (tmp_path / "b.reeltag").read_bytes()


def test_all_members_of_an_ensemble_are_encoded_and_those_in_8_bits_stay(folder, tmp_path):
    (one,) = load_artifact(folder / "m.reeltag").members
    eight = in_encoding(Artifact(SCHEMA, None, (one,), {}), "uniform-8").members[0]
    members = (replace(one, name="a", weight=0.5), replace(eight, name="b", weight=0.5))
    save_artifact(tmp_path / "two.reeltag", Artifact(SCHEMA, None, members, {}))
    shards = folder / "videos.tfrecord"
    reeltag.quantize_file(tmp_path / "two.reeltag", tmp_path / "out.reeltag", "coded", calibrate=shards, max_loss=0.05)
    assert [stored_as(each.state) for each in load_artifact(tmp_path / "out.reeltag").members] == ["coded", "uniform-8"]


@pytest.mark.parametrize(
    ("encoding", "shards", "max_loss", "message"),
    [
        ("coded", None, None, "coded needs videos .*; give shards of the training data"),
        ("coded", "few", None, "12 calibration videos: coded needs 500 or more for these features; give more shards"),
        ("coded", "nowhere", None, r"nowhere\.tfrecord: no file in "),
        ("coded", "videos", -0.1, "max_loss -0.1: must be 0 or more"),
        ("coded", "videos", float("nan"), "max_loss nan: must be 0 or more"),
        ("uniform-8", "videos", None, "uniform-8 needs neither calibration videos nor a largest loss"),
        ("group-4", None, 0.1, "group-4 needs neither calibration videos nor a largest loss"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(folder, tmp_path, encoding, shards, max_loss, message):
    calibrate = [folder / f"{shards}.tfrecord"] if shards else ()
    with pytest.raises(UsageError, match=message):
        reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out", encoding, calibrate=calibrate, max_loss=max_loss)
    assert not list(tmp_path.iterdir())


def test_features_need_as_many_videos_as_they_have_values(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAST_VIDEOS", 1)
    with pytest.raises(UsageError, match=r"12 calibration videos: coded needs 16 or more for these features"):
        reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out", "coded", calibrate=folder / "few.tfrecord")


def test_unlabelled_videos_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match=r"unlabelled\.tfrecord.*labels"):
        reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out", "coded", calibrate=folder / "unlabelled.tfrecord")
    assert not list(tmp_path.iterdir())


def test_videos_of_another_schema_are_refused(tiny_shards, folder, tmp_path):
    with pytest.raises(DataError, match="train-00000"):
        reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out", "coded", calibrate=str(tiny_shards / "train-*"))
    assert not list(tmp_path.iterdir())


def test_a_quantized_file_is_refused_before_anything_is_calibrated(folder, tmp_path, monkeypatch):
    small = tmp_path / "small.reeltag"
    reeltag.quantize_file(folder / "m.reeltag", small, "uniform-8")
    monkeypatch.delattr(module.calibration, "calibrate")
    with pytest.raises(UsageError, match="stored in uniform-8 already"):
        reeltag.quantize_file(small, tmp_path / "out", "coded", calibrate=folder / "videos.tfrecord")
    assert list(tmp_path.iterdir()) == [small]


def test_a_loss_that_no_step_keeps_is_one_message(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("reeltag.artifact.quantization.coded.FINEST", 0.1)  # all too coarse
    monkeypatch.setattr("reeltag.artifact.quantization.coded.COARSEST", 0.2)
    arguments = ["--out", str(tmp_path / "out"), "--encoding", "coded", "--calibrate", str(folder / "videos.tfrecord")]
    assert main(["quantize", str(folder / "m.reeltag"), *arguments, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "with its finest step it loses 0." in said and "allow more than 0.0005" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_reports_what_each_step_loses(folder, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "out"), "--encoding", "coded", "--calibrate", str(folder / "videos.tfrecord")]
    assert main(["quantize", str(folder / "m.reeltag"), *arguments, "--max-loss", "0.05"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert any(line.startswith(f"  calibrate m: {VIDEOS - VIDEOS // 10:,}/") for line in said), said
    losses = [line for line in said if line.startswith("  step ")]
    change = gap(tmp_path / "out", folder) - gap(folder / "m.reeltag", folder)
    assert losses[-1].endswith(f" videos {change:+.5f}")
    assert len(losses) == sum(line.startswith("  encode with step ") for line in said)


def test_an_interrupted_command_leaves_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "coarsest_step", lambda loss, most: loss(1e-3) and interrupted())
    with pytest.raises(KeyboardInterrupt):
        reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out", "coded", calibrate=folder / "videos.tfrecord")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_command_left_is_removed(folder, tmp_path):
    for name in (".out.1.partial", "..out.1-a.partial.1-b.partial", ".another.out.1.partial"):
        (tmp_path / name).touch()
    reeltag.quantize_file(folder / "m.reeltag", tmp_path / "out", "float16")
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".another.out.1.partial"}


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_killed_command_leaves_no_file_and_the_next_one_completes(folder, tmp_path):
    """Kill it before every change of a file, and before every fsync."""
    out = tmp_path / "out" / "small.reeltag"
    command = ["quantize", folder / "m.reeltag", "--out", out, "--encoding", "coded"]
    out.parent.mkdir()
    command += ["--calibrate", folder / "videos.tfrecord", "--max-loss", "0.05"]
    with killer(tmp_path) as processes:
        moments = processes.run(*command, within=out.parent)["counts"]["begin"]
        expected = out.read_bytes()
        assert moments > 2
        for moment in range(moments):
            out.unlink(missing_ok=True)
            assert processes.run(*command, within=out.parent, stage="begin", moment=moment)["code"] < 0
            assert not out.exists() or out.read_bytes() == expected
            out.unlink(missing_ok=True)
            assert processes.run(*command, within=out.parent)["code"] == 0
            assert out.read_bytes() == expected
            assert list(out.parent.iterdir()) == [out]
