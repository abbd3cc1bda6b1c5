"""Products with large weights as convolutions, against NumPy in float64."""

import numpy as np
import pytest
import torch

from reeltag.models import products
from reeltag.models.layers import Hidden


@pytest.fixture(autouse=True)
def every_size_is_large(monkeypatch):
    monkeypatch.setattr(products, "LARGE", 0)


def factors(videos, inputs, outputs):
    torch.manual_seed(videos)
    return torch.randn(videos, inputs, requires_grad=True), torch.nn.Parameter(torch.randn(inputs, outputs))


@pytest.mark.parametrize(("videos", "inputs", "outputs"), [(1, 128, 1), (2, 256, 16), (7, 384, 45), (80, 640, 64)])
@pytest.mark.parametrize("contiguous", [True, False])
def test_value_and_gradients_are_those_of_the_product(videos, inputs, outputs, contiguous):
    x, weight = factors(videos, inputs, outputs)
    given = x if contiguous else x.T.contiguous().T
    y = products.product(given, weight)
    grad = torch.randn_like(y)
    y.backward(grad)
    x64, weight64, grad64 = (each.detach().numpy().astype(np.float64) for each in (x, weight, grad))
    for found, expected in [(y, x64 @ weight64), (x.grad, grad64 @ weight64.T), (weight.grad, x64.T @ grad64)]:
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-4)
        assert found.is_contiguous()  # what comes next passes over memory in this order


def test_the_same_factors_give_the_same_bytes():
    x, weight = factors(12, 512, 70)
    first, second = (torch.autograd.grad(products.product(x, weight).square().sum(), (x, weight)) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_the_hidden_layer_of_a_training_takes_it():
    layer = Hidden(128, 8, 0.1, "bias")
    assert type(products.product(torch.randn(3, 128), layer.weight).grad_fn).__name__ == "_ProductBackward"
    layer(torch.randn(3, 128)).sum().backward()
    assert layer.weight.grad.shape == (128, 8)


@pytest.mark.parametrize("case", ["tagging", "bfloat16", "float64", "indivisible", "frozen"])
def test_elsewhere_it_is_the_plain_product(case):
    x, weight = factors(3, 200 if case == "indivisible" else 128, 4)
    if case == "float64":
        x, weight = x.double(), torch.nn.Parameter(weight.double())
    weight.requires_grad_(case != "frozen")
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "bfloat16"), torch.set_grad_enabled(case != "tagging"):
        assert torch.equal(products.product(x, weight), x @ weight)
