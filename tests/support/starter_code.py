"""Segment metrics as the challenge's starter code computes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def as_the_starter_code_does(lines: Sequence[str], labels: dict[tuple[str, int], float], top: int) -> float:
    """Compute MAP of a submission as `segment_eval_inference.py` and its average precision calculator do."""
    aps = []
    for line in lines[1:]:
        label, _, listed = line.rstrip("\n").partition(",")
        positives = sum(score > 0 for (_, of), score in labels.items() if of == int(label))
        if not positives:  # here the starter code raises a KeyError
            continue
        names = [name for name in listed.split(" ")[:top] if (name, int(label)) in labels]
        confidences = [place / len(names) for place in range(len(names), 0, -1)]
        found = ap = 0.0
        for rank, place in enumerate(np.argsort(confidences)[::-1].tolist()):
            if labels[names[place], int(label)] > 0:
                found += 1
                ap += found / (rank + 1) * (1.0 / positives)
        aps.append(ap)
    return float(np.mean(aps))
