"""Thresholds against brute force, their intervals against the truth, and calibration against what it undoes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reeltag.artifact.tagging_rule import Calibration
from reeltag.core.errors import UsageError
from reeltag.inference.calibration import fit_calibration
from reeltag.inference.metrics.binomial import wilson_interval
from reeltag.inference.selection import Selection
from reeltag.inference.thresholds import CLAIMED, Goal, choose_class_thresholds, parse_goal

GOALS = [Goal("precision", 0.6), Goal("recall", 0.5), Goal("f1"), Goal("cost", fp=1, fn=5), Goal("cost", fp=9, fn=1)]


def wilson_low(successes, trials, z=1.2815515655446004):
    """The lower root of (successes/trials - p)² = z² p (1 - p) / trials, in p."""
    share = successes / trials
    a, b, c = 1 + z * z / trials, -(2 * share + z * z / trials), share * share
    return (-b - math.sqrt(max(0, b * b - 4 * a * c))) / (2 * a)


def test_wilson_s_interval_is_that_of_the_literature():
    low, high = wilson_interval([0, 1, 10, 81], [10, 1, 10, 263])
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    assert (round(float(low[3]), 4), round(float(high[3]), 4)) == (0.2553, 0.3662)
    for successes, trials, expected in ((15, 148, (0.0624, 0.1605)), (0, 20, (0, 0.1611)), (1, 29, (0.0061, 0.1718))):
        assert tuple(round(float(end), 4) for end in wilson_interval(successes, trials)) == expected
    assert tuple(map(float, wilson_interval(0, 0))) == (0, 1)
    assert float(wilson_interval(9, 10, CLAIMED)[0]) == pytest.approx(wilson_low(9, 10))


def best_by_hand(scores, hits, goal):
    """Return the largest and the smallest threshold that tag the best set of videos; None if there is none."""
    found = []
    for least in sorted(set(scores), reverse=True):
        tagged = [hit for score, hit in zip(scores, hits, strict=True) if score >= least]
        correct = sum(tagged)
        wrong, missed = len(tagged) - correct, sum(hits) - correct
        found.append((least, len(tagged), correct, wrong, missed))
    if goal.kind == "precision":
        kept = [each for each in found if wilson_low(each[2], each[1]) >= goal.value]
        best = kept[-1] if kept else None
    elif goal.kind == "recall":
        kept = [each for each in found if wilson_low(each[2], sum(hits)) >= goal.value]
        best = kept[0] if kept else None
    elif goal.kind == "f1":
        best = max(found, key=lambda each: 2 * each[2] / (2 * each[2] + each[3] + each[4]))
    else:
        best = min(found, key=lambda each: goal.fp * each[3] + goal.fn * each[4])
        best = best if goal.fp * best[3] + goal.fn * best[4] < goal.fn * sum(hits) else None
    return best


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=25), st.sampled_from(GOALS))
def test_thresholds_are_those_of_brute_force(videos, goal):
    scores, hits = [score / 12 for score, _ in videos], [hit for _, hit in videos]
    column = torch.tensor(scores)[:, None]
    chosen = choose_class_thresholds(column, torch.tensor(hits)[:, None], goal, {})
    expected = best_by_hand(column[:, 0].tolist(), hits, goal) if any(hits) else None
    assert chosen.positives.tolist() == [sum(hits)]
    if expected is None:
        assert not chosen.met.any() and (chosen.tagged[0], chosen.correct[0]) == (0, 0)
        return
    assert (chosen.tagged[0], chosen.correct[0]) == expected[1:3]
    assert int((column.numpy() >= chosen.values).sum()) == expected[1]  # the threshold tags the same videos


def test_neighbouring_floats_are_kept_apart():
    high = np.float32(0.5)
    low = np.nextafter(high, np.float32(0))
    scores = torch.tensor([high, low])[:, None]
    chosen = choose_class_thresholds(scores, torch.tensor([[True], [False]]), Goal("f1"), {})
    assert (scores.numpy() >= chosen.values).ravel().tolist() == [True, False]


def test_unrated_segments_do_not_count():
    scores, labels = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 2, dtype=torch.bool)
    labels[::2, 0] = True
    rated = torch.zeros_like(labels)
    rated[:20] = True
    some = choose_class_thresholds(scores, labels, Goal("f1"), {}, rated=rated)
    alone = choose_class_thresholds(scores[:20], labels[:20], Goal("f1"), {})
    assert some.values.tolist() == alone.values.tolist() and some.positives.tolist() == [10, 0]
    assert not some.met[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": 0.9, "f1": True}, "precision and f1: .* one"),
        ({"precision": 1.0}, "below 1"),
        ({"recall": 0.0}, "above 0"),
        ({"cost": "fp=1"}, "both errors"),
        ({"cost": "fp=1,fn=-5"}, "above 0"),
        ({"cost": "fp=1,fn=5,fn=6"}, "both errors"),
        ({"cost": "1:5"}, "fp=1,fn=5"),
    ],
)
def test_goals_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        parse_goal(**{"precision": None, "recall": None, "f1": False, "cost": None} | options)


def made(rng, classes, videos=2000):
    """Return probabilities and labels of generated classes, and functions of a threshold: true precision and recall."""
    prevalence = rng.choice([0.01, 0.02, 0.05, 0.1], classes)
    shift = rng.uniform(1.5, 3.5, classes)
    labels = rng.random((videos, classes)) < prevalence
    scores = rng.normal(size=(videos, classes)) + shift * labels
    tail = np.vectorize(lambda x: 0.5 * math.erfc(x / math.sqrt(2)))

    def truth(thresholds):
        place = np.log(thresholds) - np.log1p(-thresholds)
        recall, wrong = tail(place - shift), tail(place)
        return prevalence * recall / (prevalence * recall + (1 - prevalence) * wrong), recall

    return torch.sigmoid(torch.from_numpy(scores)).float(), torch.from_numpy(labels), truth


@pytest.mark.slow
@pytest.mark.parametrize(
    "goal",
    [Goal("precision", 0.9), Goal("precision", 0.7), Goal("recall", 0.8), Goal("f1"), Goal("cost", fn=5)],
    ids=str,
)
def test_intervals_hold_the_truth_at_their_level_and_claims_hold(goal):
    rng = np.random.default_rng(0)
    held, true = [], []
    for _ in range(200):
        probabilities, labels, truth = made(rng, classes=8)
        chosen = choose_class_thresholds(probabilities, labels, goal, {})
        met = chosen.met
        with np.errstate(invalid="ignore"):
            precision, recall = truth(np.where(met, chosen.values, 0.5).astype(float))
        for share, trials in ((precision, chosen.tagged), (recall, chosen.positives)):
            low, high = wilson_interval(chosen.correct, trials)
            held.append(((low <= share) & (share <= high))[met])
        true.append((precision if goal.kind == "precision" else recall)[met])
    coverage, true = np.concatenate(held), np.concatenate(true)
    assert len(true) > 400
    assert abs(coverage.mean() - 0.95) <= 0.03
    assert (
        goal.kind in ("f1", "cost") or true.mean() >= goal.value
    )  # what is claimed holds on average, although it was chosen on few positives


@pytest.mark.parametrize("scope", ["shared", "per-class"])
def test_a_model_that_is_wrong_throughout_is_not_turned_around(scope):
    probabilities, labels, ids = overconfident(videos=300, classes=3)
    calibration = fit_calibration(1 - probabilities, labels, ids, scope, {})  # its loss is lowest with a scale below 0
    assert calibration.fault() == "" and set(calibration.scale) == {1} and not calibration.offset.any()
    assert calibration.about["log_loss_after"] == calibration.about["log_loss_before"]


def log_loss(probabilities, labels):
    p = probabilities.double().clamp(1e-7, 1 - 1e-7)
    return float(-torch.where(labels, p.log(), (1 - p).log()).sum(1).mean())


def overconfident(videos=1500, classes=6, seed=0):
    """Return probabilities whose logits are twice too large, plus one, and labels drawn from the true ones."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(videos, classes, generator=generator) - 1
    labels = torch.rand(videos, classes, generator=generator) < torch.sigmoid(logits)
    return torch.sigmoid(2 * logits + 1), labels, [f"v{number}" for number in range(videos)]


