"""Rounding with feedback: each rounded weight's error is compensated by the weights that are not rounded yet.

An error Δ of a weight [D, H] costs about tr(G·Δᵀ·A·Δ)/2 of log-likelihood, with the second moments A of its inputs and
G of the gradients at its outputs (K-FAC, Martens and Grosse 2015). GPTQ (Frantar et al. 2023) compensates across
inputs; here errors are compensated across outputs too, so the sum is that of rounding H·D weights one by one, in
row-major order, with the inverse A⁻¹ ⊗ G⁻¹.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.artifact.quantization.encodings import LARGEST_CODE

TILE = 128  # rows and columns that are rounded together, along diagonals; matrix products compensate the others

Floats = npt.NDArray[np.floating[Any]]


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with UᵀU = (M + damping·mean(diag M)·I)⁻¹, in float64; I for M = 0.

    Args:
        moments: M [N, N], symmetric and positive semidefinite.
        damping: relative to the mean of the diagonal; must be positive.
    """
    damped = moments.double().flip(0, 1)
    damped.diagonal().add_(damping * float(damped.diagonal().mean()) or 1.0)
    # M = QQᵀ with Q upper triangular, from the Cholesky factor of M in reversed order; then U = Q⁻¹.
    lower = torch.linalg.cholesky(damped)
    inverse: Tensor = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
    return inverse.flip(0, 1)


def round_with_feedback(weight: Tensor, inputs: Tensor, outputs: Tensor, steps: Tensor) -> Tensor:
    """Round a weight [D, H] to integer codes.

    Args:
        weight: in float32 or float64, in which the errors are computed too.
        inputs: upper triangular factor of A⁻¹ [D, D]; see `inverse_factor`.
        outputs: upper triangular factor of G⁻¹ [H, H].
        steps: [H], positive, the value of code 1 in each column.

    Returns:
        Codes [D, H], int8, from -127 to 127.
    """
    rest, u, v, step = (each.to(weight.dtype).numpy() for each in (weight.clone(), inputs, outputs, steps))
    codes = np.empty(rest.shape, np.int8)
    for rows in _tiles(len(rest)):
        errors = np.zeros_like(rest[rows])  # in units of the factors' diagonals
        for columns in _tiles(len(v)):
            pushed = errors[:, : columns.start] @ v[: columns.start, columns]
            tile = rest[rows, columns], u[rows, rows], v[columns, columns], step[columns], pushed
            codes[rows, columns], errors[:, columns] = _round_tile(*tile)
        rest[rows.stop :] -= u[rows, rows.stop :].T @ (errors @ v)
    return torch.from_numpy(codes)


def _tiles(length: int) -> Iterator[slice]:
    return (slice(begin, min(begin + TILE, length)) for begin in range(0, length, TILE))


def _round_tile(w: Floats, u: Floats, v: Floats, step: Floats, pushed: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Round a tile; weights on one diagonal (row + column = t) do not depend on each other.

    Arrays are skewed: entry (i, t) belongs to row i and column t - i, or to column i and row t - i.

    Args:
        w: [R, S] weights, with all errors of the rows above the tile compensated.
        u: [R, R] and `v` [S, S], upper triangular factors.
        v: see there.
        step: [S].
        pushed: [R, S], EV of the errors E in the columns left of the tile.

    Returns:
        Codes and errors, [R, S].
    """
    rows, columns = w.shape
    steps = rows + columns - 1
    by_column, by_row = _skew(w.T, rows), _skew(pushed, columns)
    u_diagonal, v_diagonal, u_right, v_right = u.diagonal(), v.diagonal(), _skew_upper(u), _skew_upper(v)
    codes, errors = np.zeros((columns, steps), w.dtype), np.zeros((columns, steps), w.dtype)
    for t in range(steps):
        j = slice(max(0, t - rows + 1), min(columns, t + 1))
        i = slice(t - j.stop + 1, t - j.start + 1)
        before, scale = by_row[i, t][::-1], u_diagonal[i][::-1]
        wanted = by_column[j, t] - scale * before
        code = np.clip(np.rint(wanted / step[j]), -LARGEST_CODE, LARGEST_CODE)
        error = (wanted - code * step[j]) / (scale * v_diagonal[j])
        codes[j, t], errors[j, t] = code, error
        by_row[i, t + 1 : t + columns] += error[::-1, None] * v_right[j][::-1]
        by_column[j, t + 1 : t + rows] -= (before + error * v_diagonal[j])[:, None] * u_right[i][::-1]
    return _unskew(codes, rows).T.astype(np.int8), _unskew(errors, rows).T


def _skew(matrix: Floats, room: int) -> Floats:
    """Shift row i to the right by i; behind it is room for one more row length."""
    rows, columns = matrix.shape
    skewed = np.zeros((rows, rows + columns + room), matrix.dtype)
    for i, row in enumerate(matrix):
        skewed[i, i : i + columns] = row
    return skewed


def _unskew(skewed: Floats, length: int) -> Floats:
    return np.stack([row[i : i + length] for i, row in enumerate(skewed)])


def _skew_upper(factor: Floats) -> Floats:
    """Return the entries right of the diagonal, [N, N - 1], each row from its diagonal on, padded with 0."""
    n = len(factor)
    right = np.zeros((n, n - 1), factor.dtype)
    for i in range(n - 1):
        right[i, : n - 1 - i] = factor[i, i + 1 :]
    return right
