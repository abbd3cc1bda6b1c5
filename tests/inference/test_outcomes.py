"""Precision, recall, F1, mistakes, confused classes and their files, against loops that follow the definitions."""

import csv
import json
import math
from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judged import made, outcomes_of
from reeltag.core.errors import UsageError
from reeltag.inference.ensemble import Predictions
from reeltag.inference.formats.outcomes import write_classes, write_fiftyone, write_outcomes
from reeltag.inference.metrics.bootstrap import resample
from reeltag.inference.metrics.outcomes import CURVE_POINTS, Outcomes, worst_first

SETS = given(
    st.integers(1, 12), st.integers(2, 30), st.integers(2, 12), st.sampled_from([0.2, 0.5, 1.0]), st.integers(0, 999)
)


def ratio(a, b):
    return a / b if b else 0.0


@settings(max_examples=20, deadline=None)
@SETS
def test_precision_recall_and_f1_follow_their_definitions(videos, classes, levels, threshold, seed):
    scores, labels = made(videos, classes, levels, seed)
    outcomes = outcomes_of(scores, labels, threshold, parts=min(3, videos))
    each = outcomes.at_threshold.class_metrics()
    counts = []
    for number in range(classes):
        pairs = [(p >= np.float32(threshold), y) for p, y in zip(scores[:, number], labels[:, number], strict=True)]
        hits, said, true = sum(p and y for p, y in pairs), sum(p for p, _ in pairs), sum(y for _, y in pairs)
        counts.append((hits, said, true))
        assert each.precision[number] == pytest.approx(ratio(hits, said))
        assert each.recall[number] == pytest.approx(ratio(hits, true))
        assert each.f1[number] == pytest.approx(ratio(2 * hits, said + true))
    hits, said, true = map(sum, zip(*counts, strict=True))
    micro, macro = outcomes.at_threshold.micro(), outcomes.at_threshold.macro()
    assert [micro.precision, micro.recall] == [pytest.approx(ratio(hits, said)), pytest.approx(ratio(hits, true))]
    assert micro.f1 == pytest.approx(ratio(2 * hits, said + true))
    known = [ratio(2 * h, s + t) for h, s, t in counts if t]
    assert macro.f1 == pytest.approx(sum(known) / len(known) if known else 0)


@settings(max_examples=20, deadline=None)
@SETS
def test_mistakes_and_confused_classes_are_those_of_loops(videos, classes, levels, threshold, seed):
    scores, labels = made(videos, classes, levels, seed)
    outcomes = outcomes_of(scores, labels, threshold, parts=min(2, videos))
    for number in range(classes):
        wrong, missed = (outcomes.false_positives(number, 3), outcomes.missed(number, 3))
        assert outcomes.scores[missed].tolist() == sorted(scores[labels[:, number], number])[:3]
        assert outcomes.labels[missed].all() and not outcomes.labels[wrong].any()
        if classes <= 20:  # all classes of a video are among its 20 highest
            assert outcomes.scores[wrong].tolist() == sorted(scores[~labels[:, number], number])[::-1][:3]
    said = scores >= np.float32(threshold)
    pairs = Counter(
        (a, b)
        for video in range(videos)
        for a in np.flatnonzero(labels[video] & ~said[video])
        for b in np.flatnonzero(said[video] & ~labels[video])
    )
    missed, wrong = (labels & ~said).sum(0), (said & ~labels).sum(0)
    chance = {pair: missed[pair[0]] * wrong[pair[1]] / videos for pair in pairs}
    more = {pair: count * math.log(count / chance[pair]) - count + chance[pair] for pair, count in pairs.items()}
    found = outcomes.confused(10**6)
    assert {(pair.label, pair.predicted): pair.videos for pair in found} == {
        pair: count for pair, count in pairs.items() if count > chance[pair] and more[pair] > 0
    }
    ratios = [more[pair.label, pair.predicted] for pair in found]
    assert ratios == pytest.approx(sorted(ratios, reverse=True))
    assert [pair.expected for pair in found] == pytest.approx([chance[pair.label, pair.predicted] for pair in found])


@settings(max_examples=15, deadline=None)
@SETS
def test_curves_and_calibration_of_classes_follow_their_definitions(videos, classes, levels, threshold, seed):
    scores, labels = made(videos, min(classes, 20), levels, seed)  # all classes of a video are among its 20 highest
    outcomes = outcomes_of(scores, labels, threshold)
    errors = outcomes.calibration_errors()
    for number in range(scores.shape[1]):
        column, truth = scores[:, number], labels[:, number]
        hits = truth[np.argsort(-column, kind="stable")]
        curve = []
        for point in range(1, CURVE_POINTS + 1):
            reached = [k for k in range(1, videos + 1) if 20 * hits[:k].sum() >= point * truth.sum() > 0]
            curve.append(hits[: reached[0]].mean() if reached else 0.0)
        assert outcomes.precision_recall(number) == pytest.approx(curve)
        bins = np.minimum((column * 10).astype(int), 9)
        error = sum(abs(column[bins == b].sum(dtype=float) - truth[bins == b].sum()) for b in range(10)) / videos
        assert errors[number] == pytest.approx(error, abs=1e-6)