def test_the_shared_map_is_found_and_lowers_the_loss_of_other_videos():
    probabilities, labels, ids = overconfident()
    calibration = fit_calibration(probabilities, labels, ids, "shared", {})
    assert len(set(calibration.scale)) == len(set(calibration.offset)) == 1
    # logit = (z - 1) / 2 undoes it
    np.testing.assert_allclose([calibration.scale[0], calibration.offset[0]], [0.5, -0.5], atol=0.07)
    others, truth, _ = overconfident(seed=1)
    assert log_loss(calibration(others), truth) < log_loss(others, truth) - 0.1
    assert calibration.about["log_loss_after"] < calibration.about["log_loss_before"]
    assert calibration.about["log_loss_before"] == pytest.approx(log_loss(probabilities, labels), abs=1e-4)


def test_newton_ends_where_the_gradient_is_zero():
    probabilities, labels, ids = overconfident(videos=400, classes=3)
    calibration = fit_calibration(probabilities, labels, ids, "shared", {})
    found = [float(calibration.scale[0]), float(calibration.offset[0])]
    line = torch.tensor(found, dtype=torch.float64, requires_grad=True)
    mapped = line[0] * torch.logit(probabilities.double(), 1e-7) + line[1]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(mapped, labels.double(), reduction="sum")
    (loss + ((line[0] - 1) ** 2 + line[1] ** 2) / 2).backward()  # convex, so a zero gradient is the minimum
    assert line.grad is not None and line.grad.abs().max() < 1e-2 and loss > 100


