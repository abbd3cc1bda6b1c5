"""Calibration, gating, margins, curves and charts of a report, against loops that follow the definitions."""

import math

import numpy as np
import pytest
import torch

from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.outcomes import CALIBRATION_BINS as BINS
from reeltag.pipeline.report.axes import linear_axis, log_ticks, tight_axis
from reeltag.pipeline.report.calibration import calibration
from reeltag.pipeline.report.charts import Point, Series, chart
from reeltag.pipeline.report.compare import recipe_changes
from reeltag.pipeline.report.gating import LISTED_PAIRS, MIN_VIDEOS, CoOccurrence, gating_gain
from reeltag.pipeline.stages.report_samples import _mean_row, margins
from reeltag.training.log import Row


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_calibration_follows_its_definition(rng):
    scores = np.append(rng.random((50, 7)), [[0.0, 1.0, 0.1, 0.3, 0.6, 0.7, 0.999999]], 0).astype(np.float32)
    hits = rng.random(scores.shape) < scores**2
    found = calibration(scores, hits)
    bins, error = [], 0.0
    for number in range(BINS):
        inside = [
            (float(score), bool(hit))
            for score, hit in zip(scores.ravel(), hits.ravel(), strict=True)
            if min(int(score * np.float32(BINS)), BINS - 1) == number
        ]
        if inside:
            mean, share = (sum(each) / len(inside) for each in zip(*inside, strict=True))
            bins.append(
                {"count": len(inside), "score": pytest.approx(mean, abs=6e-6), "share": pytest.approx(share, abs=6e-6)}
            )
            error += len(inside) / scores.size * abs(mean - share)
    assert found["bins"] == bins
    assert found["ece"] == pytest.approx(error, abs=6e-6)


def test_perfect_tags_are_calibrated_and_empty_bins_are_left_out():
    hits = np.array([[True, False], [True, False]])
    found = calibration(hits.astype(np.float32), hits)
    assert found["ece"] == 0
    assert [each["count"] for each in found["bins"]] == [2, 2]


def test_log_lift_follows_its_definition_and_adds_up(rng):
    values = rng.random((40, 5)).astype(np.float32)
    whole = CoOccurrence.of(values).log_lift()
    for a in range(5):
        for b in range(5):
            both = sum(float(row[a]) * float(row[b]) for row in values) / 40
            alone = sum(map(float, values[:, a])) / 40 * sum(map(float, values[:, b])) / 40
            assert whole[a, b] == pytest.approx(math.log2(both / alone), rel=1e-4, abs=1e-5)
    parts = CoOccurrence.of(values[:13]) + CoOccurrence.zeros(5) + CoOccurrence.of(values[13:])
    np.testing.assert_allclose(parts.log_lift(), whole, atol=1e-5)


def test_gating_gain_lists_the_pairs_that_changed_most(rng):
    labels = (rng.random((300, 9)) < 0.2).astype(np.float32)
    labels[:, 8] = 0
    labels[:4, [0, 8]] = 1  # a pair of too few videos
    without, gated = rng.random((300, 9)).astype(np.float32), rng.random((300, 9)).astype(np.float32)
    found = gating_gain(*map(CoOccurrence.of, (labels, without, gated)))

    def lift(values, a, b):
        return math.log2((values[:, a] * values[:, b]).mean() / (values[:, a].mean() * values[:, b].mean()))

    pairs = [(a, b) for a in range(9) for b in range(a + 1, 9) if (labels[:, a] * labels[:, b]).sum() >= MIN_VIDEOS]
    assert (0, 8) not in pairs
    assert found["pairs"] == len(pairs)
    for key, values in {"error_without": without, "error_gated": gated}.items():
        distance = np.mean([abs(lift(values, *pair) - lift(labels, *pair)) for pair in pairs])
        assert found[key] == pytest.approx(distance, abs=1e-4)
    most = sorted(pairs, key=lambda pair: -abs(lift(gated, *pair) - lift(without, *pair)))[:LISTED_PAIRS]
    assert [tuple(pair["classes"]) for pair in found["changed"]] == most
    first = found["changed"][0]
    assert first["videos"] == (labels[:, most[0][0]] * labels[:, most[0][1]]).sum()
    assert [first[key] for key in ("labels", "without", "gated")] == pytest.approx(
        [lift(values, *most[0]) for values in (labels, without, gated)], abs=1e-4
    )


def test_gating_gain_is_none_if_no_pair_counts():
    labels = np.eye(3, dtype=np.float32)
    assert gating_gain(*[CoOccurrence.of(labels)] * 3) is None


