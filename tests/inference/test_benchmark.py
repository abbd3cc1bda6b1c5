"""`reeltag benchmark`: every mode in a process of its own. Times are not asserted."""

import json

import numpy as np
import pytest

import reeltag
from reeltag.artifact.file import Artifact, Member, load_artifact, quantize_artifact, save_artifact
from reeltag.cli.main import main
from reeltag.inference import benchmark
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

MODES = ["exact", "bf16", "small", "fast", "onnx exact", "onnx small", "onnx fast", "auto"]


@pytest.fixture(scope="module")
def model(tiny_schema, tmp_path_factory):
    """Write a model that is wide enough to have weights in 8 bits."""
    config = parse_config({"family": "mean", "hidden": 2048, "bn_decay": 0.9, "head": {"experts": 4}})
    state = build_tagger(config, tiny_schema.widths, tiny_schema.classes, 0).state_dict()
    path = tmp_path_factory.mktemp("model") / "m.reeltag"
    artifact = Artifact(tiny_schema, None, (Member("a", config, 1.0, state),), {})
    save_artifact(path, quantize_artifact(artifact, "channel-8"))
    return path


@pytest.mark.slow
def test_every_mode_is_measured_and_compared_with_exact(model, capsys):
    assert main(["benchmark", str(model), "--batch-size", "1", "--batch-size", "5", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    rows = {row["mode"]: row for row in output["modes"]}
    assert output["frames"] == load_artifact(model).schema.max_frames
    assert list(rows) == MODES
    for row in rows.values():
        assert not row["failed"]
        assert set(row["milliseconds"]) == {"1", "5"}
        assert all(each > 0 for each in row["milliseconds"].values())
        for size in ("1", "5"):
            expected = row["milliseconds"][size] / rows["exact"]["milliseconds"][size]
            assert row["ratios"][size] == pytest.approx(expected)
    assert rows["exact"]["difference"] == 0
    assert rows["auto"]["computed"]["ways"] == {"a": "exact"}  # the model is small
    # Compare with the predictors of this process.
    schema = load_artifact(model).schema
    for mode in ("bf16", "fast"):
        pairs = [
            (reeltag.load(model, mode).predict(*videos), reeltag.load(model, "exact").predict(*videos))
            for videos in (benchmark.generated(schema, size) for size in (1, 5))
        ]
        largest = max(float(np.abs(one - other).max()) for one, other in pairs)
        assert rows[mode]["difference"] == pytest.approx(largest, rel=0.2)
        assert rows[mode]["difference"] > 0


def test_without_onnx_the_other_modes_are_measured(model, capsys, monkeypatch):
    measured = []

    class Pool:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, needs, function, *arguments):
            measured.append(arguments[0])
            self.result = lambda: function(*arguments)
            return self

    monkeypatch.setattr(benchmark, "open_process_pool", lambda devices: Pool())
    monkeypatch.setattr(benchmark, "SECONDS", 0.0)
    monkeypatch.setitem(__import__("sys").modules, "reeltag.artifact.onnx.model", None)
    monkeypatch.delattr("reeltag.artifact.onnx.model", raising=False)
    assert main(["benchmark", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert measured[:4] == MODES[:4]
    assert [type(each).__name__ for each in measured[4:]] == ["PosixPath", "Choice"]  # chosen, then measured
    assert lines.pop(0).startswith("on generated videos of ")
    assert [line.split("  ")[0] for line in lines[1:-1]] == MODES
    assert all("[onnx]" in line for line in lines[5:8])
    assert lines[-1].startswith("auto, batch 64: a in exact (")
    assert "ms/video, batch 1" in lines[0]
    assert "ms/video, batch 64" in lines[0]


def test_a_model_of_segments_is_measured_on_segments(tiny_schema, tmp_path, capsys, monkeypatch):
    schema = tiny_schema.model_copy(update={"segments": 2})
    config = parse_config({"family": "mean"})
    state = build_tagger(config, schema.widths, schema.classes, 0).state_dict()
    save_artifact(tmp_path / "s.reeltag", Artifact(schema, None, (Member("a", config, 1.0, state),), {}))
    frames, lengths = benchmark.generated(schema, 3)
    assert frames.shape == (3, 2, schema.width)
    assert reeltag.load(tmp_path / "s.reeltag").predict(frames, lengths).shape == (3, schema.classes)
    monkeypatch.setattr(benchmark, "benchmark_model", lambda *arguments: [])
    assert main(["benchmark", str(tmp_path / "s.reeltag")]) == 0
    assert capsys.readouterr().out.startswith("on generated segments of 2 frames each\n")


def test_a_batch_size_of_0_is_refused(model, capsys):
    assert main(["benchmark", str(model), "--batch-size", "0"]) == 2
    assert "batch_size: give" in capsys.readouterr().err
