"""Predictions of the hold-out in a file, with all classes or with each video's most probable ones."""

import numpy as np
import pytest
import torch

from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.diversity import mean_error_correlation
from reeltag.inference.metrics.video_metrics import gap
from reeltag.pipeline.ensemble_search import contenders, ensemble_gap
from reeltag.pipeline.stages import diversity, holdout_predictions
from reeltag.pipeline.stages.holdout_predictions import HoldoutPredictions, read_contenders

VIDEOS = 300


def members(classes, count):
    """Return labels, a few of each video, and members' probabilities, which mostly err on the same classes."""
    rng = np.random.default_rng(classes)
    labels = torch.zeros(VIDEOS, classes, dtype=torch.bool)
    for video in range(VIDEOS):
        labels[video, rng.choice(classes, rng.integers(1, 6), replace=False)] = True
    shared = 4 * labels.numpy() - 6 + rng.normal(0, 1.5, labels.shape)
    logits = [shared + rng.normal(0, 0.4, labels.shape) for _ in range(count)]
    return labels, [torch.from_numpy(1 / (1 + np.exp(-each))).float() for each in logits]


def stored(path, labels, probabilities, segments=False):
    """Return what is read of a file with one encoding, which was written in batches."""
    batches = [
        Predictions(("",) * len(part), part, known)
        for part, known in zip(probabilities.split(64), labels.split(64), strict=True)
    ]
    HoldoutPredictions.of({"float32": iter(batches)}, labels.shape[1], segments=segments).save(path)
    return HoldoutPredictions.read([path], labels.shape[1])


@pytest.mark.parametrize("classes", [50, 1000, 3862])
def test_labels_and_the_gap_of_a_member_are_kept(tmp_path, classes):
    labels, (probabilities,) = members(classes, 1)
    read = stored(tmp_path / "p", labels, probabilities)
    assert len(read) == VIDEOS
    assert torch.equal(read.labels, labels)
    assert read.gap("float32") == gap(probabilities, labels)
    some = torch.tensor([7, 3, 250])
    assert read.gap("float32", some) == gap(probabilities[some], labels[some])
    found = read.probabilities("float32", some)
    lowest = probabilities[some].topk(50, dim=1).values[:, -1:]
    kept = (probabilities[some] >= lowest) | (probabilities[some] >= 1e-3) | torch.tensor(classes <= 1000)
    assert torch.equal(found, torch.where(kept, probabilities[some], 0.0))


def test_ensembles_of_the_stored_classes_have_the_gap_of_all_classes(tmp_path):
    labels, probabilities = members(3862, 4)
    sources = [(stored(tmp_path / str(n), labels, each), "float32") for n, each in enumerate(probabilities)]
    few, few_labels = read_contenders(sources, labels)
    assert few[0].shape[1] < 3862
    for weights in ([0.25] * 4, [0.7, 0.1, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0]):
        found = ensemble_gap(few, few_labels, weights)
        assert found == pytest.approx(ensemble_gap(probabilities, labels, weights), abs=2e-5)


def test_videos_are_read_in_chunks(tmp_path, monkeypatch):
    labels, probabilities = members(200, 3)
    sources = [(stored(tmp_path / str(n), labels, each), "float32") for n, each in enumerate(probabilities)]
    rows = torch.randperm(VIDEOS, generator=torch.Generator().manual_seed(0))[:200]
    whole, whole_labels = read_contenders(sources, labels, rows)
    assert all(
        map(torch.equal, [*whole, whole_labels], _flat(contenders([p[rows] for p in probabilities], labels[rows])))
    )
    monkeypatch.setattr(holdout_predictions, "CHUNK", 33)
    parts, part_labels = read_contenders(sources, labels, rows)
    for weights in ([1 / 3] * 3, [0.6, 0.3, 0.1]):
        assert ensemble_gap(parts, part_labels, weights) == ensemble_gap(whole, whole_labels, weights)


def _flat(found):
    probabilities, labels = found
    return [*probabilities, labels]


def test_segments_keep_all_classes_and_unrated_ones_rank_last(tmp_path):
    labels, (probabilities,) = members(1500, 1)
    rated = torch.zeros_like(labels)
    rated[:, :40] = True
    batch = Predictions(("",) * VIDEOS, probabilities, labels & rated, rated)
    predictions = HoldoutPredictions.of({"float32": [batch]}, 1500, segments=True)
    found = predictions.probabilities("float32", torch.arange(VIDEOS))
    assert torch.equal(found, torch.where(rated, probabilities, -1.0))


@pytest.mark.parametrize(("classes", "off"), [(50, 1e-6), (3862, 2e-3)])
def test_the_correlation_of_errors_is_read_a_few_videos_at_a_time(tmp_path, monkeypatch, classes, off):
    labels, probabilities = members(classes, 3)
    models = [stored(tmp_path / str(number), labels, each) for number, each in enumerate(probabilities)]
    monkeypatch.setattr(diversity, "EXAMPLES", 7)
    parts = list(diversity._parts(models))
    assert [len(each) for _, each in parts] == [7] * 42 + [6]
    errors = np.stack([(labels.double() - each.double()).flatten().numpy() for each in probabilities])
    expected = np.corrcoef(errors)[np.triu_indices(3, 1)].mean()
    assert mean_error_correlation(parts) == pytest.approx(expected, abs=off)
