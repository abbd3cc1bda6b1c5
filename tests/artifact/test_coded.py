"""Coded weights: what errors cost at a step, tensors of every kind, and the step for an allowed loss."""

import numpy as np
import pytest
import torch

from reeltag.artifact.quantization.calibration import Calibration, Moments
from reeltag.artifact.quantization.coded import COARSEST, FINEST, Encoder, coarsest_step
from reeltag.artifact.quantization.encodings import CodedTensor, HalfTensor
from reeltag.artifact.quantization.quantize import quantize_uniform

ROWS, D, H = 4000, 40, 30


def correlated(width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, width, generator=generator) @ torch.randn(width, width, generator=generator)


def statistics(name="w", *, outputs_first=False):
    """Return the calibration of a weight whose inputs and gradients are independent, with both samples."""
    found, x_ND, g_NH = Calibration(videos=ROWS), correlated(D, 1), correlated(H, 2)
    found.inputs[name], found.outputs[name] = Moments(), Moments()
    found.inputs[name].add(x_ND)
    found.outputs[name].add(g_NH)
    found.squares[name] = (x_ND.square().sum(1) * g_NH.square().sum(1)).sum()
    found.outputs_first |= {name} if outputs_first else set()
    return found, x_ND, g_NH


def weight():
    return torch.randn(D, H, generator=torch.Generator().manual_seed(3)) / 10


def cost(delta, x_ND, g_NH):
    """Return half the mean square of x Δ g over pairs of an input and a gradient."""
    return float(((x_ND @ delta) @ g_NH.T).square().mean() / 2)


@pytest.mark.parametrize("step", [0.1, 0.5])
def test_every_weight_costs_a_24th_of_the_squared_step(step):
    found, x_ND, g_NH = statistics()
    coded = Encoder({"w": weight()}, found).encode(step)["w"]
    assert isinstance(coded, CodedTensor) and coded.consistent()
    assert int(coded.codes.abs().max()) > 1
    per_weight = cost(weight() - coded.dequantize(), x_ND[:500], g_NH[:500]) / (D * H)
    assert 0.4 < per_weight / (step**2 / 24) < 1.3  # the damping makes it smaller


def test_rounding_without_feedback_costs_more():
    found, x_ND, g_NH = statistics()
    coded = Encoder({"w": weight()}, found).encode(0.5)["w"]
    plain = (weight() / coded.steps).round() * coded.steps
    assert cost(weight() - coded.dequantize(), x_ND, g_NH) < 0.3 * cost(weight() - plain, x_ND, g_NH)


def test_a_weight_whose_outputs_come_first_is_coded_as_its_transpose():
    one = Encoder({"w": weight()}, statistics()[0]).encode(0.3)["w"]
    other = Encoder({"w": weight().T.contiguous()}, statistics(outputs_first=True)[0]).encode(0.3)["w"]
    assert other.steps.shape == (H, 1) and other.consistent()
    assert torch.equal(other.codes.T, one.codes) and torch.equal(other.steps.T, one.steps)


def test_codes_reach_all_weights_at_any_step():
    coded = Encoder({"w": weight()}, statistics()[0]).encode(1e-9)["w"]
    assert float((coded.dequantize() - weight()).abs().max()) < 0.02 * float(weight().abs().max())


def test_outputs_that_do_not_matter_take_no_bits():
    found, _, g_NH = statistics()
    found.outputs["w"] = Moments()
    found.outputs["w"].add(torch.zeros_like(g_NH))
    found.squares["w"] = torch.tensor(0.0)
    coded = Encoder({"w": weight()}, found).encode(1e-3)["w"]
    assert not bool(coded.codes.any()) and bool(torch.isfinite(coded.steps).all())


@pytest.mark.parametrize("shape", [(50, 20), (900,), (5, 6, 20)])
def test_a_tensor_in_no_product_has_the_nearest_codes(shape):
    """Its mean squared gradients decide the steps: where they are larger, steps are smaller."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    columns = torch.linspace(1, 100, shape[-1] if len(shape) > 1 else 1)
    found = Calibration(columns={"c": columns * 30}, squares={"c": columns.sum() * 30}, videos=30)
    coded = Encoder({"c": value}, found).encode(0.1)["c"]
    assert isinstance(coded, CodedTensor) and coded.consistent()
    error = (coded.dequantize() - value).abs()
    assert bool((error <= coded.steps / 2 * 1.001).all())
    assert bool((coded.steps.flatten().diff() <= 0).all())


def test_other_tensors_are_halved_where_that_only_rounds():
    state = {"bias": torch.tensor([0.0, 0.1, -3.0]), "mixed": torch.tensor([1.0, 1e-6]), "counter": torch.tensor(3)}
    state |= {"tiny": torch.tensor([1e-6, 3.1e-6]), "huge": torch.tensor([1e6, 1.0])}
    coded = Encoder(state, Calibration(videos=1)).encode(1e-3)
    assert isinstance(coded["bias"], HalfTensor) and isinstance(coded["mixed"], HalfTensor)
    assert coded["tiny"] is state["tiny"] and coded["huge"] is state["huge"] and coded["counter"] is state["counter"]


def test_weights_that_are_quantized_stay_as_they_are():
    before = quantize_uniform(weight())
    assert Encoder({"w": before}, statistics()[0]).encode(1e-3)["w"] is before


class NoisyLoss:
    def __init__(self, best, seed):
        self.best, self.rng, self.seen = best, np.random.default_rng(seed), {}

    def __call__(self, step):
        self.seen[step] = 5e-4 * (step / self.best) ** 2 + self.rng.normal(0, 1e-3)
        return self.seen[step]


@pytest.mark.parametrize("best", [1e-4, 3e-4, 9e-4])
def test_the_step_of_an_allowed_loss_is_found_through_noise(best):
    """The loss is that of the square law, with noise of twice the allowed loss."""
    found = []
    for seed in range(20):
        loss = NoisyLoss(best, seed)
        step = coarsest_step(loss, 5e-4)
        assert loss.seen[step] <= 5e-4 and list(loss.seen)[-1] == step
        found.append(step)
    assert 0.5 < np.median(found) / best < 1.3


def test_the_step_is_exact_without_noise():
    step = coarsest_step(lambda step: 0.3 * step**2 / 1e-6, 5e-4)
    assert step == pytest.approx((5e-4 * 1e-6 / 0.3) ** 0.5, rel=1e-3) and 0.3 * step**2 / 1e-6 <= 5e-4


def test_a_model_that_loses_nothing_takes_the_coarsest_step():
    assert coarsest_step(lambda step: 0.0, 5e-4) == COARSEST


def test_where_no_step_is_allowed_the_finest_is_taken():
    assert coarsest_step(lambda step: 0.1, 5e-4) == FINEST
    assert coarsest_step(lambda step: 0.001, 5e-4) == FINEST
    assert coarsest_step(lambda step: 0.001, 0.0) == FINEST
