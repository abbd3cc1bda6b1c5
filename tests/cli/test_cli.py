"""Bad input: one clear message, exit code 2, no stack trace, and nothing half-written."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from fuzz.forge import decoded, take_apart

import reeltag
from conftest import encode_unchecked
from reeltag.artifact.file import Artifact, Member, load_artifact, save_artifact
from reeltag.artifact.hub_download import SHARED_FILE
from reeltag.artifact.quantization.quantize import dequantize_state, stored_as
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.cli.main import main
from reeltag.cli.options import Mode
from reeltag.cli.quantize import Encoding
from reeltag.core.errors import UsageError
from reeltag.data.formats.example import Video
from reeltag.data.formats.tfrecord import ShardFile, write_shard
from reeltag.data.schema import Labels
from reeltag.data.shards import Shards
from reeltag.inference import predictor
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from small_models import small_artifact, videos


@pytest.fixture(scope="module")
def model(tiny_model):
    return str(tiny_model)


def fails(capsys, *arguments):
    """Run a command that must fail; returns its message."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def shard(path, schema, *videos):
    write_shard(path, [encode_unchecked(video, schema) for video in videos])
    return path


def video(schema, name="v", labels=(1,), frames=3, width=None):
    rng = np.random.default_rng(0)
    shapes = [(frames, width or feature.width) for feature in schema.features]
    features = tuple(rng.integers(0, 256, shape, dtype=np.uint8) for shape in shapes)
    return Video(name, None if labels is None else np.array(labels, np.int64), features)


def test_missing_files_and_empty_globs(capsys, model, tmp_path):
    assert "nowhere.reeltag" in fails(capsys, "predict", tmp_path / "nowhere.reeltag", "x.tfrecord")
    message = fails(capsys, "predict", model, tmp_path / "*.tfrecord")
    assert "*.tfrecord: no file in " in message and " matches; give" in message
    assert "the folder does not exist" in fails(capsys, "evaluate", model, tmp_path / "no" / "*.tfrecord")
    assert "SHARDS is missing: Paths, URLs or glob patterns" in fails(capsys, "evaluate", model)


def test_advice_on_models_is_for_where_they_lie(capsys, model, tmp_path):
    good = Path(model).read_bytes()
    (tmp_path / "model.reeltag").write_bytes(good)
    message = fails(capsys, "inspect", tmp_path / "modle.reeltag")
    assert message == f"error: {tmp_path / 'modle.reeltag'}: no such file; did you mean 'model.reeltag'?\n"
    message = fails(capsys, "inspect", tmp_path / "other.txt")
    assert message == f"error: {tmp_path / 'other.txt'}: no such file; give the path of a .reeltag file\n"
    assert f"the folder {tmp_path / 'no'} does not exist" in fails(capsys, "inspect", tmp_path / "no" / "m.reeltag")
    assert f"did you mean {tmp_path / 'model.reeltag'}?" in fails(capsys, "inspect", tmp_path)
    short = tmp_path / "short.reeltag"
    short.write_bytes(good[:-1])
    message = fails(capsys, "inspect", short)
    assert message.endswith("the file is damaged, copy it again\n")
    stage = tmp_path / "stages" / "pack-0123456789ab"
    stage.mkdir(parents=True)
    (stage / "model.reeltag").write_bytes(good[:-1])
    message = fails(capsys, "inspect", stage / "model.reeltag")
    assert message.endswith(f"the file is damaged, remove {stage} and run again\n")


