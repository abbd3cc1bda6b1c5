"""Layers, heads and whole models: against the authors' numbers, and one battery for every family."""

import numpy as np
import pytest
import torch

from conftest import golden
from peer_weights import state_dict
from reeltag.losses import cross_entropy
from reeltag.models.config import HeadConfig
from reeltag.models.heads import build_head
from reeltag.models.layers import dequantize, l2_normalize
from reeltag.models.netvlad import NetVLADFeature
from reeltag.models.tagger import FAMILIES, Tagger, build_tagger, meta_tagger, parse_config

WIDTHS, CLASSES = (12, 4), 9
SMALL = {"netvlad": {"clusters": 4}}
OPTIONS = {
    "plain": {},
    "relu": {"relu": True},
    "no gating": {"gating": False},
    "logistic": {"head": {"kind": "logistic"}},
    "probability gating": {"head": {"prob_gating": True, "experts": 3}},
    "dropout": {"dropout": 0.3},
}


def small_tagger(family, seed=0, **options):
    config = parse_config({"family": family, "hidden": 8, "bn_decay": 0.9, **SMALL[family], **options})
    return build_tagger(config, WIDTHS, CLASSES, seed)


def videos(count=6, frames=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (count, frames, sum(WIDTHS)), generator=generator, dtype=torch.uint8)
    labels = torch.rand(count, CLASSES, generator=generator) < 0.3
    return codes, torch.full((count,), frames), labels


def trained_a_little(tagger):
    """Batch norm's statistics differ from their start, so that a mistake in using them shows."""
    frames, lengths, _ = videos(seed=5)
    tagger.train()
    for _ in range(20):
        tagger(frames, lengths)
    return tagger.eval()


# --- the authors' numbers -------------------------------------------------------------------------


def test_dequantize_is_the_authors():
    arrays = golden("dequantize")
    ours = dequantize(torch.from_numpy(arrays["x_uint8"])).numpy()
    np.testing.assert_allclose(ours, arrays["y_f64"], atol=1e-6)


def test_netvlad_layer_is_the_authors():
    arrays = golden("layer_netvlad")
    layer = NetVLADFeature(12, 6)
    layer.load_state_dict(state_dict(arrays))
    layer.norm.norm.eps = 1e-3
    y = layer.eval()(torch.from_numpy(arrays["x"]), None)
    np.testing.assert_allclose(y.detach().numpy(), arrays["y"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("logistic", HeadConfig(kind="logistic", l2=1e-8)),
        ("moe2", HeadConfig(experts=2, l2=1e-6)),
        ("moe4", HeadConfig(experts=4, l2=1e-6)),
        ("moe2_probgating", HeadConfig(experts=2, l2=1e-6, prob_gating=True)),
    ],
)
def test_heads_are_the_authors(name, config):
    arrays = golden(name)
    head = build_head(8, arrays["y"].shape[1], config)
    head.load_state_dict(state_dict(arrays, strip="head."))
    y = head.eval()(torch.from_numpy(arrays["x"]))
    np.testing.assert_allclose(y.detach().numpy(), arrays["y"], atol=1e-5)
    assert head.penalty().item() == pytest.approx(float(arrays["regularization_loss"]), rel=1e-5)


def test_netvlad_model_is_the_authors_from_uint8_frames_to_probabilities():
    arrays = golden("model_netvlad")
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 16, "head": {"prob_gating": True}})
    tagger = Tagger(config, (1024, 128), 10)
    tagger.load_state_dict(state_dict(arrays))
    y = tagger.eval()(torch.from_numpy(arrays["x_uint8"]), torch.from_numpy(arrays["num_frames"]).long())
    np.testing.assert_allclose(y.detach().numpy(), arrays["y"], atol=1e-5)
    gated = tagger.gate(torch.from_numpy(arrays["cg_in"]))
    np.testing.assert_allclose(gated.detach().numpy(), arrays["cg_out"], atol=1e-5)


# --- brute force ----------------------------------------------------------------------------------


def slow_netvlad(x, assign, mean, variance, gamma, beta, centres):
    """One video, frame by frame, in float64."""
    vlad = np.zeros_like(centres)
    for frame in x:
        logits = gamma * (frame @ assign - mean) / np.sqrt(variance + 1e-3) + beta
        share = np.exp(logits - logits.max())
        share /= share.sum()
        for cluster in range(centres.shape[1]):
            vlad[:, cluster] += share[cluster] * (frame - centres[:, cluster])
    vlad /= np.maximum(np.linalg.norm(vlad, axis=0), 1e-6)
    flat = vlad.reshape(-1)
    return flat / max(np.linalg.norm(flat), 1e-6)


