"""Mode auto: candidates, their measurement, the choice among them, and how it is kept. Times are injected."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import reeltag
from reeltag.artifact.file import save_artifact, stream_artifact
from reeltag.artifact.quantization.linear import is_large_matrix
from reeltag.artifact.quantization.quantize import dequantize_state, quantize_channels
from reeltag.cli.doctor import findings
from reeltag.cli.main import main
from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.data.schema import preset_schema
from reeltag.inference.engines import choice as choices
from reeltag.inference.engines import measure as measuring
from reeltag.inference.engines import ways
from reeltag.inference.engines.choice import Choice, choose, fastest
from reeltag.inference.engines.measure import Measured, expected_gap, generated, measure
from reeltag.inference.ensemble import videos_at_once
from reeltag.inference.metrics.video_metrics import gap
from reeltag.inference.predictor import Predictor
from reeltag.inference.shard_tagger import _earlier_choice, predict_to_file
from small_models import SCHEMA, small_artifact, videos

LENGTHS = np.array([7, 3, 7, 1, 5, 2])
# Milliseconds and cost in GAP that the tests pretend to measure, of bf16 and onnxruntime's modes.
PRETENDED = {"exact": (9.0, 0.0), "bf16": (4.0, 0.0004), "onnx exact": (6.0, 0.0), "onnx fast": (1.0, 0.002)}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Give the cache a folder of its own, and let the tests' models count as large."""
    monkeypatch.setenv("REELTAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(choices, "SMALL", 0)
    return tmp_path / "cache" / "engines"


@pytest.fixture
def measured(monkeypatch):
    """Pretend to measure; list the members that were."""
    members = []

    def pretend(member, schema, candidates, videos):
        members.append(member.name)
        return [Measured(member.name, way, *PRETENDED[way]) for way in candidates if way in PRETENDED]

    monkeypatch.setattr(choices, "measure", pretend)
    monkeypatch.setattr(choices, "candidates", lambda member: list(PRETENDED))
    return members


@pytest.fixture
def model(tmp_path, everything_is_large):
    """Write a model of two NetVLADs, the second larger, and a mean."""
    parts = [("small", "netvlad", {"clusters": 2}), ("large", "netvlad", {"clusters": 4}), ("mean", "mean", {})]
    members = [
        replace(small_artifact(family, form).members[0], name=name, weight=weight)
        for (name, family, form), weight in zip(parts, (0.5, 0.2, 0.3), strict=True)
    ]
    save_artifact(tmp_path / "m.reeltag", replace(small_artifact("mean", {}), members=tuple(members)))
    return tmp_path / "m.reeltag"


def remarks(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_fastest_way_with_a_small_cost_is_chosen():
    def way(**rows):
        return fastest([Measured("m", name.replace("_", " "), *row) for name, row in rows.items()])

    assert way(exact=(9, 0.0), bf16=(4, 0.0005), fast=(1, 0.00051)) == "bf16"
    assert way(exact=(9, 0.0), bf16=(8.9, 0.0001)) == "exact", "as fast within 2 %, and more exact"
    assert way(exact=(9, 0.0), bf16=(8.6, 0.0001)) == "bf16"
    assert way(exact=(9, 0.0), onnx_exact=(4.05, 0.0), onnx_fast=(4, 1e-6)) == "onnx exact"
    assert way(exact=(9, 0.0), bf16=(1, float("nan"))) == "exact"


def test_the_largest_member_of_each_family_decides_for_the_family(cache, measured, model, monkeypatch):
    chosen = choose(model, "cpu", 64)
    assert sorted(measured) == ["large", "mean"]
    assert chosen.ways == {"small": "bf16", "large": "bf16", "mean": "bf16"}
    assert choose(model, "cuda", 64).ways == dict.fromkeys(chosen.ways, "exact")
    monkeypatch.setattr(choices, "SMALL", 2_000_000)
    assert choose(model, "cpu", 64) == Choice(
        dict.fromkeys(chosen.ways, "exact"), "the model has fewer than 2,000,000 weights"
    )
    assert len(measured) == 2


def test_a_choice_is_kept_for_the_same_machine_and_batch(cache, measured, model, caplog, monkeypatch):
    first = choose(model, "cpu", choices.TIMED)
    monkeypatch.setitem(PRETENDED, "onnx exact", (0.1, 0.0))
    assert choose(model, "cpu", 1000) == first and len(measured) == 2
    assert choose(model, "cpu", 1) != first and len(measured) == 4, "a single video is measured for itself"
    assert [file.suffix for file in cache.iterdir()] == [".json", ".json"]
    assert remarks(caplog) == []


@pytest.mark.parametrize("changed", ["processor", "versions"])
def test_another_processor_or_version_measures_again_with_one_remark(
    changed, cache, measured, model, caplog, monkeypatch
):
    choose(model, "cpu", 64)
    if changed == "processor":
        monkeypatch.setattr(choices, "cpuinfo_value", lambda key: "another")
    else:
        monkeypatch.setattr(choices, "__version__", "0.0.1")
    choose(model, "cpu", 64)
    choose(model, "cpu", 64)
    assert len(measured) == 4
    (remark,) = remarks(caplog)
    assert remark == f"{changed} changed since engines were chosen for this model; measuring again"


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"model": "m", "circumstances": {}, "choice": {"ways": {"a": "x"}}}', "other"]
)
def test_a_damaged_choice_is_measured_again_with_one_remark(damage, cache, measured, model, caplog):
    first = choose(model, "cpu", 64)
    (file,) = cache.iterdir()
    content = json.loads(file.read_text())
    content["choice"]["ways"] = {"another": "exact"}
    file.write_text(json.dumps(content) if damage == "other" else damage)
    assert choose(model, "cpu", 64) == first and len(measured) == 4
    (remark,) = remarks(caplog)
    assert remark == f"{file}: the kept choice of engines is damaged; measuring again"
    assert choose(model, "cpu", 64) == first and len(measured) == 4