def test_damaged_shards_name_file_record_and_offset(capsys, model, tiny_shards, tmp_path):
    good = sorted(tiny_shards.glob("test-*"))[0]
    content = bytearray(good.read_bytes())
    offset = int(ShardFile(good).offsets()[3])
    bad = tmp_path / "bad.tfrecord"
    bad.write_bytes(content[: offset + 40])
    message = fails(capsys, "predict", model, bad, "--out", tmp_path / "p.csv")
    assert f"{bad}, record 3, byte {offset}: truncated" in message
    content[offset + 40] ^= 4
    bad.write_bytes(content)
    message = fails(capsys, "evaluate", model, bad)
    assert f"{bad}, record 3, byte {offset}: CRC of the payload does not match" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tfrecord"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (8,)}, "label 8 is outside the 8 classes"),
        ({"frames": 0}, "0 frames"),
        ({"width": 9}, "expected 6; check the schema's width"),
    ],
)
def test_records_that_break_the_schema(capsys, model, tiny_schema, tmp_path, change, message):
    bad = shard(tmp_path / "bad.tfrecord", tiny_schema, video(tiny_schema, "good"), video(tiny_schema, "bad", **change))
    printed = fails(capsys, "evaluate", model, bad)
    assert message in printed
    assert f"{bad}, record 1, byte" in printed


def test_a_wrong_feature_name_lists_what_is_there(capsys, tmp_path, tiny_shards):
    message = fails(capsys, "data", "verify", tiny_shards / "test-*", "--schema", "audioset")
    assert "no feature 'audio_embedding'; the record has audio, rgb" in message


def test_duplicate_ids_are_found_by_verify(capsys, tiny_schema, tmp_path):
    twice = shard(tmp_path / "twice.tfrecord", tiny_schema, video(tiny_schema, "x"), video(tiny_schema, "x"))
    recipe = tmp_path / "own.toml"
    features = ", ".join(f"{{name='{f.name}', width={f.width}}}" for f in tiny_schema.features)
    recipe.write_text(
        f"name='own'\nbudget_mb=1\n[data]\ntrain=['a']\ntest=['b']\n"
        f"schema={{features=[{features}], classes=8}}\n[models.a]\nfamily='netvlad'\n"
    )
    assert "id 'x' occurs already in record 0" in fails(capsys, "data", "verify", twice, "--schema", recipe)


def test_evaluating_without_labels_points_to_predict(capsys, model, tiny_schema, tmp_path):
    unlabelled = shard(tmp_path / "test.tfrecord", tiny_schema, video(tiny_schema, labels=None))
    message = fails(capsys, "evaluate", model, unlabelled)
    assert "record 0, byte 0: video 'v': has no labels: no 'labels', but id; check the schema's 'labels'" in message
    named = tiny_schema.model_copy(update={"labels": Labels(name="label")})
    other = shard(tmp_path / "other.tfrecord", named, video(named))
    assert "has no labels: no 'labels', but id, label; check the schema's" in fails(capsys, "evaluate", model, other)
    assert main(["predict", model, str(unlabelled)]) == 0


def test_longer_videos_are_cut_and_verify_says_so(capsys, model, tiny_schema, tmp_path):
    long = shard(tmp_path / "long.tfrecord", tiny_schema, video(tiny_schema, frames=40))
    assert main(["predict", model, str(long)]) == 0
    capsys.readouterr()
    assert main(["data", "inspect", str(long)]) == 0
    assert "40 frames" in capsys.readouterr().out


