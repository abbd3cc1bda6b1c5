"""Calibration: moments against sums over single videos, with gradients by autograd."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from reeltag.artifact.quantization import calibration
from reeltag.artifact.quantization.calibration import Moments, calibrate
from reeltag.artifact.quantization.quantize import is_large
from reeltag.core.errors import UsageError
from reeltag.data.loader import Batch
from reeltag.models.unrolled import UnrolledLayer
from small_models import ALL, FORMS, WIDTHS, small_tagger, stirred

FAMILIES = sorted(FORMS)
FRAMES, SEED = 6, 3


def built(family, form=None, **options):
    return stirred(small_tagger(family, FORMS.get(family, [{}])[0] if form is None else form, **options))


def videos(count, frames=FRAMES, seed=0):
    """Batches of at most three videos of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    for begin in range(0, count, 3):
        size = min(3, count - begin)
        lengths = torch.randint(1, frames + 1, (size,), generator=generator)
        x = torch.randint(0, 256, (size, frames, sum(WIDTHS)), generator=generator, dtype=torch.uint8)
        mask = torch.arange(frames) < lengths[:, None]
        yield Batch(("",) * size, x * mask[..., None], lengths, None)


def one_by_one(tagger, batches, seed):
    """Yield probabilities and sampled labels of each video alone, as a calibration samples them for its batches."""
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        labels = torch.bernoulli(tagger(batch.frames, batch.lengths).detach(), generator=generator)
        for row, length in enumerate(batch.lengths.tolist()):
            yield tagger(batch.frames[row : row + 1, :length], batch.lengths[row : row + 1]), labels[row : row + 1]


def gradients(tagger, batches):
    """Return the gradients of each video's log-likelihood by name of the parameter, [N, ...]."""
    names, parameters = zip(*tagger.named_parameters(), strict=True)
    found = [
        torch.autograd.grad(F.binary_cross_entropy(probabilities, labels, reduction="sum"), parameters)
        for probabilities, labels in one_by_one(tagger, batches, SEED)
    ]
    return dict(zip(names, map(torch.stack, zip(*found, strict=True)), strict=True))


@pytest.fixture(autouse=True)
def _everything_is_large(everything_is_large):
    """Small weights are calibrated too."""


def close(ours, expected):
    expected = expected.detach()
    torch.testing.assert_close(ours.detach(), expected, rtol=2e-3, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_moments_of_a_head(family):
    """The gradient at a head's output is that of its bias; its input is what it is called with."""
    tagger, inputs = built(family, head={"kind": "logistic"}), []
    g_NC = gradients(tagger, videos(7))["head.bias"]
    tagger.head.register_forward_hook(lambda _module, args, _result: inputs.append(args[0].detach()))
    for batch in videos(7):
        tagger(batch.frames, batch.lengths)
    x_ND = torch.cat(inputs)
    found = calibrate(built(family, head={"kind": "logistic"}), videos(7), SEED)
    (g_CC,), (a_DD,) = found.outputs["head.weight"].per_row(), found.inputs["head.weight"].per(found.videos)
    close(g_CC, g_NC.T @ g_NC / 7)
    close(a_DD, x_ND.T @ x_ND / 7)


@pytest.mark.parametrize(("family", "form"), ALL, ids=str)
def test_squared_gradients_of_every_parameter(family, form):
    tagger = built(family, form)
    found = calibrate(built(family, form), videos(5), SEED)
    assert found.videos == 5
    for name, expected in gradients(tagger, videos(5)).items():
        batches = [expected[begin : begin + 3].sum(0).square().sum() for begin in (0, 3)]
        close(found.squares[name], sum(batches))


@pytest.mark.parametrize(("family", "form"), ALL, ids=str)
def test_every_large_weight_is_in_a_product_or_has_squares_by_column(family, form):
    tagger = built(family, form)
    found = calibrate(built(family, form), videos(5), SEED)
    for name, parameter in tagger.named_parameters():
        if not is_large(parameter):
            assert name not in found.inputs and name not in found.columns
            continue
        if name not in found.inputs:
            assert found.columns[name].numel() == (parameter.shape[-1] if parameter.ndim > 1 else 1)
            close(found.columns[name].sum(), found.squares[name])
            continue
        sides = [sum(len(block) for block in each[name].sums.values()) for each in (found.inputs, found.outputs)]
        assert tuple(sides[::-1] if name in found.outputs_first else sides) == parameter.shape


@pytest.mark.parametrize("cell", ["lstm", "gru-torch", "gru"])
@pytest.mark.parametrize("paths", ["joint", "dual"])
def test_unrolled_layers_compute_the_same(cell, paths):
    form = {"cell": cell, "paths": paths, "cells": 16}
    tagger, unrolled = built("rnn", form), built("rnn", form)
    calibrate(unrolled, videos(1), SEED)
    assert any(isinstance(module, UnrolledLayer) for module in unrolled.modules())
    for batch in videos(6, frames=9):
        close(unrolled(batch.frames, batch.lengths), tagger(batch.frames, batch.lengths))


def test_frames_of_an_input_norm_are_seen_as_they_are():
    """The first product's inputs are the normalised frames with their scale and shift, real frames only."""
    tagger, rows = built("netvlad", input_norm=True), []
    tagger.input_norm.register_forward_hook(lambda _module, _args, frames: rows.append(frames.x.flatten(0, 1)))
    for batch in videos(5):
        for row, length in enumerate(batch.lengths.tolist()):
            tagger(batch.frames[row : row + 1, :length], batch.lengths[row : row + 1])
    x_ND = torch.cat(rows)[:, : WIDTHS[0]]
    found = calibrate(built("netvlad", input_norm=True), videos(5), SEED)
    (a_DD,) = found.inputs["pooling.parts.0.assign.weight"].per(5)
    close(a_DD, x_ND.T @ x_ND / 5)


def test_moments_of_many_units_have_blocks(monkeypatch):
    monkeypatch.setattr(calibration, "FULL", 5)
    monkeypatch.setattr(calibration, "BLOCK", 3)
    x_ND, found = torch.randn(10, 7), Moments()
    for rows in x_ND.split(4):
        found.add(rows)
    ends = [0, 3, 6, 7]
    for block, (begin, end) in zip(found.per_row(), pairwise(ends), strict=True):
        part = x_ND[:, begin:end]
        torch.testing.assert_close(block, part.T @ part / 10)


def test_no_videos_are_refused():
    with pytest.raises(UsageError, match="no videos to calibrate with"):
        calibrate(built("mean"), [], SEED)


def test_numbers_that_are_not_finite_are_refused():
    tagger = built("mean")
    with torch.no_grad():
        tagger.head.bias[0] = torch.nan
    with pytest.raises(UsageError, match="not finite"):
        calibrate(tagger, videos(2), SEED)