def test_calibrated_probabilities_stay_as_they_are():
    generator = torch.Generator().manual_seed(3)
    probabilities = torch.rand(300, 4, generator=generator)
    labels = torch.rand(300, 4, generator=generator) < probabilities
    calibration = fit_calibration(probabilities, labels, [str(n) for n in range(300)], "per-class", {})
    assert calibration.about["log_loss_after"] <= calibration.about["log_loss_before"]
    assert np.isclose(calibration.scale, 1, atol=0.4).all()


def test_per_class_maps_are_kept_where_they_help_and_a_class_without_positives_keeps_the_shared_one():
    probabilities, labels, ids = overconfident(classes=4)
    probabilities[:, 0] = torch.sigmoid(torch.logit(probabilities[:, 0]) + 3)
    labels[:, 3] = False
    shared = fit_calibration(probabilities, labels, ids, "shared", {})
    own = fit_calibration(probabilities, labels, ids, "per-class", {})
    assert log_loss(own(probabilities), labels) < log_loss(shared(probabilities), labels)
    assert own.offset[0] < own.offset[1] - 1
    assert (own.scale > 0).all() and np.isfinite(own.offset).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=9),
    st.floats(0.05, 5),
    st.floats(-5, 5),
)
def test_a_shared_map_changes_no_ranks(scores, scale, offset):
    row = torch.tensor(scores)
    same = [np.full(len(scores), value, np.float32) for value in (scale, offset)]
    mapped = Calibration(*same)(row)
    assert mapped.isfinite().all() and ((mapped >= 0) & (mapped <= 1)).all()
    assert (mapped[row.argsort()].diff() >= 0).all()


def test_a_selection_keeps_the_most_probable_above_their_thresholds():
    probabilities = torch.tensor([[0.1, 0.9, 0.5, 0.7], [0.2, 0.1, 0.0, 0.3]])
    assert list(Selection(2).tags(probabilities)) == [
        ([1, 3], pytest.approx([0.9, 0.7])),
        ([3, 0], pytest.approx([0.3, 0.2])),
    ]
    assert [classes for classes, _ in Selection(4, 0.5).tags(probabilities)] == [[1, 3, 2], []]
    assert [classes for classes, _ in Selection(4, (0.1, math.inf, 0.6, 0.2)).tags(probabilities)] == [[3, 0], [3, 0]]