def test_outputs_that_exist_are_kept(capsys, model, tiny_shards, tmp_path):
    kept = tmp_path / "kept.csv"
    kept.write_text("mine")
    assert "exists already" in fails(capsys, "predict", model, tiny_shards / "test-*", "--out", kept)
    assert "exists already" in fails(capsys, "evaluate", model, tiny_shards / "test-*", "--per-class", kept)
    assert "exists already" in fails(capsys, "quantize", model, "--out", kept)
    assert kept.read_text() == "mine"
    assert "use .csv (Kaggle), .jsonl (JSON Lines) or .parquet" in fails(
        capsys, "predict", model, kept, "--out", tmp_path / "p.txt"
    )
    recipe = "recipes/quickstart.toml"
    assert "holds no reeltag run" in fails(capsys, "run", recipe, "--out", tmp_path)
    assert "not empty" in fails(capsys, "data", "synth", tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused_before_anything_is_made(capsys, tmp_path):
    message = fails(capsys, "run", "recipes/quickstart.toml", "--set", "training.device=cuda", "--out", tmp_path / "o")
    assert "training.device: cuda is not available on this machine" in message
    assert not (tmp_path / "o").exists()


def test_a_shard_given_as_the_model_is_no_model(capsys, model, tiny_shards):
    shard_path = sorted(tiny_shards.glob("test-*"))[0]
    assert "is not a reeltag file" in fails(capsys, "predict", shard_path, model)


def test_recipe_and_usage_faults_exit_with_2(capsys, tmp_path):
    recipe = "recipes/quickstart.toml"
    assert "did you mean 'epochs'" in fails(capsys, "run", recipe, "--set", "training.epoch=3", "--out", tmp_path / "o")
    assert "over the budget" in fails(capsys, "run", recipe, "--set", "budget_mb=0.1", "--out", tmp_path / "o")
    assert "there are netvlad-16" in fails(capsys, "train", recipe, "--model", "c", "--out", tmp_path / "o")
    assert "unknown key" in fails(capsys, "data", "synth", tmp_path / "s", "--set", "videos=3")
    assert main(["predcit"]) == 2
    assert main(["predict"]) == 2
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "s").exists()


def test_kaggle_csv_and_json_lines_agree_with_python(capsys, model, tiny_shards, tmp_path):
    pattern = str(tiny_shards / "test-*")
    assert main(["predict", model, pattern, "--out", str(tmp_path / "p.csv")]) == 0
    assert capsys.readouterr().out.strip().endswith("p.csv: 8 videos")
    assert main(["predict", model, pattern, "--out", str(tmp_path / "p.jsonl")]) == 0
    predictor = reeltag.load(model)
    (expected,) = predictor.predict_shards([pattern])
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").open()]
    assert [row["VideoId"] for row in rows] == [line["id"] for line in lines] == list(expected.ids)
    for row, line, probabilities in zip(rows, lines, expected.probabilities.numpy(), strict=True):
        pairs = row["LabelConfidencePairs"].split()
        classes, scores = [int(c) for c in pairs[::2]], [float(s) for s in pairs[1::2]]
        assert len(classes) == min(20, len(probabilities))
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, probabilities[classes], atol=1e-6)
        assert [tag["class"] for tag in line["tags"]] == classes


def test_python_predicts_what_the_command_line_does(model, tiny_manifests):
    manifest = tiny_manifests["test"]
    predictor, shards = reeltag.load(model), Shards(manifest)
    (parts,) = predictor.predict_shards([info.path for info in manifest.shards])
    for index in range(5):
        frames = shards.read(index).frames()
        np.testing.assert_allclose(predictor.predict(frames), parts.probabilities[index].numpy(), atol=1e-6)
    tags = predictor.tags(frames, top=3)
    assert [name for name, _ in tags] == [str(c) for c in np.argsort(-predictor.predict(frames), kind="stable")[:3]]


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((3, 9), np.uint8),
        np.zeros((3, 8), np.float32),
        np.zeros((0, 8), np.uint8),
        np.zeros(8, np.uint8),
    ],
)
def test_python_refuses_frames_that_the_model_cannot_read(model, frames):
    with pytest.raises(UsageError, match="frames are"):
        reeltag.load(model).predict(frames)


def test_help_imports_no_slow_module():
    """`reeltag --help` starts fast: it imports neither the libraries that compute nor reeltag's other packages."""
    code = "import sys; from reeltag.cli.main import main; main(['--help']); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(run.stdout.splitlines()[-1].split())
    slow = {"torch", "numpy", "pydantic", "packaging", "importlib.metadata", "asyncio", "concurrent.futures", "fsspec"}
    assert not modules & slow
    packages = {name.split(".")[1] for name in modules if name.startswith("reeltag.")}
    assert packages == {"cli", "core"}


