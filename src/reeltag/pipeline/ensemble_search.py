"""An ensemble under a byte budget: members, encodings and weights chosen on hold-out data (paper section 4.3).

Greedy forward selection with replacement (Caruana et al. 2004), every subset where they are few, and the paper's random
search of weights. What is chosen never exceeds the budget.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import combinations, product
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

from reeltag.inference.metrics.gap import TOP_K, gap

ROUNDS = 30  # picks of a greedy selection; a member that is picked twice weighs twice
EXACT = 300  # subsets up to which all of them are tried
ROUNDING = 1e-4  # more than what mixing in float32 can change of a score


@dataclass(frozen=True)
class Option:
    """A member in one encoding, which may join.

    Attributes:
        member: its name; an ensemble takes a member in one encoding only.
        encoding: how its large tensors are stored.
        bytes: what it adds to the file.
        probabilities: [N, C] on the hold-out.
    """

    member: str
    encoding: str
    bytes: int
    probabilities: Tensor


@dataclass(frozen=True)
class Selection:
    """Options and their weights.

    Attributes:
        options: what was chosen, in the order in which it was offered.
        weights: of each, summing to 1.
        gap: of their weighted mean, on the videos that it was chosen on.
        random_weights: the best weights of random search for these options.
    """

    options: tuple[Option, ...]
    weights: tuple[float, ...]
    gap: float
    random_weights: tuple[float, ...] = ()

    @property
    def bytes(self) -> int:
        """What the members take together."""
        return sum(option.bytes for option in self.options)


def contenders(probabilities: Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Leave out what no weights can bring among a video's 20 highest; the GAP of every weighted mean stays the same.

    A mean is at least the lowest of what its members say and at most the highest. Of thousands of classes some
    hundred are left, and a search takes that much less time and memory.

    Args:
        probabilities: [N, C] of each member; the weights are not negative and sum to 1.
        labels: [N, C] bool.

    Returns:
        [N, K] of each member, a video's own classes in their order, and [N, K] bool. Labels that are left out have
        places of their own at the end, where everyone says -1: GAP counts them as missed.
    """
    classes = labels.shape[1]
    lowest, highest = reduce(torch.minimum, probabilities), reduce(torch.maximum, probabilities)
    reached = lowest.topk(min(TOP_K, classes), dim=1).values[:, -1:] * (1 - ROUNDING)
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
    """The best ensemble that fits: greedy picks, and every subset with equal weights where they are few.

    The winner's weights are then also searched at random. Of equal ones, the smaller, then the first wins.

    Args:
        options: members in their encodings.
        labels: [N, C] bool of the hold-out.
        budget: most bytes of the members together.
        trials: random weightings of the winner.
        seed: of the draws.

    Returns:
        The selection, or None where not even one option fits.
    """
    best = _best(options, labels, budget, {})
    if not best.options:
        return None
    weights, score = random_search([option.probabilities for option in best.options], labels, trials=trials, seed=seed)
    best = replace(best, random_weights=tuple(weights))
    return replace(best, weights=best.random_weights, gap=score) if score > best.gap else best


def _best(options: Sequence[Option], labels: Tensor, budget: int, known: dict[tuple[int, ...], float]) -> Selection:
    """The best of both greedy ways and of the subsets, without the random search."""
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
    """Pick again and again what helps the mean most among what still fits; ends with the best of the way.

    Args:
        options: members in their encodings.
        labels: [N, C] bool.
        budget: most bytes.
        by_bytes: prefer a new member's gain a byte, so that a large one must be worth its room; picking one again
            takes no bytes, so any gain by that comes first.
        known: GAP of what was picked before, which searches of the same options at other budgets share.
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
    """Options that may be picked next, and what each adds in bytes: none where it was picked before."""
    left = budget - sum(options[index].bytes for index in set(picks))
    picked = {options[index].member: index for index in picks}
    for index, option in enumerate(options):
        if picked.get(option.member) == index:
            yield index, 0
        elif option.member not in picked and option.bytes <= left:
            yield index, option.bytes


def weighted(options: Sequence[Option], labels: Tensor, weights: Sequence[float] | None = None) -> Selection:
    """The weighted mean of some options, by default with equal weights."""
    weights = weights or [1 / max(len(options), 1)] * len(options)
    found = ensemble_gap([option.probabilities for option in options], labels, weights) if options else 0.0
    return Selection(tuple(options), tuple(weights), found)


def _subsets(options: Sequence[Option], budget: int) -> Iterator[list[Option]]:
    """Every subset that fits, with one encoding a member; none where there are too many to try."""
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
    """The best ensembles at rising budgets, from the smallest option alone to all members."""
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


def best_combination(probabilities: Sequence[Tensor], labels: Tensor, count: int) -> tuple[list[int], float]:
    """The `count` models whose equal-weight mean has the highest GAP (paper section 4.1).

    Every combination where they are few, otherwise greedily, the best single model first.

    Args:
        probabilities: [N, C] of each model.
        labels: [N, C] bool.
        count: how many; all where there are fewer models.

    Returns:
        Their positions, ascending, and the GAP of their mean.
    """
    models = range(len(probabilities))
    count = min(count, len(models))

    def score(chosen: Sequence[int]) -> float:
        return gap(torch.stack([probabilities[index] for index in chosen]).mean(0), labels)

    best: tuple[int, ...] = ()
    if math.comb(len(models), count) <= EXACT:
        best = max(combinations(models, count), key=score)
    while len(best) < count:
        best = max(((*best, index) for index in models if index not in best), key=score)
    return sorted(best), score(best)


def random_search(
    probabilities: Sequence[Tensor], labels: Tensor, *, trials: int, seed: int
) -> tuple[list[float], float]:
    """The best of `trials` random weightings and of the equal weights, by GAP.

    Args:
        probabilities: [N, C] of each of M members on the same N hold-out videos.
        labels: [N, C] bool.
        trials: weightings to draw, uniformly from all that sum to 1.
        seed: of the draws.

    Returns:
        M weights that sum to 1, and their GAP@20 on these videos.
    """
    members = len(probabilities)
    drawn = np.random.default_rng(seed).dirichlet(np.ones(members), trials if members > 1 else 0)
    candidates = [[1 / members] * members, *drawn.tolist()]
    gaps = [ensemble_gap(probabilities, labels, weights) for weights in candidates]
    best = int(np.argmax(gaps))  # the first of equals, so that equal weights win a tie
    return candidates[best], gaps[best]


def ensemble_gap(probabilities: Sequence[Tensor], labels: Tensor, weights: Sequence[float]) -> float:
    """GAP@20 of a weighted mean."""
    mixed = torch.zeros(labels.shape)
    for weight, each in zip(weights, probabilities, strict=True):
        mixed.add_(each, alpha=weight)  # one after the other: a stack of all would be as large again
    return gap(mixed, labels)
