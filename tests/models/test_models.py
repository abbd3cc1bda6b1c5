"""Tests that every registered family and form passes, and comparisons with slow, obvious implementations."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reeltag.artifact.file import Artifact, Member, load_artifact, save_artifact
from reeltag.data.loader import Batch, count_sampled_frames, sample_frames, select_frames
from reeltag.data.schema import Feature, Schema
from reeltag.inference.ensemble import Ensemble
from reeltag.inference.predictor import Predictor
from reeltag.models import tagger as tagger_module
from reeltag.models.families import FAMILIES
from reeltag.models.frames import Frames
from reeltag.models.layers import dequantize, l2_normalize
from reeltag.models.rnn import PublishedGRU, shuffle_frames
from reeltag.models.tagger import build_tagger, meta_tagger
from reeltag.training.losses import cross_entropy
from slow_models import POOLINGS, slow_tag
from small_models import ALL, CLASSES, FORMS, OPTIONS, WIDTHS, battery, small_tagger, stirred, videos, with_options

# --- slow models ----------------------------------------------------------------------------------


def ours_and_slow(tagger, schema, frames, lengths):
    """Return probabilities of the model on the padded batch, and of the slow implementation video by video."""
    config, state = tagger.config, tagger.state_dict()
    assert config.family in POOLINGS, (
        "add a slow implementation to tests/support/slow_models.py and list it in POOLINGS there"
    )
    artifact = Artifact(schema, None, (Member("m", config, 1.0, state),), {})
    ours = Predictor(artifact, artifact.members).predict(frames, lengths)
    cut = [row[: min(length, schema.max_frames)] for row, length in zip(frames, lengths, strict=True)]
    return ours, np.stack([slow_tag(config, WIDTHS, state, row) for row in cut])


@battery
def test_ragged_videos_equal_a_slow_implementation(family, form):
    schema = Schema(
        features=(Feature(name="a", width=12), Feature(name="b", width=4)), dtype="float32", classes=CLASSES
    )
    lengths = np.array([1, 300, 305, 7])
    frames = np.random.default_rng(3).standard_normal((4, 305, 16)).astype(np.float32)
    frames[3, 2:4] = 0  # frames of zeros are real frames
    frames[1, 0] = 0
    ours, slow = ours_and_slow(stirred(small_tagger(family, form)), schema, frames, lengths)
    np.testing.assert_allclose(ours, slow, atol=1e-5)
    assert slow.std(0).max() > 1e-3, "the videos have different probabilities"


@pytest.mark.parametrize("family", ["netvlad", "mean"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_equal_a_slow_implementation(family, options):
    schema = Schema(features=(Feature(name="a", width=12), Feature(name="b", width=4)), dtype="float32", classes=9)
    frames = np.random.default_rng(3).standard_normal((4, 9, 16)).astype(np.float32)
    tagger = stirred(small_tagger(family, FORMS.get(family, [{}])[0], **options))
    ours, slow = ours_and_slow(tagger, schema, frames, np.array([9, 1, 4, 2]))
    np.testing.assert_allclose(ours, slow, atol=1e-5)


def test_batch_norm_counts_only_real_frames():
    tagger = small_tagger("netvlad", {"clusters": 4}).train()
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    tagger(frames, lengths)
    real = torch.cat([frames[i, :n] for i, n in enumerate(lengths)])
    rows = l2_normalize(dequantize(real), 1)
    norm = tagger.input_norm.norm
    # Running statistics start at 0 and 1 and move by 1 − bn_decay.
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0))


def test_shuffling_permutes_only_real_frames():
    x = torch.arange(1.0, 61.0).view(2, 30, 1)
    mask = torch.arange(30) < torch.tensor([[30], [20]])
    torch.manual_seed(1)
    shuffled = shuffle_frames(x * mask[..., None], mask)
    for row, original, length in zip(shuffled, x, (30, 20), strict=True):
        assert not torch.equal(row[:length], original[:length])
        assert torch.equal(row[:length].sort(0).values, original[:length])
        assert (row[length:] == 0).all()


def test_a_shuffling_model_shuffles_only_in_training():
    tagger = small_tagger("rnn", {"cell": "gru", "cells": 8, "shuffle": True})
    frames, lengths, _ = videos(frames=20)
    assert torch.equal(tagger.eval()(frames, lengths), tagger(frames, lengths))
    assert not torch.equal(tagger.train()(frames, lengths), tagger(frames, lengths))


# --- the battery: every registered family in every form, with every option ---------------------------


@battery
@with_options
def test_probabilities_have_the_right_shape_and_range(family, form, options):
    frames, lengths, _ = videos()
    p = stirred(small_tagger(family, form, **options))(frames, lengths)
    assert p.shape == (6, CLASSES)
    assert p.dtype == torch.float32
    assert ((p >= 0) & (p <= 1)).all()


@battery
@with_options
def test_every_parameter_gets_a_gradient(family, form, options):
    tagger = small_tagger(family, form, **options).train()
    frames, lengths, labels = videos()
    (cross_entropy(tagger(frames, lengths), labels) + tagger.penalty()).backward()
    without = [name for name, p in tagger.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@battery
@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_videos_give_finite_numbers(family, form, value):
    frames, lengths, labels = videos()
    tagger = small_tagger(family, form).train()
    loss = cross_entropy(tagger(torch.full_like(frames, value), lengths), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in tagger.parameters())


@battery
@with_options
def test_padded_frames_do_not_change_probabilities(family, form, options):
    tagger = stirred(small_tagger(family, form, **options))
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    other = frames.clone()
    for row, length in zip(other, lengths, strict=True):
        row[length:] = 255 - row[length:]
    torch.testing.assert_close(tagger(frames, lengths), tagger(other, lengths), rtol=0, atol=0)


@battery
def test_padded_frames_do_not_change_gradients_or_statistics(family, form):
    results = []
    for fill in (0, 255):
        frames, _, labels = videos(frames=9)
        lengths = torch.tensor([9, 1, 4, 2, 7, 3])
        for row, length in zip(frames, lengths, strict=True):
            row[length:] = fill
        tagger = small_tagger(family, form).train()
        torch.manual_seed(0)
        cross_entropy(tagger(frames, lengths), labels).backward()
        results.append([p.grad for p in tagger.parameters()] + list(tagger.buffers()))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@battery
def test_a_video_alone_and_in_a_padded_batch_gets_the_same_probabilities(family, form):
    tagger = stirred(small_tagger(family, form))
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    together = tagger(frames, lengths)
    for row, length, expected in zip(frames, lengths, together, strict=True):
        alone = tagger(row[None, :length], length[None])[0]
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)


@battery
def test_chunks_do_not_change_probabilities(family, form, monkeypatch):
    tagger = stirred(small_tagger(family, form))
    frames, _, _ = videos(count=7, frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3, 9])
    together = tagger(frames, lengths)
    monkeypatch.setattr(tagger_module, "CHUNK_FRAMES", 18)  # two videos per chunk, and a last chunk of one
    torch.testing.assert_close(tagger(frames, lengths), together, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "form"), [pair for pair in ALL if pair[0] != "rnn"])  # which samples no frames
@with_options
def test_sampled_frames_with_counts_train_like_repeated_frames(family, form, options):
    """Compare a step on distinct sampled frames with their counts to a step on all samples, repeated ones included."""
    frames, _, labels = videos(frames=9)
    batch = Batch(("",) * 6, frames, torch.tensor([9, 1, 4, 2, 7, 3]), labels)
    rows = sample_frames(batch.lengths, 12, torch.Generator().manual_seed(3))
    results = []
    for sampled in (select_frames(batch, rows), count_sampled_frames(batch, rows)):
        tagger = stirred(small_tagger(family, form, **options)).train()
        tagger.dropout.p = 0.0
        loss = cross_entropy(tagger(sampled.frames, sampled.lengths, sampled.counts), labels) + tagger.penalty()
        loss.backward()
        statistics = (b for b in tagger.buffers() if b.is_floating_point())  # the counters of steps are not used
        results.append([loss.detach(), *(p.grad for p in tagger.parameters()), *statistics])
    assert count_sampled_frames(batch, rows).frames.shape[1] < 9
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def plain_gru(gru, x_BTD, mask_BT):
    """Compute `PublishedGRU` frame by frame, with the gradients of autograd."""
    h, states = torch.zeros(len(x_BTD), gru.candidate.shape[1]), [None] * x_BTD.shape[1]
    for t in reversed(range(len(states))) if gru.backwards else range(len(states)):
        r, u = torch.sigmoid(torch.cat([x_BTD[:, t], h], 1) @ gru.gates + gru.gates_bias).chunk(2, 1)
        c = torch.tanh(torch.cat([x_BTD[:, t], r * h], 1) @ gru.candidate + gru.candidate_bias)
        h = torch.where(mask_BT[:, t, None], u * h + (1 - u) * c, h)
        states[t] = h
    return torch.stack(states, 1)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_gradients_of_the_gru_equal_autograd(backwards, bf16):
    torch.manual_seed(2)
    gru, x = PublishedGRU(5, 6, backwards), torch.randn(4, 9, 5, requires_grad=True)
    mask = torch.arange(9) < torch.tensor([[9], [1], [4], [7]])
    weights = torch.randn(4, 9, 6)
    results = []
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        ours = gru(x, mask)[0]
    for states in (ours, plain_gru(gru, x, mask)):
        gradients = torch.autograd.grad((states * weights).sum(), [x, *gru.parameters()])
        results.append([states.detach(), *gradients])
    for one, other in zip(*results, strict=True):
        scale = float(other.abs().max())
        torch.testing.assert_close(one, other, rtol=0, atol=scale * (0.03 if bf16 else 1e-5))


@battery
def test_every_family_overfits_one_batch(family, form):
    tagger = small_tagger(family, form, hidden=8).train()
    frames, lengths, labels = videos()
    optimizer = torch.optim.Adam(tagger.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss = cross_entropy(tagger(frames, lengths), labels)
        loss.backward()
        optimizer.step()
        if loss < 0.1:
            break
    assert loss < 0.1


@battery
def test_bfloat16_stays_near_float32(family, form):
    tagger = stirred(small_tagger(family, form))
    frames, lengths, _ = videos()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = tagger(frames, lengths)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, tagger(frames, lengths), rtol=0, atol=0.03)


@battery
def test_an_ensemble_in_bfloat16_stays_near_float32(family, form, monkeypatch):
    monkeypatch.setattr("reeltag.artifact.quantization.sizes.MIN_ELEMENTS", 15)
    tagger = stirred(small_tagger(family, form, head={"prob_gating": True}))
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    expected = Ensemble([tagger], [1.0]).eval()(frames, lengths)
    narrow = Ensemble([Ensemble([tagger], [1.0])], [1.0], bf16=True).eval()
    modules = [module for module in narrow.modules() if not isinstance(module, torch.nn.RNNBase)]
    large = [p for module in modules for p in module.parameters(recurse=False) if p.ndim > 1 and p.numel() > 15]
    types = {parameter.dtype for parameter in large}
    assert types == {torch.bfloat16}
    probabilities = narrow(frames, lengths)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected, rtol=0, atol=0.05)
    assert not torch.equal(probabilities, expected)


@pytest.mark.parametrize("family", ["netvlad", "netfv"])
def test_bfloat16_is_accurate_for_inputs_far_from_zero(family):
    """Check that the input norm is applied before values are rounded."""
    tagger = stirred(small_tagger(family, {"clusters": 4}))
    tagger.input_norm.norm.running_mean.fill_(1.0)
    tagger.input_norm.norm.running_var.fill_(0.01)
    values = 1 + 0.1 * torch.randn(6, 9, sum(WIDTHS), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = tagger.eval().pooling(tagger.input_norm(Frames.plain(values)))
        with torch.autocast("cpu", torch.bfloat16):
            pooled = tagger.pooling(tagger.input_norm(Frames.plain(values)))
    assert float((pooled - expected).norm() / expected.norm()) < 0.01


@battery
def test_a_model_saved_and_loaded_is_bit_equal(family, form, tmp_path, tiny_schema):
    widths, classes = tiny_schema.widths, tiny_schema.classes
    config = small_tagger(family, form).config
    tagger = stirred(build_tagger(config, widths, classes, 0))
    path = tmp_path / "one.reeltag"
    save_artifact(path, Artifact(tiny_schema, None, (Member("one", config, 1.0, tagger.state_dict()),), {}))
    (member,) = load_artifact(path).members
    assert member.config == config
    loaded = member.build(tiny_schema)
    frames = torch.randint(0, 256, (5, 8, sum(widths)), dtype=torch.uint8)
    lengths = torch.tensor([8, 1, 3, 8, 5])
    assert torch.equal(loaded(frames, lengths), tagger(frames, lengths))
    save_artifact(tmp_path / "two.reeltag", load_artifact(path))
    assert (tmp_path / "two.reeltag").read_bytes() == path.read_bytes()


@battery
def test_initial_weights_depend_only_on_the_seed(family, form):
    before = torch.random.get_rng_state()
    first, again, other = (small_tagger(family, form, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@battery
def test_a_meta_tagger_has_the_shapes_of_a_real_one(family, form):
    real = small_tagger(family, form)
    meta = meta_tagger(real.config, WIDTHS, CLASSES)
    assert {n: t.shape for n, t in meta.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}


@battery
def test_initial_weights_neither_shrink_nor_blow_up_the_vector(family, form):
    """Check that the vector before the head has a standard deviation that sigmoids can resolve."""
    tagger = small_tagger(family, form)
    seen = []
    tagger.gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tagger.train()(*videos()[:2])
    assert 1e-3 < seen[0].std().item() < 10
    assert math.isfinite(seen[0].abs().max().item())


def test_meta_taggers_do_not_import_the_compiler_of_torch():
    """Exclude NeXtVLAD, whose linear layers import it; the import takes longer than loading a model."""
    tables = [{"family": family} for family in FAMILIES if family != "nextvlad"]
    code = f"""
import sys
from reeltag.models import tagger as tagger_module
from reeltag.models.families import parse_config
from reeltag.models.tagger import meta_tagger
for table in {tables}:
    meta_tagger(parse_config(table), (32, 8), 30)
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_example_family_of_the_docs_works(monkeypatch, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    code = page.partition("## Adding a family")[2].split("```python\n")[1].partition("```")[0]
    (tmp_path / "maximum_family.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    maximum = importlib.import_module("maximum_family")
    monkeypatch.setitem(FAMILIES, "maximum", maximum.MaximumConfig)
    monkeypatch.setitem(tagger_module.POOLINGS, "maximum", maximum.Maximum)
    tagger = build_tagger(maximum.MaximumConfig(family="maximum", input_norm=False), WIDTHS, CLASSES, 0).eval()
    frames, _, _ = videos(count=3, frames=9)
    for row, length in zip(frames, (9, 1, 4), strict=True):
        alone = tagger(row[None, :length], torch.tensor([length]))
        together = tagger(row[None], torch.tensor([length]))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
