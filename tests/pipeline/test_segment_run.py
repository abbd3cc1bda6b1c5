"""Generated rated segments, end to end: run, evaluate, predict, and unsupported combinations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reeltag
from conftest import records_of
from reeltag.artifact.file import Artifact, load_artifact, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError, UsageError
from reeltag.data.formats.example import decode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.segments import iter_examples
from reeltag.recipe.load import load_recipe
from starter_code import as_the_starter_code_does

RECIPE = """name = "segments"
budget_mb = 1
[data.synthetic]
train_videos = 250
test_videos = 60
shards = 2
classes = 12
rgb = 24
audio = 8
frames = [12, 25]
noise = 1.0
order_pairs = 0
segments = 5
[data]
holdout = { fraction = 0.2 }
[training]
epochs = 4
batch_size = 64
frames = "all"
learning_rate = 1.5e-2
schedule = "cosine"
device = "cpu"
[averaging]
epochs = 1
time_constant = 5
[models.netvlad]
family = "netvlad"
clusters = 4
hidden = 24
bn_decay = 0.9
[models.mean]
family = "mean"
hidden = 24
bn_decay = 0.9
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "segments.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def out(recipe: Path) -> Path:
    """Folder of a run."""
    folder = recipe.parent / "run"
    assert main(["run", str(recipe), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def shards(out: Path) -> list[Path]:
    """Shards of the test set."""
    return sorted(out.glob("stages/synthetic-*/test-*.tfrecord"))


def test_the_file_beats_the_prior_by_far_and_describes_its_segments(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((out / "results.json").read_text())
    test, holdout = results["test"], results["holdout_gap"]
    assert test["file"]["map_at_k"] > test["prior"]["map_at_k"] + 0.4
    assert test["file"]["gap"] > test["prior"]["gap"] + 0.4
    assert holdout["file"] > holdout["prior"] + 0.4
    assert "test MAP@K" in (out / "report" / "report.md").read_text()
    assert main(["inspect", str(out / "model.reeltag")]) == 0
    assert "tags      segments of 5 frames" in capsys.readouterr().out


def test_evaluate_agrees_with_the_run(out: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["evaluate", str(out / "model.reeltag"), *map(str, shards), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    del scores["computed"], scores["at_threshold"]
    assert scores == json.loads((out / "results.json").read_text())["test"]["file"]


def test_whole_videos_of_segments_are_not_drawn_again(
    out: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (["--intervals"], ["--against", str(out / "model.reeltag")]):
        assert main(["evaluate", str(out / "model.reeltag"), *map(str, shards), *arguments]) == 2
        assert "draw whole videos again, and this model tags segments; leave them out" in capsys.readouterr().err
    assert json.loads((out / "classes.json").read_text())["intervals"] == {}


def test_the_submission_scored_as_the_challenge_did_has_the_same_map(
    out: Path, shards: list[Path], tmp_path: Path
) -> None:
    assert main(["predict", str(out / "model.reeltag"), *map(str, shards), "--out", str(tmp_path / "s.csv")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    truth, segments = {}, 0
    for record in (record for shard in shards for record in records_of(shard)):
        message = SequenceExample.FromString(record)
        context = message.context.feature
        name = context["id"].bytes_list.value[0].decode()
        columns = (context["segment_start_times"].int64_list, context["segment_labels"].int64_list)
        rows = zip(*(each.value for each in columns), context["segment_scores"].float_list.value, strict=True)
        truth |= {(f"{name}:{start}", label): score for start, label, score in rows}
        segments += -(-len(message.feature_lists.feature_list["rgb"].feature) // 5)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert len(lines) == 1 + 12
    assert {len(set(line.partition(",")[2].split(" "))) for line in lines[1:]} == {segments}
    expected = json.loads((out / "results.json").read_text())["test"]["file"]["map_at_k"]
    assert as_the_starter_code_does(lines, truth, 100_000) == pytest.approx(expected, abs=1e-5)


def test_each_segment_is_tagged_by_its_own_frames(out: Path, shards: list[Path], tmp_path: Path) -> None:
    assert main(["predict", str(out / "model.reeltag"), str(shards[0]), "--out", str(tmp_path / "s.jsonl")]) == 0
    tagger = reeltag.load(out / "model.reeltag")
    lines = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    for record in records_of(shards[0]):
        video = decode(record, tagger.schema)
        for start, example in iter_examples(video, tagger.schema):
            line = next(lines)
            assert line["id"] == f"{video.id}:{start}"
            probabilities = tagger.predict(video.frames()[start : start + 5])
            found = [probabilities[tag["class"]] for tag in line["tags"]]
            np.testing.assert_allclose(found, [tag["score"] for tag in line["tags"]], atol=2e-6)
            assert example.length == min(5, video.length - start)
    assert next(lines, None) is None


def test_commands_without_support_for_segments_refuse_them(out: Path, shards: list[Path], tmp_path: Path) -> None:
    model = out / "model.reeltag"
    tagger = reeltag.load(model)
    with pytest.raises(UsageError, match="this model tags segments of 5 frames"):
        tagger.predict(np.zeros((6, 32), np.uint8))
    with pytest.raises(UsageError, match=r"drop_flat: .* the model tags segments"):
        from reeltag.inference.shard_tagger import predict_to_file

        predict_to_file(model, list(map(str, shards)), tmp_path / "s.csv", drop_flat=True)
    app = pytest.importorskip("reeltag.serve.app")
    from reeltag.serve.limits import Limits

    with pytest.raises(UsageError, match="tags segments, but the service tags whole videos"):
        app.create_app(tagger, "model", Limits(1, 1, 1, 1.0, 1))
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("distillation.teachers=1", "distillation: works with whole videos only"),
        ("training.mixup=0.4", "training: mixup mixes labels of all classes"),
        ("models.mean.training.mixup=0.4", "models: mean.training.mixup mixes labels"),
        ("data.synthetic.segments=13", "data.synthetic.segments: a segment is a part of a video"),
    ],
)
def test_keys_without_support_for_segments_are_faults_of_the_recipe(recipe: Path, override: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        load_recipe(recipe, [override])


def test_a_file_of_videos_does_not_join_an_ensemble_of_segments(
    recipe: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    member = next(out.glob("stages/train.mean-*")) / "model.reeltag"
    artifact = load_artifact(member)
    videos = artifact.schema.model_copy(update={"segments": None})
    save_artifact(tmp_path / "videos.reeltag", Artifact(videos, None, artifact.members, {}))
    for file, code in ((tmp_path / "videos.reeltag", 2), (member, 0)):
        arguments = ["run", str(recipe), "--out", str(tmp_path / "run"), "--set", f'imported.other="{file}"']
        assert main([*arguments, "--dry-run"]) == code
    assert "was made for other data than data.schema says: segments None and not 5" in capsys.readouterr().err