def test_rows_are_the_labels_the_predictions_and_the_twenty_highest():
    scores, labels = made(30, 60, 1000, 1)
    outcomes = outcomes_of(scores, labels, 0.9)
    order = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1, kind="stable")
    rows = {(int(v), int(c)) for v, c in zip(outcomes.videos, outcomes.classes, strict=True)}
    assert rows == {(int(v), int(c)) for v, c in zip(*np.nonzero(labels | (scores >= 0.9) | (order < 20)), strict=True)}
    for video, number, rank in zip(outcomes.videos, outcomes.classes, outcomes.ranks, strict=True):
        assert rank == (order[video, number] + 1 if order[video, number] < 20 else 0)


def test_classes_without_a_rating_have_no_row():
    scores, labels = torch.full((2, 3), 0.9), torch.tensor([[True, False, False]] * 2)
    rated = torch.tensor([[True, False, True], [False, False, False]])
    outcomes = Outcomes.of(Predictions(("a", "b"), scores, labels & rated, rated))
    assert list(zip(outcomes.videos.tolist(), outcomes.classes.tolist(), strict=True)) == [(0, 0), (0, 2)]
    assert outcomes.at_threshold.micro().precision == 0.5


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.5, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(threshold):
    with pytest.raises(UsageError, match="threshold: must be above 0 and at most 1"):
        outcomes_of(*made(2, 3, 4, 0), threshold)


def test_the_worst_class_is_the_first_and_those_of_few_labels_are_last():
    assert worst_first([0.5, 0.1, 0.0, 0.05, 0.1], [20, 20, 0, 3, 40], 10) == [4, 1, 0, 3, 2]


NAMES = ["plain", "a, b", 'say "hi"', "ü"]


@pytest.fixture
def small():
    scores = np.array([[0.9, 0.2, 0.6, 0.1], [0.3, 0.8, 0.1, 0.05]], np.float32)
    return outcomes_of(scores, np.array([[1, 1, 0, 0], [0, 1, 0, 0]], bool))


def test_parquet_and_csv_have_the_same_rows(small, tmp_path):
    write_outcomes(tmp_path / "r.csv", small, NAMES)
    write_outcomes(tmp_path / "r.parquet", small, NAMES)
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert rows[0] == {
        "id": "v0",
        "class": 0,
        "name": "plain",
        "score": pytest.approx(0.9),
        "rank": 1,
        "label": True,
        "predicted": True,
    }
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as file:
        texts = list(csv.DictReader(file))
    assert len(texts) == len(rows) == 8
    for text, row in zip(texts, rows, strict=True):
        assert (text["id"], text["name"], float(text["score"])) == (row["id"], row["name"], pytest.approx(row["score"]))
        assert [int(text[key]) for key in ("class", "rank", "label", "predicted")] == [
            row[key] for key in ("class", "rank", "label", "predicted")
        ]


def test_a_label_after_the_twentieth_class_has_no_rank(tmp_path):
    scores, labels = np.linspace(0.9, 0.1, 25, dtype=np.float32)[None], np.zeros((1, 25), bool)
    labels[0, 24] = True
    outcomes = outcomes_of(scores, labels)
    write_outcomes(tmp_path / "r.parquet", outcomes, list(map(str, range(25))))
    last = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()[-1]
    assert (last["class"], last["rank"], last["label"], last["predicted"]) == (24, None, True, False)
    write_outcomes(tmp_path / "r.csv", outcomes, list(map(str, range(25))))
    assert (tmp_path / "r.csv").read_text().splitlines()[-1] == "v0,24,24,0.100000,,1,0"


def test_fiftyone_gets_a_row_for_each_video_with_the_arguments_of_its_labels(small, tmp_path):
    write_fiftyone(tmp_path / "f.csv", small, NAMES)
    with (tmp_path / "f.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["filepath", "ground_truth", "predictions"]
    assert [first["filepath"], second["filepath"]] == ["v0", "v1"]
    assert json.loads(first["ground_truth"]) == [{"label": "plain"}, {"label": "a, b"}]
    assert json.loads(first["predictions"]) == [
        {"label": "plain", "confidence": 0.9},
        {"label": 'say "hi"', "confidence": 0.6},
    ]
    assert json.loads(second["predictions"]) == [{"label": "a, b", "confidence": 0.8}]


def test_classes_as_csv_have_the_ends_of_their_intervals(tmp_path):
    outcomes = outcomes_of(*made(120, 4, 50, 0))
    (drawn,) = resample(outcomes, resamples=30)
    write_classes(tmp_path / "c.csv", drawn.class_ap, outcomes, NAMES, drawn)
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert all(0 < float(row["ap_low"]) < float(row["ap"]) < float(row["ap_high"]) < 1 for row in rows)


def test_classes_as_csv(small, tmp_path):
    write_classes(tmp_path / "c.csv", np.array([1.0, 0.5, 0.0, 0.0]), small, NAMES)
    with (tmp_path / "c.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == NAMES
    assert rows[1] == {
        "class": "1",
        "name": "a, b",
        "ap": "0.50000",
        "labels": "2",
        "precision": "1.00000",
        "recall": "0.50000",
        "f1": "0.66667",
        "calibration_error": "0.50000",
    }
