"""Shapes of tensors computed from configurations, compared with those of the modules."""

import subprocess
import sys
from collections import Counter

import pytest
from torch import Tensor

from reeltag.artifact.file import save_artifact, stored_bytes
from reeltag.artifact.quantization.quantize import quantized_bytes
from reeltag.artifact.quantization.sizes import ENCODINGS, least_bytes, tagger_bytes
from reeltag.models.families import FAMILIES
from reeltag.models.shapes import pooling_shapes, tagger_shapes
from small_models import CLASSES, FORMS, WIDTHS, battery, small_artifact, small_tagger, with_options


def check(tagger):
    shapes = tagger_shapes(tagger.config, WIDTHS, CLASSES)
    state: dict[str, Tensor] = tagger.state_dict()
    parameters = dict(tagger.named_parameters())
    others = [value for name, value in state.items() if name not in parameters]
    assert Counter(shapes.parameters) == Counter(tuple(each.shape) for each in parameters.values())
    statistics = [tuple(each.shape) for each in others if each.is_floating_point()]
    assert Counter(shapes.statistics) == Counter(statistics)
    assert shapes.counters == len(others) - len(statistics)
    return shapes, state


@battery
def test_shapes_are_those_of_the_modules(family, form, everything_is_large):
    shapes, state = check(small_tagger(family, form))
    for encoding in ENCODINGS:
        assert tagger_bytes(shapes, encoding) == quantized_bytes(state, encoding)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("encoding", ["float16", "uniform-8", "coded"])
def test_the_tensors_of_a_file_take_between_the_least_and_the_most_bytes(
    family, encoding, tmp_path, everything_is_large
):
    artifact = small_artifact(family, FORMS.get(family, [{}])[0], encoding, hidden=60)
    save_artifact(tmp_path / "m.reeltag", artifact)
    shapes = tagger_shapes(artifact.members[0].config, WIDTHS, CLASSES)
    least = least_bytes((*shapes.parameters, *shapes.statistics), encoding)
    assert least <= stored_bytes(tmp_path / "m.reeltag")["m"] <= tagger_bytes(shapes, encoding)


@pytest.mark.parametrize("family", FAMILIES)
@with_options
def test_shapes_follow_every_option(family, options):
    check(small_tagger(family, {}, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_without_a_rule_takes_the_shapes_of_its_pooling(family):
    config = small_tagger(family, {}).config
    default, rule = pooling_shapes.dispatch(object)(config, WIDTHS), pooling_shapes(config, WIDTHS)
    assert default.outputs == rule.outputs
    assert Counter(default.tensors.parameters) == Counter(rule.tensors.parameters)
    assert Counter(default.tensors.statistics) == Counter(rule.tensors.statistics)
    assert default.tensors.counters == rule.tensors.counters


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_need_no_torch(family):
    code = f"""
import sys
from reeltag.models.families import parse_config
from reeltag.models.shapes import tagger_shapes
tagger_shapes(parse_config({{"family": {family!r}}}), (32, 8), 30)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
