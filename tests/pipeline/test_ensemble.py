"""Ensembles under a budget: never over it, and as good as exhaustive search where that is possible."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from reeltag.inference.metrics.video_metrics import Metrics, gap
from reeltag.pipeline.ensemble_search import (
    Evidence,
    Option,
    bootstrap_spread,
    contenders,
    ensemble_gap,
    frontier,
    greedy,
    prefer_simple,
    random_search,
    rank_combinations,
    select,
    select_members,
    weighted,
)

VIDEOS, CLASSES = 40, 30


def problem(seed, members, encodings=1):
    """Return labels, and members with noisy predictions of them; more bytes, less noise."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.random((VIDEOS, CLASSES)) < 0.1)
    labels[:, 0] |= ~labels.any(1)
    options = []
    for member in range(members):
        size = int(rng.integers(10, 1000))
        seen = labels.numpy() + rng.normal(0, 0.5 + 20 / size, labels.shape)
        for number in range(encodings):
            blurred = seen + rng.normal(0, 0.1 * number, labels.shape)
            probabilities = torch.from_numpy(1 / (1 + np.exp(-3 * blurred))).float()
            options.append(Option(f"m{member}", f"e{number}", size // (number + 1) + 1, probabilities))
    return options, labels


def test_gap_alone_is_the_gap_of_all_metrics():
    options, labels = problem(0, 3)
    for option in options:
        assert gap(option.probabilities, labels) == Metrics.of(option.probabilities, labels).gap()


@pytest.mark.slow
def test_a_thousand_random_choices_never_exceed_the_budget():
    rng = np.random.default_rng(1)
    chosen = 0
    for seed in range(1000):
        options, labels = problem(seed, int(rng.integers(1, 6)), int(rng.integers(1, 3)))
        budget = int(rng.integers(0, 1.2 * sum(option.bytes for option in options)))
        selection = select(options, labels, budget, trials=2, seed=seed)
        if selection is None:
            assert budget < min(option.bytes for option in options)
            continue
        chosen += 1
        assert sum(option.bytes for option in selection.options) == selection.bytes <= budget
        assert sum(selection.weights) == pytest.approx(1)
        names = [option.member for option in selection.options]
        assert len(set(names)) == len(names) == len(selection.weights)
        parts = [option.probabilities for option in selection.options]
        assert ensemble_gap(parts, labels, selection.weights) == pytest.approx(selection.gap, abs=1e-9)
    assert chosen > 700


@pytest.mark.parametrize("seed", range(20))
def test_no_subset_with_equal_weights_that_fits_is_better(seed):
    options, labels = problem(seed, 4, 2)
    budget = sum(option.bytes for option in options) // 3
    selection = select(options, labels, budget, trials=0, seed=0)
    pairs = [[None, *options[begin : begin + 2]] for begin in range(0, 8, 2)]
    for subset in product(*pairs):
        parts = [option for option in subset if option]
        if parts and sum(option.bytes for option in parts) <= budget:
            mean = torch.stack([option.probabilities for option in parts]).mean(0)
            assert selection.gap >= Metrics.of(mean, labels).gap() - 1e-9


def mean_gap(options, picks, labels):
    return gap(sum(options[index].probabilities for index in picks) / len(picks), labels)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_picks_go_for_the_largest_gain_and_count_as_weights(seed):
    options, labels = problem(seed, 5)
    picks, way = [], []
    for _ in range(30):
        found = [
            (mean_gap(options, [*picks, index], labels), 0 if index in picks else -option.bytes, -index)
            for index, option in enumerate(options)
        ]
        picks = [*picks, -max(found)[2]]
        way.append((mean_gap(options, picks, labels), -len(picks), picks))
    best = max(way)[2]
    selection = greedy(options, labels, 10**9)
    shares = {option.member: weight for option, weight in zip(selection.options, selection.weights, strict=True)}
    assert shares == pytest.approx({options[index].member: best.count(index) / len(best) for index in best})


def test_selection_by_gain_per_byte_skips_a_large_member_that_is_hardly_better():
    options, labels = problem(5, 1)
    (good,) = options
    better = torch.where(labels, good.probabilities + 0.01, good.probabilities)
    blind = torch.full_like(better, 0.5)
    offered = [
        Option("huge", "e", 1000, better),
        Option("small", "e", 10, good.probabilities),
        Option("b", "e", 990, blind),
    ]
    assert [option.member for option in greedy(offered, labels, 1000).options] == ["huge"]
    assert [option.member for option in greedy(offered, labels, 1000, by_bytes=True).options] == ["small"]


@pytest.mark.parametrize("seed", range(5))
def test_no_subset_is_both_smaller_and_better_than_a_point_of_the_frontier(seed):
    options, labels = problem(seed, 6)
    points = frontier(options, labels, 10)
    assert points[0].bytes <= min(option.bytes for option in options) * 1.001
    for count in range(1, 7):
        for subset in combinations(options, count):
            size = sum(option.bytes for option in subset)
            mean = mean_gap(subset, range(count), labels)
            assert all(point.gap >= mean - 1e-9 for point in points if point.bytes >= size)


@pytest.mark.parametrize(("models", "count"), [(5, 3), (3, 3), (2, 3), (6, 1)])
def test_the_best_combination_is_the_best_of_all(models, count):
    options, labels = problem(11, models)
    probabilities = [option.probabilities for option in options]
    ranking = rank_combinations(probabilities, labels, count)
    scores = {
        subset: weighted([options[i] for i in subset], labels).gap
        for subset in combinations(range(models), min(count, models))
    }
    assert dict(ranking) == pytest.approx(scores, abs=1e-9)
    assert [found for _, found in ranking] == sorted(scores.values(), reverse=True)


def test_many_models_are_combined_greedily():
    options, labels = problem(13, 40)
    probabilities = [option.probabilities for option in options]
    chosen, found = rank_combinations(probabilities, labels, 3)[0]
    best = []
    for _ in range(3):
        left = [index for index in range(40) if index not in best]
        best.append(max(left, key=lambda index: mean_gap(options, [*best, index], labels)))
    assert list(chosen) == sorted(best)
    assert found == pytest.approx(mean_gap(options, best, labels), abs=1e-9)


def test_random_search_is_never_below_equal_weights_and_never_falls_with_more_trials():
    options, labels = problem(17, 4)
    probabilities = [option.probabilities for option in options]
    gaps = [random_search(probabilities, labels, trials=trials, seed=0)[1] for trials in (0, 10, 100)]
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(weighted(options, labels).gap)


def alike(seed, members, videos=50, classes=400):
    """Return members that agree on unlikely classes, with many equal scores, and random labels."""
    rng = np.random.default_rng(seed)
    common = rng.normal(-6, 2, (videos, classes))
    labels = rng.random((videos, classes)) < 0.01 + 0.5 * (common > -2)
    logits = (common + rng.normal(0, 0.3, common.shape) for _ in range(members))
    return [torch.from_numpy(np.round(1 / (1 + np.exp(-each)), 3)).float() for each in logits], torch.from_numpy(labels)


@pytest.mark.parametrize("seed", range(10))
def test_every_weighted_mean_of_the_contenders_has_the_gap_of_all_classes(seed):
    probabilities, labels = alike(seed, 4)
    few, few_labels = contenders(probabilities, labels)
    assert few[0].shape == few_labels.shape
    assert 20 <= few_labels.shape[1] < 150
    assert few_labels.sum() == labels.sum()
    weightings = [*np.eye(4), *np.random.default_rng(seed).dirichlet(np.ones(4), 20)]
    for weights in weightings:
        assert ensemble_gap(few, few_labels, weights) == ensemble_gap(probabilities, labels, weights)
    assert rank_combinations(few, few_labels, 2) == rank_combinations(probabilities, labels, 2)


def test_with_few_classes_all_are_contenders():
    options, labels = problem(0, 3)
    probabilities = [option.probabilities for option in options]
    few, few_labels = contenders(probabilities, labels)
    assert all(one is other for one, other in zip(few, probabilities, strict=True))
    assert few_labels is labels


@pytest.mark.parametrize("seed", range(5))
def test_given_members_are_all_selected_in_their_best_encodings(seed):
    options, labels = problem(seed, 3, 2)
    budget = sum(option.bytes for option in options) * 2 // 3
    weights = {"m0": 0.5, "m1": 0.3, "m2": 0.2}
    for given in (weights, None):
        expected = {}
        for chosen in product(options[:2], options[2:4], options[4:]):
            if sum(option.bytes for option in chosen) <= budget:
                parts = [option.probabilities for option in chosen]
                mixed = sum(w * part for w, part in zip((0.5, 0.3, 0.2) if given else (1 / 3,) * 3, parts, strict=True))
                expected[tuple(option.encoding for option in chosen)] = Metrics.of(mixed, labels).gap()
        selection = select_members(options, labels, budget, given, trials=0, seed=1)
        if not expected:
            assert selection is None
            continue
        assert [option.member for option in selection.options] == ["m0", "m1", "m2"]
        assert selection.bytes <= budget
        assert selection.gap == pytest.approx(max(expected.values()), abs=1e-9)
        assert expected[tuple(option.encoding for option in selection.options)] == pytest.approx(
            selection.gap, abs=1e-9
        )
        assert selection.weights == pytest.approx((0.5, 0.3, 0.2) if given else (1 / 3,) * 3)
        tried = select_members(options, labels, budget, given, trials=50, seed=1)
        assert tried.gap >= selection.gap
        assert (tried.weights == selection.weights) or not given


def test_many_given_members_get_better_encodings_one_at_a_time():
    options, labels = problem(3, 9, 2)
    smallest = sum(min(a.bytes, b.bytes) for a, b in zip(options[::2], options[1::2], strict=True))
    largest = sum(max(a.bytes, b.bytes) for a, b in zip(options[::2], options[1::2], strict=True))
    assert select_members(options, labels, smallest - 1, None, trials=0, seed=0) is None
    gaps = []
    for budget in (smallest, (smallest + largest) // 2, largest):
        selection = select_members(options, labels, budget, None, trials=0, seed=0)
        assert selection.bytes <= budget
        assert len(selection.options) == 9
        gaps.append(selection.gap)
    assert gaps == sorted(gaps)


@pytest.mark.parametrize("seed", range(3))
def test_the_spread_is_that_of_resampled_videos(seed):
    (one, other), labels = problem(seed, 2)
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(400):
        rows = torch.from_numpy(np.sort(rng.integers(0, VIDEOS, VIDEOS)))
        differences.append(gap(one.probabilities[rows], labels[rows]) - gap(other.probabilities[rows], labels[rows]))
    found = bootstrap_spread(one.probabilities, other.probabilities, labels, seed)
    assert found == pytest.approx(np.std(differences), rel=0.25)
    assert bootstrap_spread(one.probabilities, one.probabilities, labels, seed) == 0


def test_a_mixture_is_selected_only_if_chance_does_not_explain_its_gain():
    options, labels = problem(1, 4)
    best = max(options, key=lambda option: gap(option.probabilities, labels))
    mixture = select(options, labels, 10**9, trials=100, seed=0)
    assert len(mixture.options) > 1
    kept = prefer_simple(mixture, options, labels, 10**9, seed=0)
    assert isinstance(kept.evidence, Evidence)
    assert kept.evidence.gain == pytest.approx(mixture.gap - gap(best.probabilities, labels))
    assert (kept.options == mixture.options) == (kept.evidence.gain > 2 * kept.evidence.spread)
    # A copy of the best member with a little noise makes mixtures that are better by chance alone.
    noise = torch.from_numpy(np.random.default_rng(0).normal(0, 0.01, labels.shape)).float()
    twins = [best, Option("twin", "e", best.bytes, best.probabilities + noise)]
    chance = weighted(twins, labels)
    alone = prefer_simple(chance, twins, labels, 10**9, seed=0)
    assert [option.member for option in alone.options] == [
        max(twins, key=lambda o: gap(o.probabilities, labels)).member
    ]
    assert not alone.evidence.sufficient
    # Members that err on different videos are better together beyond doubt.
    half = torch.arange(VIDEOS)[:, None] < VIDEOS // 2
    sure, unsure = torch.where(labels, 0.9, 0.1), torch.full(labels.shape, 0.2)
    parts = [Option("a", "e", 1, torch.where(half, sure, unsure)), Option("b", "e", 1, torch.where(half, unsure, sure))]
    together = prefer_simple(weighted(parts, labels), parts, labels, 10**9, seed=0)
    assert len(together.options) == 2
    assert together.evidence.sufficient
