"""Loss and weight average: the authors' numbers."""

import numpy as np
import pytest
import torch

from conftest import golden
from reeltag.artifact.file import mean_weights
from reeltag.training.losses import cross_entropy, distillation_targets
from reeltag.training.weight_averaging import WeightAverage


def test_cross_entropy_and_its_gradient_are_the_authors():
    arrays = golden("losses")
    predictions = torch.from_numpy(arrays["predictions"]).requires_grad_()
    loss = cross_entropy(predictions, torch.from_numpy(arrays["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(float(arrays["ce"]), rel=1e-5)
    np.testing.assert_allclose(predictions.grad.numpy(), arrays["ce_grad"], rtol=1e-5)


@pytest.mark.parametrize("teacher_share", ["0", "0.25", "0.5", "1"])
def test_soft_targets_mix_as_in_the_authors_distillation(teacher_share):
    arrays = golden("losses")
    predictions, labels, teacher = (torch.from_numpy(arrays[k]) for k in ("predictions", "labels", "teacher"))
    predictions.requires_grad_()
    mixed = cross_entropy(predictions, distillation_targets(labels, teacher, 1 - float(teacher_share)))
    mixed.backward()
    assert mixed.item() == pytest.approx(float(arrays[f"mixed_{teacher_share}"]), rel=1e-5)
    np.testing.assert_allclose(predictions.grad.numpy(), arrays[f"mixed_{teacher_share}_grad"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("time_constant", [2, 10, 2000, 3000])
def test_the_average_follows_the_authors_shadow(time_constant):
    arrays = golden("ema")
    trajectory = torch.from_numpy(arrays["trajectory"])
    average = WeightAverage({"w": trajectory[0]}, time_constant)
    for step, expected in enumerate(arrays[f"shadow_halflife_{time_constant}"]):
        if step:
            average.update({"w": trajectory[step]})
        np.testing.assert_allclose(average.shadow["w"].numpy(), expected, atol=1e-6)


def test_the_mean_of_checkpoints_is_that_of_each_tensor():
    states = [{"w": torch.randn(4, 3), "norm.running_var": torch.rand(3)} for _ in range(5)]
    for name, mean in mean_weights(states).items():
        expected = np.mean([state[name].numpy().astype(np.float64) for state in states], 0)
        np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-6)
        assert mean.dtype == torch.float32