def test_the_first_of_processes_that_measure_at_the_same_time_chooses(cache, measured, model, monkeypatch):
    real, first = choices._measured, []

    def slow(file, videos):
        if not first:  # another process measures meanwhile, and finds other times
            first.append(None)
            with monkeypatch.context() as other:
                other.setitem(PRETENDED, "onnx exact", (0.1, 0.0))
                first[0] = choose(model, "cpu", 64)
        return real(file, videos)

    monkeypatch.setattr(choices, "_measured", slow)
    assert choose(model, "cpu", 64) == first[0] and set(first[0].ways.values()) == {"onnx exact"}
    assert choose(model, "cpu", 64) == first[0] and len(list(cache.iterdir())) == 1


def test_a_kept_choice_without_its_circumstances_is_damaged(cache, measured, model):
    choose(model, "cpu", 64)
    (file,) = cache.iterdir()
    content = json.loads(file.read_text())
    del content["circumstances"]["threads"]
    file.write_text(json.dumps(content))
    (shown,) = [each for each in findings() if each.name == "mode auto"]
    assert "is damaged" in shown.value


def test_cells_of_recurrent_networks_are_measured_apart(cache, measured, tmp_path, everything_is_large):
    members = [
        replace(small_artifact("rnn", {"cell": cell, "cells": 8}).members[0], name=cell, weight=0.5)
        for cell in ("lstm", "gru")
    ]
    save_artifact(tmp_path / "m.reeltag", replace(small_artifact("mean", {}), members=tuple(members)))
    choose(tmp_path / "m.reeltag", "cpu", 64)
    assert sorted(measured) == ["gru", "lstm"]


def test_probabilities_that_are_not_finite_are_no_choice(everything_is_large, monkeypatch, caplog):
    (member,) = small_artifact("mean", {}).members

    def opened(member, schema, way):
        return lambda frames, lengths: torch.full((len(frames), SCHEMA.classes), torch.nan if way in broken else 0.5)

    monkeypatch.setattr(measuring, "open_member", opened)
    broken = {"bf16"}
    for _ in range(2):
        rows = measure(member, SCHEMA, ["exact", "bf16"], 2)
        assert [row.way for row in rows] == ["exact"] and fastest(rows) == "exact"
        broken = {"exact", "bf16"}
    assert all("are not finite" in remark for remark in remarks(caplog))


def test_a_cache_that_cannot_be_written_gives_one_remark(cache, measured, model, caplog):
    cache.parent.write_text("not a folder")
    assert choose(model, "cpu", 64).ways["mean"] == "bf16"
    (remark,) = remarks(caplog)
    assert "set REELTAG_CACHE to a writable folder" in remark


def test_candidates_follow_the_processor_and_what_is_installed(everything_is_large, monkeypatch):
    (eight,), (four,) = (small_artifact("mean", {}, encoding).members for encoding in ("uniform-8", "group-4"))
    for flags, onnx, int8, expected in (
        ({"avx512_bf16"}, True, True, ["exact", "bf16", "onnx exact", "onnx fast"]),
        ({"avx2"}, True, False, ["exact", "onnx exact", "onnx fast"]),
        ({"avx512_bf16", "avx512_vnni"}, False, True, ["exact", "bf16", "fast"]),
        (None, False, False, ["exact"]),
    ):
        monkeypatch.setattr(ways, "cpu_flags", lambda flags=flags: flags)
        monkeypatch.setattr(ways, "find_spec", lambda name, onnx=onnx: onnx or None)
        monkeypatch.setattr(ways, "int8_products_gain", lambda int8=int8: int8)
        assert ways.candidates(eight) == ways.candidates(four) == expected
    monkeypatch.setattr(ways, "LARGEST", 10)
    monkeypatch.setattr(ways, "find_spec", lambda name: True)
    assert ways.candidates(eight) == ["exact"], "beyond the limit of protobuf"


