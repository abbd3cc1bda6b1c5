"""GAP, Hit@1, PERR and mAP: the authors' numbers, slow implementations, and merging."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import golden
from reeltag.inference.metrics.video_metrics import Metrics, top_k

ARRAYS = golden("metrics")
CASES = sorted(key.removesuffix(":metrics") for key in ARRAYS if key.endswith(":metrics"))
TIES = ("ties_80x30", "all_zero_predictions_20x30")


def case(name):
    return torch.from_numpy(ARRAYS[f"{name}:predictions"]), torch.from_numpy(ARRAYS[f"{name}:labels"]).bool()


@pytest.mark.parametrize("name", [name for name in CASES if name not in TIES])
@pytest.mark.parametrize("batches", [1, 5])
def test_metrics_are_the_authors(name, batches):
    predictions, labels = case(name)
    parts = zip(predictions.chunk(batches), labels.chunk(batches), strict=True)
    scores = Metrics.merge(Metrics.of(p, y) for p, y in parts).compute()
    ours = [scores.hit_at_1, scores.perr, scores.gap, scores.map]
    np.testing.assert_allclose(ours, ARRAYS[f"{name}:metrics"][:4], atol=1e-6)
    np.testing.assert_allclose(scores.class_ap, ARRAYS[f"{name}:aps"], atol=1e-6)


@pytest.mark.parametrize("name", TIES)
def test_with_ties_gap_and_hit_at_1_stay_near_the_authors(name):
    # In the authors' program PERR and mAP depend on which of the tied classes numpy.argpartition returns.
    scores = Metrics.of(*case(name)).compute()
    hit, _, gap, _ = ARRAYS[f"{name}:metrics"][:4]
    assert scores.hit_at_1 == pytest.approx(hit, abs=1e-6)
    assert scores.gap == pytest.approx(gap, abs=0.02)


def slow_gap(predictions, labels):
    """Compute GAP by its definition: pool the top 20 of each video, sort, sum the precision at each hit."""
    pooled = []
    for video, (row, truth) in enumerate(zip(predictions, labels, strict=True)):
        best = sorted(range(len(row)), key=lambda c: (-row[c], c))[:20]
        pooled += [(-row[c], video, rank, truth[c]) for rank, c in enumerate(best)]
    hits = total = 0
    for position, (*_, hit) in enumerate(sorted(pooled, key=lambda entry: entry[:3]), 1):
        if hit:
            hits += 1
            total += hits / position
    return total / max(1, sum(map(sum, labels)))


@settings(max_examples=60)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(2, 6), st.integers(0, 10_000))
def test_gap_equals_a_slow_implementation_of_its_definition(videos, classes, levels, seed):
    rng = np.random.default_rng(seed)
    predictions = rng.integers(0, levels, (videos, classes)) / levels  # few levels, so many ties
    labels = rng.random((videos, classes)) < 0.2
    ours = Metrics.of(torch.from_numpy(predictions).float(), torch.from_numpy(labels)).gap()
    assert ours == pytest.approx(slow_gap(predictions.tolist(), labels.tolist()), abs=1e-12)


@settings(max_examples=60)
@given(st.integers(2, 20), st.integers(0, 10_000), st.data())
def test_merged_metrics_do_not_depend_on_the_split(videos, seed, data):
    rng = np.random.default_rng(seed)
    predictions = torch.from_numpy(rng.random((videos, 25), np.float32)).round(decimals=1)
    labels = torch.from_numpy(rng.random((videos, 25)) < 0.1)
    cut = data.draw(st.integers(1, videos - 1))
    whole = Metrics.of(predictions, labels).compute()
    merged = Metrics.merge(
        [Metrics.of(predictions[:cut], labels[:cut]), Metrics.of(predictions[cut:], labels[cut:])]
    ).compute()
    assert merged.summary() == whole.summary()
    np.testing.assert_array_equal(merged.class_ap, whole.class_ap)


def slow_map(predictions, labels):
    """Compute mAP by its definition: for each class with positives, the mean precision at the rank of each positive."""
    precisions = []
    for scores, truth in zip(predictions.T, labels.T, strict=True):
        order = sorted(range(len(scores)), key=lambda video: (-scores[video], video))
        ranks = [rank for rank, video in enumerate(order, 1) if truth[video]]
        if ranks:
            precisions.append(sum(number / rank for number, rank in enumerate(ranks, 1)) / len(ranks))
    return sum(precisions) / len(precisions) if precisions else 0


@settings(max_examples=60)
@given(st.integers(2, 25), st.integers(1, 40), st.integers(2, 30), st.integers(0, 10_000), st.data())
def test_map_over_all_scores_equals_a_slow_implementation_for_every_split(videos, classes, levels, seed, data):
    rng = np.random.default_rng(seed)
    predictions = (rng.integers(0, levels, (videos, classes)) / levels).astype(np.float32)
    labels = rng.random((videos, classes)) < 0.2
    cut = data.draw(st.integers(1, videos - 1))
    parts = [
        Metrics.of(torch.from_numpy(predictions[part]), torch.from_numpy(labels[part]), all_scores=True)
        for part in (slice(cut), slice(cut, None))
    ]
    assert Metrics.merge(parts).compute().map_all == pytest.approx(slow_map(predictions, labels), abs=1e-12)


def test_map_over_all_scores_is_computed_only_on_request():
    predictions, labels = torch.rand(4, 30), torch.rand(4, 30) < 0.3
    assert "map_all" not in Metrics.of(predictions, labels).compute().summary()
    assert "map_all" in Metrics.of(predictions, labels, all_scores=True).compute().summary()


def test_top_k_orders_equal_scores_by_class():
    scores, classes = top_k(torch.tensor([[0.5, 0.9, 0.5, 0.5, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2]]), 3)
    assert classes.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert scores.tolist() == torch.tensor([[0.9, 0.5, 0.5], [0.2, 0.2, 0.2]]).tolist()


def test_gap_is_exact_where_float32_sums_are_not():
    videos = 20_000
    predictions = torch.linspace(1, 0.001, videos * 2).reshape(videos, 2)
    labels = torch.ones(videos, 2, dtype=torch.bool)
    assert Metrics.of(predictions, labels).gap() == pytest.approx(1.0, abs=1e-12)
