"""Search for an ensemble under a byte budget: members, encodings and weights, by hold-out GAP (paper section 4.3).

Greedy forward selection with replacement (Caruana et al. 2004), all subsets if they are few, and the paper's random
search of weights. The selection never exceeds the budget. A mixture of several members has to be better than the best
one by more than chance, by a paired bootstrap over the videos; otherwise the best one is selected alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations, product
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.inference.metrics.video_metrics import TOP_K, gap, top_k

ROUNDS = 30  # picks of a greedy selection; a member that is picked twice has twice the weight
EXACT = 300  # if there are at most so many subsets, all are tried
ROUNDING = 1e-4  # relative; more than the rounding error of a weighted mean in float32
RESAMPLES = 200  # bootstrap resamples of the videos
SPREADS = 2.0  # standard deviations of its gain by which a mixture has to be better than its best member


@dataclass(frozen=True)
class Option:
    """Candidate member in one encoding.

    Attributes:
        member: name of the member; an ensemble contains it in one encoding only.
        encoding: of its large tensors.
        bytes: that it adds to the file.
        probabilities: [N, C] on the hold-out.
    """

    member: str
    encoding: str
    bytes: int
    probabilities: Tensor


@dataclass(frozen=True)
class Evidence:
    """Comparison of the best mixture with the best single option that fits, on the videos used for the selection.

    Attributes:
        member: name of the single option's member.
        encoding: its encoding.
        members: number of the mixture's members.
        gain: GAP of the mixture minus that of the single option.
        spread: standard deviation of the gain over paired bootstrap resamples of the videos.
    """

    member: str
    encoding: str
    members: int
    gain: float
    spread: float

    @property
    def sufficient(self) -> bool:
        """True if the gain is more than chance explains, so that the mixture is selected."""
        return self.gain > SPREADS * self.spread


@dataclass(frozen=True)
class Selection:
    """Selected options and their weights.

    Attributes:
        options: the selected ones, in their original order.
        weights: of each; they sum to 1.
        gap: of the weighted mean, on the videos used for the selection.
        random_weights: best weights that the random search found for these options.
        evidence: comparison of the best mixture with the best single option, if that was made.
    """

    options: tuple[Option, ...]
    weights: tuple[float, ...]
    gap: float
    random_weights: tuple[float, ...] = ()
    evidence: Evidence | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all members together."""
        return sum(option.bytes for option in self.options)


