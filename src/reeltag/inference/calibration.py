"""Fit a calibration, so that of the tags with probability p a share of p is right, on labelled videos.

Platt's map σ(scale · logit(p) + offset) is fitted by Newton's method, with one observation's weight on the identity. It
is kept only where it lowers the log loss of videos that it was not fitted on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from reeltag.artifact.tagging_rule import Calibration
from reeltag.data.shards import id_hash

Scope = Literal["shared", "per-class"]
FOLDS = 5
STEPS = 50  # of Newton's method at most; some ten are usual
PRIOR = 1.0  # weight of the identity
FLATTEST = 0.05  # least scale that is kept
EPSILON = 1e-7  # probabilities nearer to 0 or 1 count as this


def fit_calibration(
    probabilities: Tensor,
    labels: Tensor,
    ids: Sequence[str],
    scope: Scope,
    about: Mapping[str, Any],
    *,
    rated: Tensor | None = None,
) -> Calibration:
    """Fit the calibration of N labelled examples of C classes.

    Args:
        probabilities: [N, C] float32.
        labels: [N, C] bool.
        ids: of the videos; the segments of a video stay in one fold of the cross-validation.
        scope: `shared`: one map for all classes, which keeps the ranks of a video's classes; `per-class`: also one of
            its own for each class where it helps.
        about: where the examples are from; scope, their number and the log losses are added.
        rated: [N, C] bool, True for classes with a known label; all by default.

    Returns:
        The calibration; the identity where no map lowers the cross-validated log loss.
    """
    logits = torch.logit(probabilities, EPSILON)
    weights = torch.ones(()) if rated is None else rated.float()
    targets = labels.float()
    folds = torch.tensor([id_hash(name) % FOLDS for name in ids])
    before, shared, own = (torch.zeros(logits.shape[1], dtype=torch.float64) for _ in range(3))
    for fold in range(FOLDS):
        fitted, held = (
            (logits[chosen], targets[chosen], weights if rated is None else weights[chosen])
            for chosen in (folds != fold, folds == fold)
        )
        before += _losses(*held)
        one = _fit(*fitted, shared=True)
        shared += _losses(_mapped(held[0], one), *held[1:])
        if scope == "per-class":
            each = _fit(_mapped(fitted[0], one), *fitted[1:], shared=False)
            own += _losses(_mapped(_mapped(held[0], one), each), *held[1:])
    scale, offset = _fit(logits, targets, weights, shared=True)
    alone = shared
    if shared.sum() >= before.sum() or not scale[0] > FLATTEST:
        scale, offset, alone = torch.ones_like(before), torch.zeros_like(before), before
    after = alone.sum()
    if scope == "per-class":
        slopes, shifts = _fit(_mapped(logits, (scale, offset)), targets, weights, shared=False)
        helped = (own < alone) & (slopes > FLATTEST)
        after = torch.where(helped, own, alone).sum()
        scale, offset = (
            torch.where(helped, slopes * scale, scale),
            torch.where(helped, slopes * offset + shifts, offset),
        )
    known = {
        "scope": scope,
        "videos": len(ids),
        "log_loss_before": float(before.sum()) / len(ids),
        "log_loss_after": float(after) / len(ids),
        **about,
    }
    return Calibration(scale.float().numpy(), offset.float().numpy(), known)


def _mapped(logits: Tensor, line: tuple[Tensor, Tensor]) -> Tensor:
    scale, offset = line
    return logits * scale.float() + offset.float()


def _losses(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return the log loss of each class [C], summed over examples."""
    return ((softplus(logits) - targets * logits) * weights).sum(0, dtype=torch.float64)


def _fit(logits: Tensor, targets: Tensor, weights: Tensor, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Return scale and offset [C] of lowest log loss, the same for all classes if `shared`."""
    scale = torch.ones(logits.shape[1], dtype=torch.float64)
    offset = torch.zeros_like(scale)
    for _ in range(STEPS):
        mapped = torch.sigmoid(_mapped(logits, (scale, offset)))
        slope, curve = (mapped - targets) * weights, mapped * (1 - mapped) * weights
        terms = (slope * logits, slope, curve * logits * logits, curve * logits, curve)
        sums = [term.sum(0, dtype=torch.float64) for term in terms]
        if shared:
            sums = [each.sum().expand_as(scale) for each in sums]
        by_scale, by_offset = sums[0] + PRIOR * (scale - 1), sums[1] + PRIOR * offset
        twice_scale, mixed, twice_offset = sums[2] + PRIOR, sums[3], sums[4] + PRIOR
        determinant = twice_scale * twice_offset - mixed**2
        steps = torch.stack(
            [
                (twice_offset * by_scale - mixed * by_offset) / determinant,
                (twice_scale * by_offset - mixed * by_scale) / determinant,
            ]
        ).clamp(-1, 1)
        scale, offset = scale - steps[0], offset - steps[1]
        if steps.abs().max() < 1e-6:
            break
    return scale, offset
