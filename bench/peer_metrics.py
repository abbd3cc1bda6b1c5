"""The metrics as YouTube-8M's starter code computes them, for bench/metrics.py; written after its description.

Batch by batch: Hit@1 by the highest score; PERR video by video; each video's 20 highest, grouped by class, pushed one
by one on a heap for its class and on one for all. At the end every heap is shuffled, sorted and walked through in
Python.
"""

from __future__ import annotations

import heapq
import random
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from measure import serve, timed

TOP_K, BATCH = 20, 1024  # as its eval.py has them
Pairs = list[tuple[np.float32, np.bool_]]


def precision_at_equal_recall(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum over the videos of a batch."""
    total = 0.0
    for video in range(len(scores)):
        count = int(np.sum(labels[video]))
        best = np.argpartition(scores[video], -count)[-count:]
        total += sum(labels[video][place] for place in best if scores[video][place] > 0) / best.size
    return total


def highest_by_class(scores: np.ndarray, labels: np.ndarray) -> list[Pairs]:
    """Of each class, the score and truth of the videos that have it among their highest."""
    found: list[Pairs] = [[] for _ in range(scores.shape[1])]
    for video in range(len(scores)):
        for place in np.argpartition(scores[video], -TOP_K)[-TOP_K:]:
            found[place].append((scores[video][place], labels[video][place]))
    return found


def average_precision(heap: Pairs, positives: int) -> float:
    """Precision at each hit, shuffled first so that ties are in no order."""
    if not heap or not positives:
        return 0.0
    scores, hits = np.array(list(zip(*heap, strict=True)))
    random.seed(0)
    order = random.sample(range(len(scores)), len(scores))
    scores, hits = scores[order], hits[order]
    total = count = 0.0
    for rank, place in enumerate(sorted(range(len(scores)), key=lambda k: scores[k], reverse=True), 1):
        if hits[place] > 0:
            count += 1
            total += count / rank / positives
    return total


def evaluate(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """All four metrics."""
    videos, classes = scores.shape
    heaps: list[Pairs] = [[] for _ in range(classes)]
    pooled: Pairs = []
    positives = [0] * classes
    hits, perr = 0, 0.0
    for begin in range(0, videos, BATCH):
        part, truth = scores[begin : begin + BATCH], labels[begin : begin + BATCH]
        hits += truth[np.arange(len(part)), np.argmax(part, 1)].sum()
        perr += precision_at_equal_recall(part, truth)
        found = highest_by_class(part, truth)
        for number in range(classes):
            positives[number] += np.sum(truth[:, number])
            for pair in found[number]:
                heapq.heappush(heaps[number], pair)
        for pair in chain.from_iterable(found):
            heapq.heappush(pooled, pair)
    return {
        "gap": float(average_precision(pooled, sum(positives))),
        "hit_at_1": float(hits / videos),
        "perr": float(perr / videos),
        "map": float(np.mean([average_precision(*each) for each in zip(heaps, positives, strict=True)])),
    }


def main() -> None:
    """Answer each line: `scores` by the metrics, `pass` by the seconds they take."""
    folder = Path(sys.argv[1])
    scores, labels = np.load(folder / "scores.npy"), np.load(folder / "labels.npy")
    call = partial(evaluate, scores, labels)
    serve(
        f"YouTube-8M's starter code, NumPy {np.__version__}",
        lambda command: call() if command == "scores" else timed(call),
    )


if __name__ == "__main__":
    main()
