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
    _p_value,
    _student,
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


def test_student_s_quantiles_are_those_of_the_tables():
    positives, table = np.array([10, 20, 30, 121, 10**9]), [2.2622, 2.0930, 2.0452, 1.9799, 1.95996]
    assert _student(positives) == pytest.approx(table, rel=1e-3)
    for number, deviations in zip(positives.tolist(), _student(positives).tolist(), strict=True):
        assert _p_value(deviations, number - 1) == pytest.approx(0.05)
    assert _p_value(2.861, 19) == pytest.approx(0.01, rel=0.01)


def test_a_metric_that_no_draw_changes_has_no_interval():
    labels = np.eye(20, dtype=bool)
    (found,) = resample(outcomes_of(labels.astype(np.float32), labels), resamples=20)
    assert (found.gap, found.map) == (1, 1)
    assert found.interval("gap") is found.interval("map") is None


RATES, SHIFTS = np.array([0.03, 0.05, 0.1, 0.2]), np.array([1.0, 3.0, 2.0, 1.5])


def drawn(rng, videos, noise=0.0, rates=RATES, shifts=SHIFTS):
    """Scores and labels of some classes: normal scores, shifted for videos that have the label."""
    labels = rng.random((videos, len(rates))) < rates
    logits = rng.normal(size=labels.shape) + shifts * labels - 2
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
    assert shares == pytest.approx(0.95, abs=0.03)  # the rarest class has some 24 labels


@pytest.mark.slow
def test_intervals_of_map_over_rare_classes_cover_the_mean_of_sets_as_large():
    rng, classes = (
        np.random.default_rng(2),
        {"rates": np.full(18, 0.02), "shifts": np.tile([0.5, 1, 1.5, 2, 2.5, 3], 3)},
    )
    sets = [drawn(rng, 800, **classes) for _ in range(600)]
    mean = np.mean([scores_of(scores, labels)[1] for (scores, _), labels in sets])
    ends = [resample(outcomes_of(s, y), resamples=150)[0].interval("map") for (s, _), y in sets[:200]]
    assert np.mean([low <= mean <= high for low, high in ends]) == pytest.approx(0.95, abs=0.03)
    (many, _), labels = drawn(rng, 200_000, **classes)
    assert mean - 0.04 < scores_of(many, labels)[1] < mean - 0.01  # few labels make average precision too high


@pytest.mark.slow
def test_equal_models_differ_significantly_in_one_of_twenty_sets():
    rng = np.random.default_rng(1)
    ps = []
    for _ in range(300):
        (first, second), labels = drawn(rng, 400, noise=1.0)
        ps.append(compare(*resample(outcomes_of(first, labels), outcomes_of(second, labels), resamples=200))["gap"].p)
    assert np.mean(np.array(ps) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert np.mean(np.array(ps) < 0.5) == pytest.approx(0.5, abs=0.09)
