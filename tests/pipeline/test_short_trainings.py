"""Advice for trainings that are too short for batch norm."""

import pytest

from reeltag.models.families import parse_config
from reeltag.pipeline.stages.training import short_for_batch_norm
from reeltag.training.schedule import FORGOTTEN


@pytest.mark.parametrize("decay", [0.999, 0.99, 0.95, 0.9, 0.5])
@pytest.mark.parametrize("steps", [1, 20, 40, 200, 400, 2000, 5000])
def test_the_advice_is_never_the_value_that_is_set_and_always_enough(decay, steps):
    config = parse_config({"family": "netvlad", "bn_decay": decay})
    remark = short_for_batch_norm(config, steps)
    assert bool(remark) == (decay**steps >= FORGOTTEN)
    if "such as to" in remark:
        advised = float(remark.rpartition(" ")[2])
        assert advised < decay
        assert advised**steps < FORGOTTEN
    elif remark:
        assert remark.endswith("train longer")
