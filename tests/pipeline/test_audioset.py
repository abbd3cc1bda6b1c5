"""The recipe for AudioSet on the real clips, cut short. Skipped where the data are missing."""

import json

import pytest

import onnx_alone
from conftest import DATA, REPO
from reeltag.cli.main import main
from reeltag.core.storage import find_files
from reeltag.data.loader import stream_batches
from reeltag.data.schema import preset_schema
from reeltag.data.shards import read_examples, scan
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.predictor import load

FOLDER = DATA / "audioset"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no AudioSet in {FOLDER}; set REELTAG_DATA"),
]


def test_every_clip_is_read_with_its_labels():
    for split, clips in {"bal_train": 22_160, "eval": 20_371}.items():
        manifest = scan(sorted(FOLDER.glob(f"{split}-*.tfrecord")), preset_schema("audioset"))
        assert len(manifest) == manifest.labelled == clips
        assert manifest.frames.max() == 10
        assert 2.2 < manifest.class_counts.sum() / clips < 2.6


def test_two_epochs_beat_the_prior_by_far_and_8_bits_cost_next_to_nothing(tmp_path, capsys):
    out, model = tmp_path / "out", "netvlad"
    overrides = {"data.root": FOLDER, "training.epochs": 2, "averaging.epochs": 0.1}
    sets = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    recipe = REPO / "recipes" / "audioset-families.toml"
    assert main(["train", str(recipe), "--model", model, "--out", str(out), *sets]) == 0
    small = out / "small.reeltag"
    assert main(["quantize", str(out / f"{model}.reeltag"), "--out", str(small)]) == 0
    assert small.stat().st_size < 0.27 * (out / f"{model}.reeltag").stat().st_size
    gaps = []
    for file in (out / f"{model}.reeltag", small):
        capsys.readouterr()
        assert main(["evaluate", str(file), str(FOLDER / "eval-0000[0-3]-*.tfrecord"), "--json"]) == 0
        gaps.append(json.loads(capsys.readouterr().out)["gap"])
    # The complete recipe reaches 0.42; predicting the class frequencies reaches 0.07.
    assert gaps[0] > 0.25
    assert gaps[1] == pytest.approx(gaps[0], abs=0.001)
    check_modes(small, gaps[1])
    check_onnx(small, tmp_path)


def check_modes(model, gap):
    pattern = str(FOLDER / "eval-0000[0-3]-*.tfrecord")
    for mode, loss in (("small", 0.0005), ("fast", 0.002), ("bf16", 0.002)):
        assert evaluate_predictions(load(model, mode).predict_shards([pattern])).compute().gap == pytest.approx(
            gap, abs=loss
        )


def check_onnx(model, folder):
    """Compare onnxruntime alone with the command's CSV for a shard, to 5 decimals."""
    shard, schema = str(next(FOLDER.glob("eval-00003-*.tfrecord"))), preset_schema("audioset")
    assert main(["export", str(model), "--out", str(folder / "m.onnx"), "--check", shard]) == 0
    assert main(["predict", str(model), shard, "--mode", "exact", "--out", str(folder / "tags.csv")]) == 0
    batches = list(stream_batches(read_examples(find_files([shard]), schema), schema, 64))
    lines = onnx_alone.kaggle_csv(folder / "m.onnx", batches, folder)
    onnx_alone.assert_same_scores(lines, (folder / "tags.csv").read_text().splitlines())
