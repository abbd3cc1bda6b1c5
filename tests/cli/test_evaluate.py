"""`reeltag evaluate`: what it prints and writes agrees with the model's own predictions, and what it refuses."""

import csv
import json

import numpy as np
import pytest

import reeltag
import reeltag.inference.evaluate
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.cli.main import main


@pytest.fixture(scope="module")
def tested(tiny_model, tiny_shards):
    """Ids, probabilities and labels of the test videos."""
    parts = list(reeltag.load(tiny_model, "exact").predict_shards(str(tiny_shards / "test-*"), labelled=True))
    ids = [name for part in parts for name in part.ids]
    return ids, *(np.concatenate([getattr(part, key).numpy() for part in parts]) for key in ("probabilities", "labels"))


@pytest.fixture
def evaluated(tiny_model, tiny_shards, capsys):
    def evaluate(*arguments, model=tiny_model):
        capsys.readouterr()
        shards = str(tiny_shards / "test-*")
        assert main(["evaluate", str(model), shards, "--mode", "exact", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return evaluate


def test_precision_and_recall_are_at_the_threshold(evaluated, tested):
    _, scores, labels = tested
    level = float(np.quantile(scores, 0.8))
    found = json.loads(evaluated("--threshold", level, "--json"))["at_threshold"]
    said = scores >= level
    assert found["precision_micro"] == pytest.approx((said & labels).sum() / said.sum(), abs=1e-5)
    assert found["recall_micro"] == pytest.approx((said & labels).sum() / labels.sum(), abs=1e-5)
    assert f"at threshold {level:g}\n" in evaluated("--threshold", level)


def test_the_mistakes_of_a_class_are_its_highest_and_lowest_videos(evaluated, tested):
    ids, scores, labels = tested
    found = json.loads(evaluated("--mistakes", "2", "--json"))["mistakes"]
    wrong = [video for video in np.argsort(-scores[:, 2], kind="stable") if not labels[video, 2]][:10]
    missed = [video for video in np.argsort(scores[:, 2], kind="stable") if labels[video, 2]][:10]
    assert [row["id"] for row in found["false_positives"]] == [ids[video] for video in wrong]
    assert [row["id"] for row in found["missed"]] == [ids[video] for video in missed]
    first = found["missed"][0]
    assert set(first["labels"]) == set(map(str, np.flatnonzero(labels[missed[0]])))
    assert first["most_probable"] == str(scores[missed[0]].argmax())
    text = evaluated("--mistakes", "2")
    assert f"{scores[missed[0], 2]:.4f}  {ids[missed[0]]}  [labels: " in text


def test_the_rows_have_every_label_and_their_metrics_are_those_printed(evaluated, tested, tmp_path):
    _, _, labels = tested
    files = ["--out", tmp_path / "r.csv", "--per-class", tmp_path / "c.csv", "--fiftyone", tmp_path / "f.csv"]
    printed = json.loads(evaluated(*files, "--threshold", 0.3, "--intervals", "--json"))
    rows = list(csv.DictReader((tmp_path / "r.csv").open()))
    assert sum(int(row["label"]) for row in rows) == labels.sum()
    hits = sum(row["label"] == row["predicted"] == "1" for row in rows)
    assert printed["at_threshold"]["recall_micro"] == pytest.approx(hits / labels.sum(), abs=1e-5)
    classes = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert np.mean([float(row["ap"]) for row in classes]) == pytest.approx(printed["map"], abs=1e-5)
    assert {(row["ap_low"], row["ap_high"]) for row in classes} == {("", "")}  # of eight videos
    low, high = printed["intervals"]["gap"]
    assert low < printed["gap"] < high
    videos = list(csv.DictReader((tmp_path / "f.csv").open()))
    assert sum(len(json.loads(video["predictions"])) for video in videos) == sum(
        row["predicted"] == "1" for row in rows
    )


def test_an_interval_that_is_unknown_is_said(evaluated, monkeypatch):
    monkeypatch.setattr("reeltag.inference.metrics.bootstrap.Resampled.interval", lambda self, metric: None)
    assert json.loads(evaluated("--intervals", "--json"))["intervals"] == {"gap": None, "map": None}
    assert "gap       95 % interval unknown: every draw has the same" in evaluated("--intervals")


def test_rows_are_kept_only_for_what_needs_them(evaluated, tiny_model, tested, tmp_path, monkeypatch):
    _, scores, labels = tested
    kept, judge = [], reeltag.inference.evaluate.judge

    def judged(*arguments, **named):
        found = judge(*arguments, **named)
        kept.append(0 if found.outcomes is None else len(found.outcomes.scores))
        return found

    monkeypatch.setattr(reeltag.inference.evaluate, "judge", judged)
    printed = evaluated("--all-scores", "--json")
    evaluated("--mistakes", "1")
    assert json.loads(printed)["at_threshold"]["recall_micro"] == pytest.approx(
        ((scores >= 0.5) & labels).sum() / labels.sum(), abs=1e-5
    )
    evaluated("--against", tiny_model)
    for option in ("--out", "--per-class", "--fiftyone"):
        evaluated(option, tmp_path / f"{option}.csv")
    assert kept == [0, *[scores.size] * 6]  # of few classes each is among the 20 highest


def test_two_models_are_compared_on_the_same_videos(evaluated, tiny_model, tmp_path):
    other = tmp_path / "small.reeltag"
    assert main(["quantize", str(tiny_model), "--out", str(other), "--encoding", "float16"]) == 0
    found = json.loads(evaluated("--against", other, "--json"))
    alone = json.loads(evaluated("--json", model=other))
    gain = found["against"]["gap"]
    assert gain["first"] == found["gap"] and gain["second"] == alone["gap"]
    assert gain["gain"] == pytest.approx(alone["gap"] - found["gap"], abs=1.1e-5) and 0 <= gain["p"] <= 1
    text = evaluated("--against", tiny_model)
    assert "no clear difference of GAP: p = 1" in text and "is clearly better on 0 and worse on 0 (5 %" in text


def refused(capsys, *arguments):
    assert main(["evaluate", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and len(error.strip().splitlines()) == 1
    return error


def test_what_cannot_be_judged_is_refused_before_anything_is_computed(capsys, tiny_model, tiny_shards, tmp_path):
    shards = tiny_shards / "test-*"
    given = (tiny_model, shards)
    assert "threshold: must be above 0 and at most 1, not 2" in refused(capsys, *given, "--threshold", 2)
    assert "use .csv or .parquet" in refused(capsys, *given, "--out", tmp_path / "rows.json")
    (tmp_path / "mine.csv").write_text("mine")
    for option in ("--out", "--per-class", "--fiftyone"):
        assert "exists already" in refused(capsys, *given, option, tmp_path / "mine.csv")
    assert "there is no class 'dog'" in refused(capsys, *given, "--mistakes", "dog")
    assert "there is no class '99'" in refused(capsys, *given, "--mistakes", "99")
    artifact = load_artifact(tiny_model)
    names = tuple(f"class {number}" for number in range(artifact.schema.classes))
    save_artifact(tmp_path / "named.reeltag", type(artifact)(artifact.schema, names, artifact.members, {}))
    error = refused(capsys, *given, "--against", tmp_path / "named.reeltag")
    assert "named.reeltag: has other classes than" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.csv", "named.reeltag"]


@pytest.mark.parametrize("option", ["--out", "--per-class", "--fiftyone"])
def test_a_file_that_cannot_be_written_is_refused_by_its_own_name_and_leftovers_go(
    capsys, tiny_model, tiny_shards, tmp_path, monkeypatch, option
):
    monkeypatch.setattr(reeltag.inference.evaluate, "judge", lambda *_, **__: pytest.fail("evaluated"))
    long = tmp_path / f"{'x' * 245}.csv"  # its partial file's name is longer than the system's 255 bytes
    error = refused(capsys, tiny_model, tiny_shards / "test-*", option, long)
    assert f"{long}: cannot be written (File name too long)" in error and ".partial" not in error
    (tmp_path / ".rows.csv.1-00000000.partial").touch()  # of a killed process
    (tmp_path / ".other.csv.1-00000000.partial").touch()
    refused(capsys, tiny_model, "nowhere-*", option, tmp_path / "rows.csv", "--mistakes", "99")
    assert [path.name for path in tmp_path.iterdir()] == [".other.csv.1-00000000.partial"]
