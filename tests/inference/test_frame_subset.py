"""Tagging from a random subset of frames: which are drawn, and that nothing but seed and id decides it."""

import json

import numpy as np
import pytest

import reeltag
from conftest import make_video
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import UsageError
from reeltag.data.formats.example import encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.schema import preset_schema
from reeltag.data.shards import read_examples
from reeltag.inference import predictor as predictor_module
from reeltag.inference.frame_subset import FrameSubset, frame_subset
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

FAMILIES = [{"family": "netvlad", "clusters": 4}, {"family": "rnn", "cell": "lstm", "cells": 16}]


def save_ensemble(path, schema):
    """Write a file with one unordered and one ordered pooling."""
    members = []
    for number, table in enumerate(FAMILIES):
        config = parse_config({"hidden": 8, **table})
        state = build_tagger(config, schema.widths, schema.classes, number).state_dict()
        members.append(Member(f"m{number}", config, 0.5, state))
    save_artifact(path, Artifact(schema, None, tuple(members), {}))
    return path


@pytest.fixture(scope="module")
def model(tiny_schema, tmp_path_factory):
    return save_ensemble(tmp_path_factory.mktemp("model") / "m.reeltag", tiny_schema)


@pytest.fixture(scope="module")
def shards(tiny_schema, tmp_path_factory):
    """Write three shards of 70 videos with 1 to 9 frames."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        videos = [make_video(tiny_schema, 1 + number % 9, name=f"{shard}-{number}") for number in range(70)]
        write_shard(folder / f"s-{shard}.tfrecord", [encode(video, tiny_schema) for video in videos])
    return folder


def tagged(predictor, pattern, **options):
    parts = list(predictor.predict_shards(str(pattern), **options))
    return {id_: row for part in parts for id_, row in zip(part.ids, part.probabilities.numpy(), strict=True)}


def test_draws_are_uniform_with_replacement_and_in_the_videos_order():
    length, counts = 7, np.zeros(7)
    for number in range(2000):
        rows = FrameSubset(10, 3).draw(f"video-{number}", length)
        assert rows.shape == (10,) and (np.diff(rows) >= 0).all()
        counts += np.bincount(rows, minlength=length)
    expected = 2000 * 10 / length
    assert ((counts - expected) ** 2 / expected).sum() < 22.5  # chi-squared, 6 degrees of freedom, p = 0.001


def test_draws_are_the_same_in_every_version():
    """Measurements name a seed, so a draw must not change; an id beyond ASCII and a negative seed included."""
    assert FrameSubset(8, 1).draw("abc", 10).tolist() == [0, 0, 1, 4, 6, 6, 6, 8]
    assert FrameSubset(8, -1).draw("vidéo", 300).tolist() == [47, 53, 89, 108, 114, 136, 172, 240]


@pytest.mark.parametrize("mode", ["exact", "small", "fast"])
def test_a_video_is_tagged_from_the_frames_drawn_from_it(model, shards, tiny_schema, mode):
    predictor = reeltag.load(model, mode)
    found, subset = tagged(predictor, shards / "*", frames=5, seed=2), FrameSubset(5, 2)
    videos = {video.id: video for video in read_examples(sorted(shards.iterdir()), tiny_schema)}
    assert list(found) == list(videos)
    for id_, video in videos.items():
        frames = np.stack([video.frames()[row] for row in subset.draw(id_, video.length)])
        np.testing.assert_allclose(found[id_], predictor.predict(frames), atol=2e-6)
    everything = tagged(predictor, shards / "*")
    assert max(np.abs(found[id_] - everything[id_]).max() for id_ in videos) > 1e-3


def test_seeds_draw_other_frames_and_the_default_is_zero(model, shards):
    predictor = reeltag.load(model)
    zero, same, one = (tagged(predictor, shards / "*", frames=3, seed=seed) for seed in (None, 0, 1))
    assert all((zero[id_] == same[id_]).all() for id_ in zero)
    assert any((zero[id_] != one[id_]).any() for id_ in zero)


def test_the_draw_does_not_depend_on_batches_or_order(model, shards, monkeypatch):
    predictor = reeltag.load(model)
    found = tagged(predictor, shards / "*", frames=4, seed=1)
    names = sorted(map(str, shards.iterdir()), reverse=True)
    monkeypatch.setattr(predictor_module, "videos_at_once", lambda schema: 3)
    parts = list(predictor.predict_shards(names, frames=4, seed=1))
    ids = [id_ for part in parts for id_ in part.ids]
    assert ids != list(found) and sorted(ids) == sorted(found)
    for part in parts:
        for id_, row in zip(part.ids, part.probabilities.numpy(), strict=True):
            np.testing.assert_allclose(row, found[id_], atol=2e-6)


@pytest.mark.parametrize("mode", ["exact", pytest.param("small", marks=pytest.mark.slow)])
def test_commands_and_workers_draw_the_same_frames(capsys, model, shards, tmp_path, mode):
    options = ["--frames", "4", "--seed", "1", "--mode", mode]
    command = ["predict", str(model), f"{shards}/*", *options]
    assert main(command) == 0
    lines = capsys.readouterr().out
    for workers in "12":
        out = tmp_path / f"{workers}.jsonl"
        assert main([*command, "--out", str(out), "--workers", workers]) == 0
        assert out.read_text() == lines
    found = tagged(reeltag.load(model, mode), shards / "*", frames=4, seed=1)
    for line in map(json.loads, lines.splitlines()):
        for tag in line["tags"]:
            assert tag["score"] == pytest.approx(found[line["id"]][tag["class"]], abs=2e-6)


def test_evaluate_measures_the_subset(capsys, model, tiny_shards):
    pattern = str(tiny_shards / "test-*")
    gaps = set()
    for options in ({}, {"frames": 1}, {"frames": 1, "seed": 5}):
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        capsys.readouterr()
        assert main(["evaluate", str(model), pattern, *arguments, "--json"]) == 0
        summary = json.loads(capsys.readouterr().out)
        del summary["computed"], summary["at_threshold"]
        assert reeltag.evaluate(model, pattern, **options).summary() == summary
        gaps.add(summary["gap"])
    assert len(gaps) == 3


REFUSED = [
    (["--seed", "3"], "seed: 3 draws nothing, because all frames are used"),
    (["--frames", "0"], "frames: 0 is not from 1 to 9, the most frames of a video"),
    (["--frames", "10"], "frames: 10 is not from 1 to 9, the most frames of a video"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=["seed alone", "none", "too many"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "predict --out"])
def test_an_impossible_subset_is_refused_before_any_work(capsys, model, tmp_path, command, options, message):
    name, *out = command.split()
    out = [*out, str(tmp_path / "p.csv")] if out else []
    (tmp_path / "s.tfrecord").write_bytes(b"not read")
    assert main([name, str(model), str(tmp_path / "s.tfrecord"), *out, *options]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.tfrecord"]


def test_of_a_vector_a_video_nothing_can_be_drawn():
    with pytest.raises(UsageError, match="frames: 3 cannot be drawn, the model reads one vector a video"):
        frame_subset(3, None, preset_schema("yt8m-video"))


def test_of_segments_at_most_their_own_frames_are_drawn():
    schema = preset_schema("yt8m-frame").model_copy(update={"segments": 5})
    assert frame_subset(5, None, schema) == FrameSubset(5, 0)
    with pytest.raises(UsageError, match="from 1 to 5, the most frames of a segment"):
        frame_subset(6, None, schema)
