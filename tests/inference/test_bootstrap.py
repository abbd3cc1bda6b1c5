"""Bootstrap intervals and paired comparisons: by their definition, and how often they hold."""

import numpy as np
import pytest
import torch

from judged import made, outcomes_of
from reeltag.core.errors import UsageError
from reeltag.inference.metrics.bootstrap import (
    MIN_POSITIVES,
    Gain,
    _Lists,
    compare,
    compare_classes,
    resample,
    significant,
)
from reeltag.inference.metrics.video_metrics import Metrics


def slow_precision_sum(order, weights, hits):
    """Sum the precision at each label of a list, where every tag counts as often as its video was drawn."""
    total = right = found = 0.0
    for tag in order:
        total += weights[tag]
        right += weights[tag] * hits[tag]
        if hits[tag] and total:
            found += weights[tag] * right / total
    return found


@pytest.mark.parametrize("seed", range(6))
def test_weighted_metrics_follow_their_definition(seed):
    scores, labels = made(25, 8, 9, seed)
    weights = np.random.default_rng(seed).poisson(1, (25, 3)).astype(np.float32)
    gaps, maps, class_aps = _Lists(outcomes_of(scores, labels)).measure(weights)
    for draw in range(3):
        drawn = weights[:, draw]
        expected = []
        for number in range(8):
            order = np.argsort(-scores[:, number], kind="stable")
            total = (drawn * labels[:, number]).sum()
            expected.append(slow_precision_sum(order, drawn, labels[:, number]) / total if total else np.nan)
        assert class_aps[draw] == pytest.approx(expected, nan_ok=True)
        assert maps[draw] == pytest.approx(np.nan_to_num(expected).mean())
        ranked = sorted(np.ndindex(scores.shape), key=lambda tag: (-scores[tag], tag))
        pooled = slow_precision_sum(ranked, {tag: drawn[tag[0]] for tag in ranked}, labels)
        assert gaps[draw] == pytest.approx(pooled / (drawn[:, None] * labels).sum())


def test_without_drawing_the_metrics_are_those_of_an_evaluation():
    scores, labels = made(60, 40, 30, 2)
    scored = Metrics.of(torch.from_numpy(scores), torch.from_numpy(labels)).compute()
    (found,) = resample(outcomes_of(scores, labels), resamples=20)
    assert (found.gap, found.map) == (pytest.approx(scored.gap), pytest.approx(scored.map))
    np.testing.assert_allclose(found.class_ap, scored.class_ap)
    low, high = found.interval("gap")
    assert low < found.gap < high
    lows, highs = found.class_intervals
    few = labels.sum(0) < MIN_POSITIVES
    assert few.any() and not few.all()
    assert (np.isnan(lows) == few).all() and (lows[~few] < found.class_ap[~few]).all() and (highs[~few] <= 1).all()
    (again,) = resample(outcomes_of(scores, labels), resamples=20)
    assert (again.gaps == found.gaps).all()


def test_a_model_is_not_better_than_itself_and_worse_than_a_clearly_better_one():
    scores, labels = made(200, 5, 1000, 3)
    better = np.where(labels, scores + 1, scores).astype(np.float32) / 2
    first, same, second = resample(*(outcomes_of(each, labels) for each in (scores, scores, better)), resamples=100)
    assert compare(first, same)["gap"] == Gain(first.gap, first.gap, 0, 0, 0, 1)
    gain = compare(first, second)["gap"]
    assert 0 < gain.low < gain.gain < gain.high and gain.p < 1e-9
    assert gain.gain == pytest.approx(second.gap - first.gap)
    classes = compare_classes(first, second)
    assert sorted(significant(classes)) == list(range(5))
    assert significant(compare_classes(first, same)) == []


def test_models_of_other_videos_are_not_compared():
    scores, labels = made(6, 4, 9, 0)
    with pytest.raises(UsageError, match="not measured on the same videos and labels"):
        resample(outcomes_of(scores, labels), outcomes_of(scores[:5], labels[:5]))
    with pytest.raises(UsageError, match="not measured on the same videos and labels"):
        resample(outcomes_of(scores, labels), outcomes_of(scores, ~labels))


RATES, SHIFTS = np.array([0.03, 0.05, 0.1, 0.2]), np.array([1.0, 3.0, 2.0, 1.5])


def drawn(rng, videos, noise=0.0):
    """Scores and labels of four classes: normal scores, shifted for videos that have the label."""
    labels = rng.random((videos, 4)) < RATES
    logits = rng.normal(size=labels.shape) + SHIFTS * labels - 2
    return tuple(
        (1 / (1 + np.exp(-(logits + noise * rng.normal(size=labels.shape))))).astype(np.float32) for _ in "ab"
    ), labels


def scores_of(scores, labels):
    scored = Metrics.of(torch.from_numpy(scores), torch.from_numpy(labels)).compute()
    return np.array([scored.gap, scored.map, *scored.class_ap])


@pytest.mark.slow
def test_intervals_cover_the_truth_at_their_level_on_200_sets():
    rng = np.random.default_rng(0)
    (many, _), labels = drawn(rng, 400_000)
    truth = scores_of(many, labels)
    covered = []
    for _ in range(200):
        (scores, _), labels = drawn(rng, 800)
        (found,) = resample(outcomes_of(scores, labels), resamples=300)
        ends = [found.interval("gap"), found.interval("map"), *zip(*found.class_intervals, strict=True)]
        covered.append([low <= true <= high for (low, high), true in zip(ends, truth, strict=True)])
    shares = np.mean(covered, axis=0)
    assert np.mean(shares) == pytest.approx(0.95, abs=0.03)
    assert (np.abs(shares - 0.95) < 0.065).all(), shares


@pytest.mark.slow
def test_equal_models_differ_significantly_in_one_of_twenty_sets():
    rng = np.random.default_rng(1)
    ps = []
    for _ in range(300):
        (first, second), labels = drawn(rng, 400, noise=1.0)
        ps.append(compare(*resample(outcomes_of(first, labels), outcomes_of(second, labels), resamples=200))["gap"].p)
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(ps) < 0.5) == pytest.approx(0.5, abs=0.09)