def test_an_engine_that_is_not_installed_is_remarked_on_when_measuring(cache, measured, model, caplog, monkeypatch):
    monkeypatch.setattr(ways, "find_spec", lambda name: None)
    choose(model, "cpu", 64)
    choose(model, "cpu", 64)
    assert remarks(caplog) == [f"onnxruntime is often faster and not installed; {install_command('onnx')}"]


def test_measuring_leaves_out_ways_that_fail(everything_is_large, monkeypatch):
    artifact = small_artifact("netvlad", {"clusters": 4})
    (member,) = artifact.members
    real = measuring.open_member

    def broken(member, schema, way):
        if way == "bf16":
            raise RuntimeError("could not create a primitive")
        return real(member, schema, way)

    monkeypatch.setattr(measuring, "open_member", broken)
    monkeypatch.setattr(measuring, "seconds", lambda module, inputs: len(inputs[1]) / 1000)
    rows = measure(member, SCHEMA, ["exact", "bf16", "onnx exact", "onnx fast"], 3)
    assert [row.way for row in rows] == ["exact", "onnx exact", "onnx fast"]
    assert all(row.milliseconds == 3 for row in rows)
    assert [row.gap_cost for row in rows[:2]] == [0, pytest.approx(0, abs=1e-6)]
    assert 0 < abs(rows[2].gap_cost) < 0.01


def test_long_calls_have_fewer_frames_before_they_have_too_few_videos(monkeypatch):
    schema = preset_schema("yt8m-frame")

    def timed_with(videos, at_once, once, each):
        monkeypatch.setattr(measuring, "seconds", lambda module, inputs: once + each * len(inputs[1]))
        return measuring._affordable(None, schema, videos) == at_once

    assert timed_with(64, (64, 300), 0.2, 0.013)
    assert timed_with(128, (64, 104), 0, 0.09)
    assert timed_with(1, (1, 300), 0.5, 0)


def test_expected_gap_equals_gap_where_labels_are_known():
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(30, 40, generator=generator), torch.rand(30, 40, generator=generator) < 0.1
    assert expected_gap(labels.float(), scores) == pytest.approx(gap(scores, labels), abs=1e-6)
    best = torch.rand(30, 40, generator=generator)
    costs = [expected_gap(best, best) - expected_gap(best, best + noise * scores) for noise in (1e-3, 0.1, 1)]
    assert 0 <= costs[0] < costs[1] < costs[2]


def test_generated_videos_have_padding_and_the_schemas_type():
    frames, lengths = generated(SCHEMA, 16, 50)
    assert (frames.shape, frames.dtype) == ((16, 50, SCHEMA.width), torch.uint8)
    assert (lengths[0], lengths[-1]) == (50, 20)
    assert generated(SCHEMA, 1, 50)[1].tolist() == [50]
    within, between = frames.float().std(1).mean(), frames.float().mean(1).std(0).mean()
    assert between > within > 10


def test_members_in_different_engines_give_the_weighted_mean(model, everything_is_large):
    head, members = stream_artifact(model)
    frames = videos()[0].numpy()
    exact = reeltag.load(model, "exact").predict(frames, LENGTHS)
    mixed = Choice({"small": "onnx exact", "large": "exact", "mean": "onnx exact"}, "a test")
    predictor = Predictor(head, members, mixed)
    np.testing.assert_allclose(predictor.predict(frames, LENGTHS), exact, atol=2e-6)
    assert predictor.mode == "auto" and predictor.choice is mixed
    alone = Predictor(*stream_artifact(model), Choice(dict.fromkeys(mixed.ways, "onnx exact"), "a test"))
    np.testing.assert_allclose(alone.predict(frames, LENGTHS), exact, atol=2e-6)


@pytest.mark.parametrize(("family", "form"), [("netvlad", {"clusters": 4}), ("rnn", {"cell": "lstm", "cells": 8})])
@pytest.mark.parametrize("encoding", ["group-4", "float16"])
def test_onnxruntime_multiplies_all_encodings_in_8_bits(family, form, encoding, everything_is_large):
    """The same as of a model whose factors, not its centres and recurrent weights, are quantized to 8 bits by hand."""
    (member,) = small_artifact(family, form, encoding).members
    inputs = generated(SCHEMA, 6, 7)
    exact, found = (ways.open_member(member, SCHEMA, way)(*inputs) for way in ("exact", "onnx fast"))
    by_hand = {
        name: quantize_channels(values)
        if is_large_matrix(values.shape) and "rnn" not in name and "centres" not in name
        else values
        for name, values in dequantize_state(member.state).items()
    }
    same = ways.open_member(replace(member, state=by_hand), SCHEMA, "onnx fast")(*inputs)
    np.testing.assert_allclose(found, same, atol=1e-6)
    assert 1e-6 < (found - exact).abs().max() < 0.05


