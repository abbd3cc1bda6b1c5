"""Rounding with feedback: against the same rounding one weight at a time, and against all codes of a tiny matrix."""

import itertools

import numpy as np
import pytest
import torch

from reeltag.artifact.quantization.encodings import LARGEST_CODE
from reeltag.artifact.quantization.feedback import TILE, inverse_factor, round_with_feedback


def moments(size, seed):
    """Second moments of correlated units."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * size, size, generator=generator) @ torch.randn(size, size, generator=generator)
    return x.T @ x / len(x)


def one_by_one(weight, u, v, steps):
    """Round in row-major order in float64; each error is pushed along its row of U ⊗ V."""
    rest, codes = weight.astype(np.float64), np.zeros(weight.shape)
    for i, j in np.ndindex(weight.shape):
        codes[i, j] = np.clip(np.rint(rest[i, j] / steps[j]), -LARGEST_CODE, LARGEST_CODE)
        error = (rest[i, j] - codes[i, j] * steps[j]) / (u[i, i] * v[j, j])
        rest -= error * np.outer(u[i], v[j])
    return codes


def cost(weight, codes, steps, inputs, outputs):
    """Return tr(G Δᵀ A Δ)."""
    delta = weight.double() - torch.as_tensor(codes).double() * steps.double()
    return float(torch.trace(outputs.double() @ delta.T @ inputs.double() @ delta))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (1, 40), (40, 1), (TILE + 3, 30), (20, TILE + 5)])
def test_tiles_round_as_one_weight_at_a_time(rows, columns):
    u, v = inverse_factor(moments(rows, 1), 0.1), inverse_factor(moments(columns, 2), 0.2)
    weight, steps = torch.randn(rows, columns, dtype=torch.float64), torch.rand(columns) + 0.5
    codes = round_with_feedback(weight, u, v, steps)
    assert codes.dtype == torch.int8
    np.testing.assert_array_equal(codes.numpy(), one_by_one(weight.numpy(), u.numpy(), v.numpy(), steps.numpy()))


def test_a_tiny_matrix_is_rounded_nearly_as_well_as_possible():
    """Of all codes within 2 of the weights, feedback finds one that costs at most some times the best."""
    ratios = []
    for seed in range(20):
        torch.manual_seed(seed)
        inputs, outputs, weight, steps = moments(3, seed), moments(2, seed + 100), torch.randn(3, 2), torch.ones(2)
        u, v = inverse_factor(inputs, 1e-6), inverse_factor(outputs, 1e-6)
        near = [range(int(w.floor()) - 1, int(w.floor()) + 3) for w in weight.flatten()]
        tried = torch.tensor(list(itertools.product(*near))).view(-1, 3, 2)
        delta = weight.double() - tried.double()
        costs = torch.einsum("nik,ij,njl,lk->n", delta, inputs.double(), delta, outputs.double())
        found = cost(weight, round_with_feedback(weight, u, v, steps), steps, inputs, outputs)
        ratios.append((found / float(costs.min()), cost(weight, weight.round(), steps, inputs, outputs) / found))
    to_best, plain = np.median(ratios, axis=0)
    assert to_best < 2.5
    assert plain > 1.5


def test_feedback_costs_less_than_rounding():
    inputs, outputs = moments(150, 1), moments(140, 2)
    weight, steps = torch.randn(150, 140), torch.ones(140)
    u, v = inverse_factor(inputs, 0.01), inverse_factor(outputs, 0.01)
    found = round_with_feedback(weight, u, v, steps)
    assert cost(weight, found, steps, inputs, outputs) < 0.5 * cost(weight, weight.round(), steps, inputs, outputs)


def test_codes_stay_in_their_range():
    codes = round_with_feedback(torch.full((3, 3), 1e4), torch.eye(3), torch.eye(3), torch.ones(3))
    assert bool((codes == LARGEST_CODE).all())


def test_the_factor_is_upper_triangular_and_inverts_the_damped_moments():
    matrix = moments(30, 3)
    u, damped = inverse_factor(matrix, 0.1), matrix.double() + 0.1 * matrix.diagonal().double().mean() * torch.eye(30)
    assert bool((u.tril(-1) == 0).all())
    torch.testing.assert_close(u.T @ u @ damped, torch.eye(30, dtype=torch.float64), atol=1e-9, rtol=0)


def test_units_without_input_can_be_inverted():
    assert torch.equal(inverse_factor(torch.zeros(4, 4), 0.1), torch.eye(4, dtype=torch.float64))
