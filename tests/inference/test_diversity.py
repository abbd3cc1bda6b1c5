"""The correlation of errors against numpy's, pair by pair."""

from itertools import combinations

import numpy as np
import pytest

from reeltag.inference.metrics import diversity
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


@pytest.mark.parametrize("values", [1, 100, 10**9])
def test_it_is_the_mean_of_pearsons_correlations(monkeypatch, values):
    monkeypatch.setattr(diversity, "CHUNK_VALUES", values)
    probabilities, labels = sample()
    expected = slow(probabilities, labels)
    assert 0.4 < expected < 0.9
    assert mean_error_correlation(probabilities, labels) == pytest.approx(expected, abs=1e-12)


def test_classes_without_a_known_label_are_left_out():
    probabilities, labels = sample()
    unknown = np.random.default_rng(1).random(labels.shape) < 0.4
    probabilities = [np.where(unknown, np.float32(-1), each) for each in probabilities]
    assert mean_error_correlation(probabilities, labels) == pytest.approx(slow(probabilities, labels), abs=1e-12)


def test_equal_models_have_correlation_one_and_opposite_errors_minus_one():
    (one, *_), labels = sample()
    assert mean_error_correlation([one, one.copy(), one.copy()], labels) == pytest.approx(1)
    nothing = np.zeros_like(labels)
    assert mean_error_correlation([one, 1 - one], nothing) == pytest.approx(-1)
    perfect = labels.astype(np.float32)
    assert mean_error_correlation([one, perfect], labels) == 0


def test_files_are_read_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(diversity, "CHUNK_VALUES", 4 * 7 * 6)
    largest = []

    class Rows:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, rows):
            found = self.array[rows]
            largest.append(len(found))
            return found

    probabilities, labels = sample()
    mean_error_correlation([Rows(each) for each in probabilities], labels)
    assert max(largest) == 6