def test_more_short_videos_are_tagged_at_once():
    sizes = {name: videos_at_once(preset_schema(name)) for name in ("yt8m-frame", "yt8m-video", "audioset")}
    assert sizes == {"yt8m-frame": 64, "yt8m-video": 256, "audioset": 256}


@pytest.mark.parametrize(
    ("said", "kind"),
    [("Failed to allocate memory for requested buffer of size 9", MemoryError), ("Invalid rank", RuntimeError)],
)
def test_errors_of_onnxruntime_become_pythons(said, kind, everything_is_large):
    (member,) = small_artifact("mean", {}).members
    module = ways.open_member(member, SCHEMA, "onnx exact")

    class Failing:
        def run(self, *arguments):
            raise Exception(said)

    module.session = Failing()
    with pytest.raises(kind, match=said):
        module(*generated(SCHEMA, 1, 2))


def test_load_measures_in_earnest_and_stays_near_exact(cache, model, everything_is_large):
    predictor = reeltag.load(model, batch_size=2)
    frames = videos()[0].numpy()
    exact = reeltag.load(model, "exact").predict(frames, LENGTHS)
    assert np.abs(predictor.predict(frames, LENGTHS) - exact).max() < 0.05
    assert {row.member for row in predictor.choice.measured} == {"large", "mean"}
    assert reeltag.load(model, batch_size=2).choice == predictor.choice
    with pytest.raises(UsageError, match="batch_size: must be 1 or more, not 0"):
        reeltag.load(model, batch_size=0)


def test_a_resumed_prediction_goes_on_as_it_began(
    cache, measured, tiny_shards, tiny_model, tmp_path, monkeypatch, caplog
):
    out, shards = tmp_path / "p.csv", f"{tiny_shards}/train-*"
    (name,) = reeltag.load(tiny_model, "exact").choice.ways
    monkeypatch.setitem(PRETENDED, "onnx exact", (0.1, 0.0))
    whole = predict_to_file(tiny_model, shards, tmp_path / "whole.csv")
    assert whole.choice.ways == {name: "onnx exact"}
    real, finished = reeltag.inference.shard_tagger._write, []

    def interrupted(tagger, part, job):
        if finished:
            raise KeyboardInterrupt
        finished.append(part)
        return real(tagger, part, job)

    monkeypatch.setattr("reeltag.inference.shard_tagger._write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(tiny_model, shards, out)
    monkeypatch.setattr("reeltag.inference.shard_tagger._write", real)
    choices.forget_choices()
    monkeypatch.setitem(PRETENDED, "onnx exact", (10, 0.0))  # another choice, were it not for the part
    with monkeypatch.context() as without:
        without.setattr(ways, "find_spec", lambda name: None)
        assert earlier(out) is None
    (remark,) = remarks(caplog)
    assert remark == f"{out}.parts: began with engines that are not available here; its shards are tagged again"
    counts = predict_to_file(tiny_model, shards, out)
    assert counts.choice == whole.choice and out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def earlier(out):
    """Return the choice of an interrupted prediction into a file."""
    folder = out.with_name(f"{out.name}.parts")
    (marker,) = folder.glob("part-*.json")
    return _earlier_choice(folder, json.loads(marker.read_text())["model"])


def test_doctor_shows_and_forgets_choices(cache, measured, model, capsys):
    choose(model, "cpu", 64)
    (shown,) = [each.value for each in findings() if each.name == "mode auto"]
    assert shown.startswith("m.reeltag, 64 videos, ") and "bf16: large, mean, small (the fastest" in shown
    (file,) = cache.iterdir()
    file.write_text("{")
    (shown,) = [each for each in findings() if each.name == "mode auto"]
    assert "is damaged" in shown.value and "--forget" in shown.hint
    assert main(["doctor", "--forget", "--json"]) == 0
    told = {each["name"]: each["value"] for each in json.loads(capsys.readouterr().out)["findings"]}
    assert told["mode auto"].startswith("nothing is chosen yet") and not list(cache.iterdir())


def test_commands_say_how_they_computed(cache, measured, tiny_shards, tiny_model, tmp_path, capsys):
    def told(*arguments):
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    predicted = told("predict", tiny_model, tiny_shards / "test-*", "--out", tmp_path / "p.csv")
    evaluated = told("evaluate", tiny_model, tiny_shards / "test-*")
    for each in (predicted, evaluated):
        assert set(each["computed"]["ways"].values()) == {"bf16"}
        assert {row["way"] for row in each["computed"]["measured"]} == set(PRETENDED)