def test_inspect_and_doctor_say_what_they_find(capsys, model):
    assert main(["inspect", model]) == 0
    printed = capsys.readouterr().out
    assert "rgb 6 + audio 2" in printed
    assert "bytes, float32, weight 1.0000" in printed
    assert main(["inspect", model, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["classes"] == 8
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_inspect_shows_settings_and_provenance_in_lines_to_read(capsys, tiny_schema, tmp_path):
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "head": {"kind": "moe", "experts": 3}})
    state = build_tagger(config, tiny_schema.widths, tiny_schema.classes, 0).state_dict()
    made = {
        "recipe": "r",
        "data": {"shards": ["a", "b"], "videos": 3},
        "gap": {"file": 1 / 3, "of": []},
        "versions": {f"package-{n}": n for n in range(30)},
    }
    save_artifact(tmp_path / "m.reeltag", Artifact(tiny_schema, None, (Member("a", config, 1.0, state),), made))
    assert main(["inspect", str(tmp_path / "m.reeltag")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 100
    assert '          family = "netvlad", hidden = 8, head.experts = 3, clusters = 4' in lines
    assert "  data      shards a, b, videos 3" in lines
    assert "  recipe    r" in lines
    assert "  gap       file 0.333333, of none" in lines


def test_inspect_shows_bits_and_zeros_of_coded_tensors(capsys, tmp_path, everything_is_large):
    """Compare with the bytes in the file, and with codes decoded by hand."""
    coded, plain = small_artifact("netvlad", {"clusters": 4}, "coded", hidden=40), small_artifact("rnn", {"cells": 8})
    members = [replace(each.members[0], name=name, weight=0.5) for each, name in ((coded, "a"), (plain, "b"))]
    path = tmp_path / "m.reeltag"
    save_artifact(path, replace(coded, members=tuple(members)))
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    ((member, rates),) = shown["coded"].items()
    assert member == "a"
    tensors, content = take_apart(path.read_bytes())
    names = [name.removesuffix("#steps") for name in tensors if name.endswith("#steps")]
    assert {f"a/{name}" for name in rates} == {*names, "a/all"}
    counts = []
    plain = {name: stored.data for name, stored in tensors.items() if name.startswith("a/")}
    plain |= {name: decoded(content["coded"][name], data) for name, data in plain.items() if name in content["coded"]}
    assert shown["decoded_bytes"]["a"] == sum(map(len, plain.values()))
    for name in names:
        entry, stored = content["coded"].get(name), tensors[name].data
        codes = np.frombuffer(decoded(entry, stored) if entry else stored, np.int8)
        size = len(stored) + len(tensors[f"{name}#steps"].data)
        counts.append((codes.size, 8 * size, (codes == 0).sum()))
        rate = rates[name.removeprefix("a/")]
        assert (rate["weights"], rate["bits"]) == (codes.size, 8 * size / codes.size)
        assert rate["zeros"] == pytest.approx((codes == 0).mean())
    weights, bits, zeros = np.sum(counts, 0)
    assert rates["all"] == {
        "weights": weights,
        "bits": pytest.approx(bits / weights),
        "zeros": pytest.approx(zeros / weights),
    }
    assert main(["inspect", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" " * 10)]
    for name, rate in rates.items():
        assert [name, f"{rate['weights']:,}", f"{rate['bits']:.2f}", f"{rate['zeros']:.1%}"] in rows


def test_quantising_what_is_quantised_already_is_told_and_writes_nothing(capsys, model, tmp_path, monkeypatch):
    out = tmp_path / "twice.reeltag"
    assert main(["quantize", model, "--out", str(out)]) == 0
    assert "no tensor has more than 17,000 elements" in capsys.readouterr().out
    out.unlink()
    monkeypatch.setattr("reeltag.artifact.quantization.sizes.MIN_ELEMENTS", 8)
    small = tmp_path / "small.reeltag"
    assert main(["quantize", model, "--out", str(small), "--encoding", "channel-8"]) == 0
    message = fails(capsys, "quantize", small, "--out", out, "--encoding", "group-4")
    assert "stored in channel-8 already" in message
    assert "stages/train.NAME-…" in message
    assert not out.exists()
    assert main(["inspect", str(small)]) == 0
    assert "bytes, channel-8, weight 1.0000" in capsys.readouterr().out


def test_settings_that_contradict_each_other_are_one_message(capsys, tmp_path):
    message = fails(capsys, "data", "synth", tmp_path / "out", "--set", "frames=[1,2]")
    assert message.startswith("error: synthetic data: 1 fault\n")


def test_the_command_offers_every_encoding_but_that_of_no_change():
    assert get_args(Encoding) == ENCODINGS[1:]
    assert get_args(get_args(Mode)[0]) == predictor.MODES


def test_quantize_and_average_write_models_that_tag(model, tmp_path, capsys):
    small, mean = tmp_path / "small.reeltag", tmp_path / "mean.reeltag"
    assert main(["quantize", model, "--out", str(small), "--encoding", "group-4"]) == 0
    assert main(["average", model, str(small), "--out", str(mean)]) == 0
    assert "the mean of 2 models" in capsys.readouterr().out
    assert reeltag.load(mean).schema == reeltag.load(model).schema
    assert "give two or more models" in fails(capsys, "average", model, "--out", tmp_path / "one.reeltag")
    assert "given more than once" in fails(capsys, "average", model, model, "--out", tmp_path / "one.reeltag")
    assert not (tmp_path / "one.reeltag").exists()


def test_coded_models_are_averaged_combined_and_shared(tmp_path, everything_is_large):
    """Averaging dequantizes them; in an ensemble, and in a folder for the Hub, they keep their codes."""
    coded = small_artifact("rnn", {"cells": 8}, "coded")
    plain = small_artifact("rnn", {"cells": 8}, "float32", seed=1)
    one, other, mean, both = (tmp_path / f"{name}.reeltag" for name in ("one", "other", "mean", "both"))
    save_artifact(one, coded)
    save_artifact(other, plain)
    assert main(["average", str(one), str(other), "--out", str(mean)]) == 0
    averaged, floats = load_artifact(mean).members[0].state, dequantize_state(coded.members[0].state)
    for name, value in plain.members[0].state.items():
        torch.testing.assert_close(averaged[name], (floats[name] + value) / 2)
    assert main(["combine", str(one), str(other), "--weights", "0.3,0.7", "--out", str(both)]) == 0
    assert main(["share", str(one), "--out", str(tmp_path / "shared")]) == 0
    for path in (both, tmp_path / "shared" / SHARED_FILE):
        state = load_artifact(path).members[0].state
        assert stored_as(state) == "coded"
        for name, value in coded.members[0].state.items():
            for part, tensor in value.parts().items():
                assert torch.equal(state[name].parts()[part], tensor)
    frames = videos()[0].numpy()
    first, second = (reeltag.load(path).predict(frames) for path in (one, other))
    np.testing.assert_allclose(reeltag.load(both).predict(frames), 0.3 * first + 0.7 * second, atol=1e-6)
    np.testing.assert_array_equal(reeltag.load(tmp_path / "shared").predict(frames), first)
    assert "coded" in (tmp_path / "shared" / "README.md").read_text()


@pytest.mark.parametrize("mode", ["bf16", "fast"])
def test_other_modes_give_nearly_the_same_tags(model, tiny_shards, tmp_path, mode, monkeypatch):
    monkeypatch.setattr(
        "reeltag.artifact.quantization.sizes.MIN_ELEMENTS", 8
    )  # so that the small model's weights count as large
    pattern, scores = str(tiny_shards / "test-*"), []
    for each in ("exact", mode):
        path = tmp_path / f"{each}.jsonl"
        assert main(["predict", model, pattern, "--mode", each, "--out", str(path)]) == 0
        tags = [json.loads(line)["tags"] for line in path.open()]
        scores.append([{tag["class"]: tag["score"] for tag in each} for each in tags])
    assert scores[0] != scores[1]
    for one, other in zip(*scores, strict=True):
        assert all(abs(one[label] - other[label]) < 0.02 for label in one.keys() & other.keys())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has this setting")
def test_commands_keep_the_memory_that_they_free():
    code = """
import resource, numpy as np
from reeltag.cli.main import main
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    before = faults()
    np.full(64_000_000, 1, np.uint8)
    return faults() - before
first = use(), use()
main(["--version"])
use()
print(*first, use())
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    _, again, kept = map(int, found.split()[1:])  # after the version
    assert again > 20  # pages of 4 kB, or huge ones
    assert kept < again / 4


def test_combined_models_tag_by_the_weighted_mean(capsys, tiny_model, tiny_shards, tmp_path):
    schema = reeltag.load(tiny_model).schema
    config = parse_config({"family": "mean", "hidden": 0}, schema.widths)
    other = tmp_path / "other.reeltag"
    state = build_tagger(config, schema.widths, schema.classes, 5).state_dict()
    save_artifact(other, Artifact(schema, None, (Member("other", config, 1.0, state),), {}))
    out, again = tmp_path / "both.reeltag", tmp_path / "nested.reeltag"
    assert main(["combine", str(tiny_model), str(other), "--weights", "0.7,0.3", "--out", str(out)]) == 0
    assert "0.3000  other" in capsys.readouterr().out
    assert main(["combine", str(out), str(other), "--out", str(again), "--json"]) == 0
    members = json.loads(capsys.readouterr().out)["members"]
    assert [each["name"] for each in members][-2:] == ["other", "other-2"]
    assert sum(each["weight"] for each in members) == pytest.approx(1)
    shards = [str(tiny_shards / "test-*")]
    one, two, both, nested = (
        torch.cat([part.probabilities for part in reeltag.load(path).predict_shards(shards)]).numpy()
        for path in (tiny_model, other, out, again)
    )
    np.testing.assert_allclose(both, 0.7 * one + 0.3 * two, atol=1e-6)
    np.testing.assert_allclose(nested, 0.35 * one + 0.65 * two, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("0.5", "1 weights for 2 models; give one weight for each model"),
        ("0.5,0.4", "the weights sum to 0.9, not to 1; change them"),
        ("1.5,-0.5", "weight 1.5, -0.5: must be above 0 and at most 1"),
        ("nan,1", "weight nan: must be above 0"),
        ("a,b", "--weights a,b: are not numbers separated by commas"),
    ],
)
def test_wrong_weights_of_combined_models_are_refused(capsys, tiny_model, tmp_path, weights, message):
    copy, out = tmp_path / "copy.reeltag", tmp_path / "out.reeltag"
    copy.write_bytes(Path(tiny_model).read_bytes())
    assert message in fails(capsys, "combine", tiny_model, copy, f"--weights={weights}", "--out", out)
    assert not out.exists()


def test_models_of_other_data_and_lone_models_are_not_combined(capsys, tiny_model, tmp_path):
    artifact = load_artifact(Path(tiny_model))
    other = tmp_path / "other.reeltag"
    save_artifact(other, replace(artifact, schema=artifact.schema.model_copy(update={"max_frames": 7})))
    out = tmp_path / "out.reeltag"
    message = fails(capsys, "combine", tiny_model, other, "--out", out)
    assert f"{other}: was made for other data than {tiny_model}: another max_frames in its schema" in message
    classes = [f"c{number}" for number in range(artifact.schema.classes)]
    for name, names in (("named", classes), ("renamed", classes[::-1])):
        save_artifact(tmp_path / name, replace(artifact, label_names=tuple(names)))
    message = fails(capsys, "combine", tmp_path / "named", tmp_path / "renamed", "--out", out)
    assert "renamed: names its classes differently than" in message
    assert "give two or more models to combine" in fails(capsys, "combine", tiny_model, "--out", out)
    assert "given more than once" in fails(capsys, "combine", tiny_model, tiny_model, "--out", out)
    assert not out.exists()