def contenders(
    probabilities: Sequence[Tensor], labels: Tensor, *, stored_only: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Drop classes that cannot be among a video's 20 highest for any weights; the GAP of every weighted mean is kept.

    A weighted mean lies between the lowest and the highest probability of the members. Of thousands of classes some
    hundred remain, so a search takes a fraction of the time and memory.

    Args:
        probabilities: [N, C] of each member; the weights are not negative and sum to 1.
        labels: [N, C] bool.
        stored_only: also drop classes that have probability 0 in all members, because it was not stored.

    Returns:
        [N, K] of each member, with the remaining classes of each video in their order, and the labels [N, K] bool.
        Labels of dropped classes have extra columns at the end with probability -1, which GAP counts as missed.
    """
    classes = labels.shape[1]
    lowest, highest = reduce(torch.minimum, probabilities), reduce(torch.maximum, probabilities)
    reached = lowest.topk(min(TOP_K, classes), dim=1).values[:, -1:] * (1 - ROUNDING)
    if stored_only:
        reached = reached.clamp_min(torch.finfo(reached.dtype).tiny)
    count = int((highest >= reached).sum(1).max())
    kept = highest.topk(count, dim=1).indices.sort(dim=1).values
    found = labels.gather(1, kept)
    missed = labels.sum(1) - found.sum(1)
    places = torch.arange(int(missed.max())) < missed[:, None]
    if count + places.shape[1] >= classes:
        return list(probabilities), labels
    nothing = torch.full(places.shape, -1.0)
    return [torch.cat([each.gather(1, kept), nothing], 1) for each in probabilities], torch.cat([found, places], 1)


def select(options: Sequence[Option], labels: Tensor, budget: int, *, trials: int, seed: int) -> Selection | None:
    """Return the best ensemble that fits: by greedy selection, or a subset with equal weights if all can be tried.

    Random search then looks for better weights of the winner. Among equals the smaller wins, then the first.

    Args:
        options: members in their encodings.
        labels: [N, C] bool of the hold-out.
        budget: largest number of bytes of all members together.
        trials: number of random weightings of the winner.
        seed: of the random weightings.

    Returns:
        The selection, or None if no option fits.
    """
    best = _best(options, labels, budget, {})
    if not best.options:
        return None
    weights, score = random_search([option.probabilities for option in best.options], labels, trials=trials, seed=seed)
    best = replace(best, random_weights=tuple(weights))
    return replace(best, weights=best.random_weights, gap=score) if score > best.gap else best


def prefer_simple(selection: Selection, options: Sequence[Option], labels: Tensor, budget: int, seed: int) -> Selection:
    """Return the selection if it is better than the best single option by more than chance; else that option alone.

    Args:
        selection: the best ensemble.
        options: members in their encodings, of which at least one fits.
        labels: [N, C] bool.
        budget: largest number of bytes.
        seed: of the bootstrap resamples.
    """
    if len(selection.options) < 2:
        return selection
    fitting = [weighted([option], labels) for option in options if option.bytes <= budget]
    single = max(fitting, key=lambda each: (each.gap, -each.bytes))
    mixed = weighted_mean([option.probabilities for option in selection.options], labels, selection.weights)
    (best,) = single.options
    spread = bootstrap_spread(mixed, best.probabilities, labels, seed)
    gain = selection.gap - single.gap
    evidence = Evidence(best.member, best.encoding, len(selection.options), gain, spread)
    kept = selection if evidence.sufficient else replace(single, random_weights=(1.0,))
    return replace(kept, evidence=evidence)


def bootstrap_spread(one: Tensor, other: Tensor, labels: Tensor, seed: int) -> float:
    """Return the standard deviation of a difference in GAP over paired bootstrap resamples of the videos.

    Args:
        one: [N, C] probabilities.
        other: [N, C] probabilities of the same videos.
        labels: [N, C] bool.
        seed: of the resamples.
    """
    rng, videos = np.random.default_rng([seed, 0xB007]), len(labels)
    positives = labels.sum(1).numpy().astype(np.float64)
    ranked = [_ranked_hits(probabilities, labels) for probabilities in (one, other)]
    differences = []
    for _ in range(RESAMPLES):
        copies = np.bincount(rng.integers(0, videos, videos), minlength=videos).astype(np.float64)
        mine, theirs = (_resampled_gap(hits, of, copies, positives) for hits, of in ranked)
        differences.append(mine - theirs)
    return float(np.std(differences))


def _ranked_hits(probabilities: Tensor, labels: Tensor) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return hits and videos of all videos' top classes, in descending order of score over all videos."""
    scores, classes = top_k(probabilities, TOP_K)
    order = np.argsort(-scores.numpy(), axis=None, kind="stable")
    return labels.gather(1, classes).numpy().ravel()[order], order // scores.shape[1]


def _resampled_gap(
    hits: npt.NDArray[np.bool_],
    videos: npt.NDArray[np.int64],
    copies: npt.NDArray[np.float64],
    positives: npt.NDArray[np.float64],
) -> float:
    """Return GAP of a set in which each video occurs as often as `copies` says; equal copies follow each other."""
    counts = copies[videos]
    found, seen = np.cumsum(counts * hits), np.cumsum(counts)
    return float((counts * found / np.maximum(seen, 1))[hits].sum() / max(float(copies @ positives), 1.0))


def select_members(
    options: Sequence[Option],
    labels: Tensor,
    budget: int,
    weights: Mapping[str, float] | None,
    *,
    trials: int,
    seed: int,
) -> Selection | None:
    """Return the best encodings, and unless they are given the best weights, of an ensemble of all members.

    The encodings are chosen by the GAP of the given or of equal weights: by trying all combinations if they are few;
    otherwise the smallest are replaced, one at a time, by those that raise the GAP most.

    Args:
        options: members in their encodings.
        labels: [N, C] bool of the hold-out.
        budget: largest number of bytes of all members together.
        weights: by member; they sum to 1. By default the best of equal and random weights.
        trials: number of random weightings.
        seed: of the random weightings.

    Returns:
        The selection, or None if not all members fit together.
    """
    offered: dict[str, list[Option]] = {}
    for option in options:
        offered.setdefault(option.member, []).append(option)
    given = [weights[member] for member in offered] if weights else None

    def fits(chosen: Sequence[Option]) -> bool:
        return sum(option.bytes for option in chosen) <= budget

    best = [min(each, key=lambda option: option.bytes) for each in offered.values()]
    if not fits(best):
        return None
    if math.prod(map(len, offered.values())) <= EXACT:
        found = [weighted(chosen, labels, given) for chosen in product(*offered.values()) if fits(chosen)]
        selection = max(found, key=lambda each: (each.gap, -each.bytes))
    else:
        selection = weighted(best, labels, given)
        while True:
            changed = [
                [option if option.member == other.member else other for other in selection.options]
                for option in options
            ]
            found = [weighted(chosen, labels, given) for chosen in changed if fits(chosen)]
            better = max(found, key=lambda each: (each.gap, -each.bytes))
            if better.gap <= selection.gap:
                break
            selection = better
    if given:
        return replace(selection, random_weights=selection.weights)
    probabilities = [option.probabilities for option in selection.options]
    tried, score = random_search(probabilities, labels, trials=trials, seed=seed)
    return replace(selection, weights=tuple(tried), gap=score, random_weights=tuple(tried))


def _best(options: Sequence[Option], labels: Tensor, budget: int, known: dict[tuple[int, ...], float]) -> Selection:
    """Return the best of both greedy selections and of all subsets, before the random search."""
    found = [greedy(options, labels, budget, by_bytes=by_bytes, known=known) for by_bytes in (False, True)]
    found += [weighted(subset, labels) for subset in _subsets(options, budget)]
    return max(found, key=lambda selection: (selection.gap, -selection.bytes))


def greedy(
    options: Sequence[Option],
    labels: Tensor,
    budget: int,
    *,
    by_bytes: bool = False,
    known: dict[tuple[int, ...], float] | None = None,
) -> Selection:
    """Repeatedly pick the fitting option that raises the GAP of the mean most; return the best of all steps.

    Args:
        options: members in their encodings.
        labels: [N, C] bool.
        budget: largest number of bytes.
        by_bytes: rank new members by their gain for each byte. Picking a member again adds no bytes, so its gain is not
            divided.
        known: GAP of combinations that were evaluated before; searches of the same options share it.
    """
    known = {} if known is None else known
    picks: list[int] = []
    best, best_gap, current = picks, -1.0, 0.0
    total = torch.zeros(labels.shape)
    for _ in range(ROUNDS):
        moves = []
        for index, cost in _fitting(options, picks, budget):
            together = tuple(sorted((*picks, index)))
            if together not in known:
                known[together] = gap((total + options[index].probabilities) / len(together), labels)
            after = known[together]
            gain = after - current
            moves.append((gain / cost if by_bytes and cost and gain > 0 else gain, -cost, index, after))
        if not moves:
            break
        _, _, index, current = max(moves, key=itemgetter(0, 1))  # the first of equals
        picks = [*picks, index]
        total = total + options[index].probabilities
        if current > best_gap:
            best, best_gap = picks, current
    counts = Counter(best)
    chosen = [options[index] for index in sorted(counts)]
    return weighted(chosen, labels, [counts[index] / len(best) for index in sorted(counts)])


def _fitting(options: Sequence[Option], picks: Sequence[int], budget: int) -> Iterator[tuple[int, int]]:
    """Yield the index of each option that may be picked next, and the bytes that it adds; 0 if it was picked before."""
    left = budget - sum(options[index].bytes for index in set(picks))
    picked = {options[index].member: index for index in picks}
    for index, option in enumerate(options):
        if picked.get(option.member) == index:
            yield index, 0
        elif option.member not in picked and option.bytes <= left:
            yield index, option.bytes


def weighted(options: Sequence[Option], labels: Tensor, weights: Sequence[float] | None = None) -> Selection:
    """Evaluate the weighted mean of some options, by default with equal weights."""
    weights = weights or [1 / max(len(options), 1)] * len(options)
    found = ensemble_gap([option.probabilities for option in options], labels, weights) if options else 0.0
    return Selection(tuple(options), tuple(weights), found)


def _subsets(options: Sequence[Option], budget: int) -> Iterator[list[Option]]:
    """Yield every subset that fits, with one encoding for each member; nothing if there are too many subsets."""
    members: dict[str, list[Option | None]] = {}
    for option in options:
        members.setdefault(option.member, [None]).append(option)
    if math.prod(map(len, members.values())) > EXACT:
        return
    for chosen in product(*members.values()):
        subset = [option for option in chosen if option is not None]
        if subset and sum(option.bytes for option in subset) <= budget:
            yield subset


def frontier(options: Sequence[Option], labels: Tensor, points: int) -> list[Selection]:
    """Return the best ensembles at increasing budgets, from the smallest option alone to all members."""
    smallest = min(option.bytes for option in options)
    largest = sum(max(o.bytes for o in options if o.member == member) for member in {o.member for o in options})
    budgets = np.geomspace(smallest, max(largest, smallest), points).round().astype(int).tolist()
    found: list[Selection] = []
    known: dict[tuple[int, ...], float] = {}
    for budget in budgets:
        selection = _best(options, labels, budget, known)
        if not found or selection.gap > found[-1].gap:
            found.append(selection)
    return found


def rank_combinations(
    probabilities: Sequence[Tensor], labels: Tensor, count: int
) -> list[tuple[tuple[int, ...], float]]:
    """Rank the combinations of `count` models by the GAP of their equal-weight mean (paper section 4.1).

    If there are few combinations, all are ranked; otherwise models are added greedily, beginning with the best one, and
    those are ranked that differ in the model that was added last.

    Args:
        probabilities: [N, C] of each model.
        labels: [N, C] bool.
        count: number of models; all if there are fewer.

    Returns:
        The indices of the models of each combination, ascending, and the GAP of their mean; the best one first.
    """
    models = range(len(probabilities))
    count = min(count, len(models))

    def ranked(candidates: Iterable[tuple[int, ...]]) -> list[tuple[tuple[int, ...], float]]:
        scored = [
            (chosen, gap(torch.stack([probabilities[index] for index in chosen]).mean(0), labels))
            for chosen in candidates
        ]
        return sorted(scored, key=lambda each: -each[1])  # stable: the first of equals stays the first

    if math.comb(len(models), count) <= EXACT:
        return ranked(combinations(models, count))
    found: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(count):
        best = found[0][0]
        found = ranked(tuple(sorted((*best, index))) for index in models if index not in best)
    return found


def random_search(
    probabilities: Sequence[Tensor], labels: Tensor, *, trials: int, seed: int
) -> tuple[list[float], float]:
    """Return the best of `trials` random weightings and of equal weights, by GAP.

    Args:
        probabilities: [N, C] of each of M members on the same N hold-out videos.
        labels: [N, C] bool.
        trials: number of weightings, sampled uniformly from all that sum to 1.
        seed: of the sampling.

    Returns:
        M weights that sum to 1, and their GAP@20 on these videos.
    """
    members = len(probabilities)
    sampled = np.random.default_rng(seed).dirichlet(np.ones(members), trials if members > 1 else 0)
    candidates = [[1 / members] * members, *sampled.tolist()]
    gaps = [ensemble_gap(probabilities, labels, weights) for weights in candidates]
    best = int(np.argmax(gaps))  # the first of equals, so that equal weights win a tie
    return candidates[best], gaps[best]


def ensemble_gap(probabilities: Sequence[Tensor], labels: Tensor, weights: Sequence[float]) -> float:
    """Return GAP@20 of a weighted mean."""
    return gap(weighted_mean(probabilities, labels, weights), labels)


def weighted_mean(probabilities: Sequence[Tensor], labels: Tensor, weights: Sequence[float]) -> Tensor:
    """Return the weighted mean [N, C] of members' probabilities, for the videos of `labels`."""
    mixed = torch.zeros(labels.shape)
    for weight, each in zip(weights, probabilities, strict=True):
        mixed.add_(each, alpha=weight)  # one by one: stacking all would double the memory
    return mixed