@pytest.mark.parametrize("length", [1, 2, 300])
def test_netvlad_pools_ragged_videos_like_a_loop_over_their_frames(length):
    layer = NetVLADFeature(5, 3)
    with torch.no_grad():
        for tensor in (layer.norm.norm.running_mean, layer.norm.norm.running_var, layer.norm.norm.weight):
            tensor.copy_(torch.rand(3) + 0.5)
    x = torch.randn(2, 300, 5)
    x[0, 0] = 0  # a zero frame is a frame
    mask = torch.arange(300) < torch.tensor([[length], [300]])
    ours = layer.eval()(x * mask[..., None], mask)[0].detach().numpy()
    norm = layer.norm.norm
    weights = (layer.assign, norm.running_mean, norm.running_var, norm.weight, norm.bias, layer.centres)
    slow = slow_netvlad(x[0, :length].double().numpy(), *(w.detach().double().numpy() for w in weights))
    np.testing.assert_allclose(ours, slow, atol=1e-5)


def test_batch_norm_counts_only_real_frames():
    tagger = small_tagger("netvlad").train()
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    tagger(frames, lengths)
    real = torch.cat([frames[i, :n] for i, n in enumerate(lengths)])
    rows = l2_normalize(dequantize(real), 1)
    norm = tagger.input_norm.norm
    # running statistics start at 0 and 1 and move by 1 − bn_decay
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0))


# --- the battery: every registered family, with every option ----------------------------------------

battery = pytest.mark.parametrize("family", FAMILIES)
with_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


@battery
@with_options
def test_probabilities_have_the_right_shape_and_range(family, options):
    frames, lengths, _ = videos()
    p = trained_a_little(small_tagger(family, **options))(frames, lengths)
    assert p.shape == (6, CLASSES)
    assert p.dtype == torch.float32
    assert ((p >= 0) & (p <= 1)).all()


@battery
@with_options
def test_every_parameter_gets_a_gradient(family, options):
    tagger = small_tagger(family, **options).train()
    frames, lengths, labels = videos()
    (cross_entropy(tagger(frames, lengths), labels) + tagger.penalty()).backward()
    without = [name for name, p in tagger.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


@battery
@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_videos_give_finite_numbers(family, value):
    frames, lengths, labels = videos()
    tagger = small_tagger(family).train()
    loss = cross_entropy(tagger(torch.full_like(frames, value), lengths), labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in tagger.parameters())


@battery
@with_options
def test_what_stands_in_padded_frames_changes_nothing(family, options):
    tagger = trained_a_little(small_tagger(family, **options))
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    other = frames.clone()
    for row, length in zip(other, lengths, strict=True):
        row[length:] = 255 - row[length:]
    torch.testing.assert_close(tagger(frames, lengths), tagger(other, lengths), rtol=0, atol=0)


@battery
def test_a_video_is_tagged_alike_alone_and_in_a_padded_batch(family):
    tagger = trained_a_little(small_tagger(family))
    frames, _, _ = videos(frames=9)
    lengths = torch.tensor([9, 1, 4, 2, 7, 3])
    together = tagger(frames, lengths)
    for row, length, expected in zip(frames, lengths, together, strict=True):
        alone = tagger(row[None, :length], length[None])[0]
        torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)


@battery
def test_one_batch_can_be_learnt_by_heart(family):
    tagger = small_tagger(family).train()
    frames, lengths, labels = videos()
    optimizer = torch.optim.Adam(tagger.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss = cross_entropy(tagger(frames, lengths), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@battery
def test_bfloat16_stays_near_float32(family):
    tagger = trained_a_little(small_tagger(family))
    frames, lengths, _ = videos()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = tagger(frames, lengths)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, tagger(frames, lengths), rtol=0, atol=0.03)


@battery
def test_the_seed_decides_the_initial_weights_and_leaves_the_global_generator_alone(family):
    before = torch.random.get_rng_state()
    first, again, other = (small_tagger(family, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden.weight"], other["hidden.weight"])


@battery
def test_a_meta_tagger_has_the_shapes_of_a_real_one(family):
    real = small_tagger(family)
    meta = meta_tagger(real.config, WIDTHS, CLASSES)
    assert {n: t.shape for n, t in meta.state_dict().items()} == {n: t.shape for n, t in real.state_dict().items()}
