"""The correlation of errors against numpy's, pair by pair."""

from itertools import combinations

import numpy as np
import pytest
import torch

from reeltag.inference.metrics.diversity import mean_error_correlation


def sample(models=4, videos=50, classes=7):
    rng = np.random.default_rng(0)
    labels = rng.random((videos, classes)) < 0.2
    shared = rng.random((videos, classes))
    return [(0.5 * shared + 0.5 * rng.random((videos, classes))).astype(np.float32) for _ in range(models)], labels


def slow(probabilities, labels):
    """Return the mean over pairs, one error after another."""
    found = []
    for one, other in combinations(probabilities, 2):
        pairs = [
            (float(labels[place]) - float(one[place]), float(labels[place]) - float(other[place]))
            for place in np.ndindex(labels.shape)
            if one[place] >= 0
        ]
        found.append(np.corrcoef(np.array(pairs).T)[0, 1])
    return np.mean(found)


def fast(probabilities, labels, rows=50):
    """Return the mean over pairs, from so many rows at a time."""
    tensors, truth = list(map(torch.from_numpy, probabilities)), torch.from_numpy(labels)
    return mean_error_correlation(
        ([each[begin : begin + rows] for each in tensors], truth[begin : begin + rows])
        for begin in range(0, len(labels), rows)
    )


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_it_is_the_mean_of_pearsons_correlations(rows):
    probabilities, labels = sample()
    expected = slow(probabilities, labels)
    assert 0.4 < expected < 0.9
    assert fast(probabilities, labels, rows) == pytest.approx(expected, abs=1e-12)


def test_classes_without_a_known_label_are_left_out():
    probabilities, labels = sample()
    unknown = np.random.default_rng(1).random(labels.shape) < 0.4
    probabilities = [np.where(unknown, np.float32(-1), each) for each in probabilities]
    assert fast(probabilities, labels) == pytest.approx(slow(probabilities, labels), abs=1e-12)


def test_equal_models_have_correlation_one_and_opposite_errors_minus_one():
    (one, *_), labels = sample()
    assert fast([one, one.copy(), one.copy()], labels) == pytest.approx(1)
    nothing = np.zeros_like(labels)
    assert fast([one, 1 - one], nothing) == pytest.approx(-1)
    perfect = labels.astype(np.float32)
    assert fast([one, perfect], labels) == 0