def test_margins_follow_their_definition(rng):
    probabilities, labels = rng.random((20, 6)).astype(np.float32), rng.random((20, 6)) < 0.3
    labels[0], labels[1] = False, True
    found = margins(Predictions(("",) * 20, torch.from_numpy(probabilities), torch.from_numpy(labels))).tolist()
    for value, row, own in zip(found, probabilities, labels, strict=True):
        if own.all() or not own.any():
            assert math.isnan(value)
        else:
            assert value == pytest.approx(float(row[own].min() - row[~own].max()))


def test_rows_of_a_log_are_averaged_by_their_number_of_steps():
    rows = [(Row(10, 1.0, 6.0, 0.1, 0.3), 10), (Row(12, 1.2, 12.0, 0.1, None), 2)]
    assert _mean_row(rows) == Row(12, 1.2, 7.0, 0.1, 0.3)


@pytest.mark.parametrize("log", ["", "x", "y"])
def test_points_lie_where_the_ticks_say(log):
    points = [Point(x, y, "") for x, y in ((1.0, 0.5), (4.0, 2.0), (20.0, 5.0))]
    result = chart("t", ("x", "y"), [Series("s", points)], log=log)
    (series,) = result.series
    assert all(result.left <= p.x <= result.right and result.top <= p.y <= result.bottom for p in series.points)
    for value, position in zip(points, series.points, strict=True):
        for ticks, at, number, logarithmic in (
            (result.x_ticks, position.x, value.x, log == "x"),
            (result.y_ticks, position.y, value.y, log == "y"),
        ):
            scale = np.log if logarithmic else np.asarray
            known = scale([float(tick.label) for tick in ticks])
            slope, offset = np.polyfit(known, [tick.at for tick in ticks], 1)
            assert slope * scale(number) + offset == pytest.approx(at, abs=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.9, 4.6, [1, 2, 3, 4]),
        (0.0003, 20, [0.001, 0.01, 0.1, 1, 10]),
        (0.2, 40, [0.2, 0.5, 1, 2, 5, 10, 20]),
        (1.2, 4.6, [1.5, 2, 2.5, 3, 3.5, 4, 4.5]),
        (0.07, 0.36, [0.08, 0.1, 0.2, 0.3]),
    ],
)
def test_a_short_logarithmic_axis_has_more_ticks(low, high, ticks):
    assert log_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("values", "ticks", "labels"),
    [
        ([0.912, 0.938], [0.91, 0.915, 0.92, 0.925, 0.93, 0.935, 0.94], "0.910 0.915 0.920 0.925 0.930 0.935 0.940"),
        ([-3.0, 14.0], [-5, 0, 5, 10, 15], "-5 0 5 10 15"),
        ([1200.0, 5100.0], [1000, 2000, 3000, 4000, 5000, 6000], "1000 2000 3000 4000 5000 6000"),
    ],
)
def test_a_linear_axis_covers_the_values_with_round_ticks(values, ticks, labels):
    axis = linear_axis(values, 5)
    assert list(axis.ticks) == pytest.approx(ticks)
    assert (axis.low, axis.high) == pytest.approx((ticks[0], ticks[-1]))
    assert axis.labels() == labels.split()


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-9])
def test_an_axis_of_one_value_has_that_value_inside(value):
    for axis in (linear_axis([value], 5), tight_axis([value, value], 6)):
        assert axis.low < value < axis.high
        assert 0 < axis.fraction(value) < 1
        assert len(axis.labels()) == len(axis.ticks) > 1


def test_a_tight_axis_ends_with_the_values_and_starts_at_zero_if_that_is_near():
    assert (tight_axis([0.2, 5.0], 6).low, tight_axis([0.2, 5.0], 6).high) == (0, 5)
    assert (tight_axis([2.0, 5.0], 6).low, tight_axis([2.0, 5.0], 6).high) == (2, 5)


def test_differences_between_recipes():
    added = {"b": {"hidden": 5, "dropout": None, "training": {"learning_rate": 0.1}}, "c": dict.fromkeys("abcdefg", 1)}
    before = {"seed": 1, "training": {"learning_rate": 0.1, "epochs": 3}, "models": {"a": {"hidden": 4}}, "same": [1]}
    after = {"seed": 1, "training": {"learning_rate": 0.2, "epochs": 3}, "models": added, "same": [1]}
    assert recipe_changes(before, after) == [
        ("training.learning_rate", "0.1", "0.2"),
        ("models.a", "only here: hidden = 4", "none"),
        ("models.b", "none", "only here: hidden = 5, training.learning_rate = 0.1"),
        ("models.c", "none", "only here: 7 keys"),
    ]
