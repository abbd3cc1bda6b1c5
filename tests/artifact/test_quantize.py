"""Quantization: codes of the authors' program, published sizes, and error bounds of every encoding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import golden
from reeltag.artifact.file import Artifact, Member, quantize_artifact
from reeltag.artifact.quantization.encodings import assemble
from reeltag.artifact.quantization.quantize import (
    dequantize_state,
    is_large,
    kmeans_codebook,
    quantize_state,
    quantize_tensor,
    quantize_uniform,
    quantized_bytes,
    stored_as,
)
from reeltag.artifact.quantization.sizes import DATA_FREE, ENCODINGS
from reeltag.core.errors import UsageError
from reeltag.models.families import parse_config
from reeltag.models.tagger import meta_tagger
from small_models import SCHEMA, stored_in

ARRAYS = golden("quant_uniform")
NAMES = [key[2:] for key in ARRAYS if key.startswith("x:")]


@pytest.mark.parametrize("name", NAMES)
def test_codes_and_codebook_are_the_authors(name):
    tensor = torch.from_numpy(ARRAYS[f"x:{name}"])
    if f"ckpt:{name}" in ARRAYS:
        assert not is_large(tensor)
        return
    assert is_large(tensor)
    ours = quantize_uniform(tensor)
    np.testing.assert_array_equal(ours.codes.numpy(), ARRAYS[f"ckpt:{name}_quants"])
    np.testing.assert_array_equal(ours.codebook.numpy(), ARRAYS[f"ckpt:{name}_space"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50))
def test_every_code_is_the_nearest_of_all_256_values(values):
    quantized = quantize_uniform(torch.tensor(values, dtype=torch.float32))
    exact = np.linspace(np.float64(min(values)), np.float64(max(values)), 256)
    for value, code in zip(values, quantized.codes.tolist(), strict=True):
        distances = np.abs(exact - value)
        assert distances[code] <= distances.min() * (1 + 1e-12)


def test_a_constant_tensor_is_quantized_exactly():
    tensor = torch.full((200, 100), -0.25)
    torch.testing.assert_close(quantize_uniform(tensor).dequantize(), tensor, rtol=0, atol=0)


def test_only_tensors_of_more_than_17000_elements_change():
    state = {"large": torch.randn(17_001), "edge": torch.randn(17_000), "counter": torch.zeros(20_000).long()}
    back = dequantize_state(quantize_state(state))
    assert torch.equal(back["edge"], state["edge"])
    assert torch.equal(back["counter"], state["counter"])
    step = (state["large"].max() - state["large"].min()) / 255
    assert 0 < (back["large"] - state["large"]).abs().max() <= step * 0.5001


MOE, LOGISTIC = {"prob_gating": True}, {"kind": "logistic"}
# Size after quantization from the paper's Table 4 and the published configuration, in whole MB.
PUBLISHED = {
    "NetVLAD, large": (321, {"family": "netvlad", "clusters": 256, "hidden": 1024, "head": MOE}),
    "NetVLAD1": (242, {"family": "netvlad", "clusters": 192, "hidden": 992, "head": MOE}),
    "FVNet1": (369, {"family": "netfv", "clusters": 96, "hidden": 1540, "head": MOE}),
    "DBoF1": (59, {"family": "dbof", "clusters": 6144, "hidden": 1536}),
    "DBoF2": (37, {"family": "dbof", "clusters": 4096, "hidden": 1024}),
    "DBoF3": (33, {"family": "dbof", "clusters": 3684, "hidden": 920}),
    "RNN1, by size": (54, {"family": "rnn", "cell": "gru", "cells": 1024, "head": {**MOE, "experts": 3}}),
    "NetVLAD2, by size": (220, {"family": "netvlad", "clusters": 192, "hidden": 896, "head": MOE}),
}


def megabytes(table):
    return quantized_bytes(meta_tagger(parse_config(table), (1024, 128), 3862).state_dict()) / 1e6


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name):
    published, table = PUBLISHED[name]
    assert megabytes(table) == pytest.approx(published, rel=0.01)


def test_an_lstm_of_1024_cells_rounds_to_its_published_size():
    """Compare with the 19 MB of RNN2 and RNN3 in the paper; their weights alone take 0.8 % more."""
    weights = 2 * (1024 + 128 + 512) * 4 * 512 + (1024 + 1024) * 4 * 1024 + 1024 * 3862
    size = megabytes({"family": "rnn", "cell": "lstm", "cells": 1024, "head": LOGISTIC})
    assert round(size) == 19
    # The rest is codebooks and float32 biases, of which torch's cells have two each.
    assert weights < 1e6 * size < 1.005 * weights


def test_a_gru_of_1024_cells_has_the_weights_of_its_formula():
    """Compare with a formula: this published model is in no row of Table 4."""
    first = 2 * 3 * ((1024 + 128 + 512) * 512 + 512)
    second = 3 * ((1024 + 1024) * 1024 + 1024)
    head = 1024 * 3862 + 3862
    table = {"family": "rnn", "cell": "gru", "cells": 1024, "head": LOGISTIC}
    # A bias takes four bytes, any other weight one, and codebooks are extra.
    assert first + second + head < 1e6 * megabytes(table) < 1.01 * (first + second + head)


HALVES = golden("float16")


@pytest.mark.parametrize("name", [key[5:-7] for key in HALVES if key.endswith("float16") and key.startswith("ckpt:")])
def test_float16_is_the_authors(name):
    half = quantize_tensor(torch.from_numpy(HALVES[f"x:{name}"]), "float16")
    np.testing.assert_array_equal(half.half.numpy(), HALVES[f"ckpt:{name}float16"])


@pytest.fixture(scope="module")
def weights():
    """Return weights like trained ones: heavy tails, columns of different scale, a size that 64 does not divide."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(301, 97, generator=generator)
    return normal * normal.abs() * torch.logspace(-2, 0, 97)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_size_of_an_encoding_follows_from_the_shape(weights, encoding):
    for tensor in (weights, weights.flatten(), weights.view(7, 43, 97)):
        quantized, most = stored_in(encoding, tensor), quantized_bytes({"w": tensor.to("meta")}, encoding)
        assert quantized.nbytes == most or (encoding == "coded" and tensor.numel() < quantized.nbytes < most)
        back = dequantize_state({"w": quantized})["w"]
        assert (back.shape, back.dtype) == (tensor.shape, torch.float32)
        if encoding == "float32":
            assert torch.equal(back, tensor)
        else:  # the stored parts are recognised as the same encoding
            assert torch.equal(assemble(quantized.parts()).dequantize(), back)


def squared_error(weights, encoding):
    return (quantize_tensor(weights, encoding).dequantize() - weights).square().mean().item()


def test_k_means_converges_to_the_means_of_its_clusters(weights):
    values = weights.numpy().astype(np.float64).ravel()
    codebook = kmeans_codebook(values)
    nearest = np.abs(values[:, None] - codebook).argmin(1)
    if not np.array_equal(codebook, kmeans_codebook(values[::-1].copy())):
        pytest.fail("depends on the order of the elements")
    moved = max(abs(values[nearest == code].mean() - codebook[code]) for code in np.unique(nearest))
    assert moved < 1e-3 * np.ptp(values)
    assert squared_error(weights, "kmeans-8") < 0.5 * squared_error(weights, "uniform-8")


@pytest.mark.parametrize("shape", [(20_000,), (200, 100), (20, 50, 20)], ids=str)
@pytest.mark.parametrize("values", ["normal", "heavy-tailed", "uniform", "offset", "few"])
def test_the_quantile_codebook_is_that_of_a_sort_and_codes_are_the_nearest(shape, values):
    rng = np.random.default_rng(7)
    sampled = {
        "normal": rng.normal(size=shape),
        "heavy-tailed": rng.standard_cauchy(shape),
        "uniform": rng.uniform(size=shape),
        "offset": rng.normal(1e4, 1, shape),
        "few": rng.integers(0, 3, shape),
    }[values].astype(np.float32)
    stored = quantize_tensor(torch.from_numpy(sampled), "quantile-8")
    ordered = np.sort(sampled, axis=None).astype(np.float64)
    places = np.arange(256) / 255 * (len(ordered) - 1)
    below = np.minimum(places.astype(int), len(ordered) - 2)
    expected = ordered[below] + (places - below) * (ordered[below + 1] - ordered[below])
    codebook = stored.codebook.numpy()
    np.testing.assert_allclose(codebook, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(codebook, np.quantile(ordered, np.linspace(0, 1, 256)), rtol=1e-6, atol=1e-6)
    assert (codebook[[0, -1]] == [ordered[0], ordered[-1]]).all()
    nearest = np.abs(sampled.reshape(-1, 1)[:2000] - codebook.astype(np.float64)).min(1)
    distance = np.abs(stored.dequantize().numpy() - sampled).reshape(-1)[:2000]
    np.testing.assert_allclose(distance, nearest, rtol=1e-5, atol=1e-6 * np.abs(sampled).max())


def test_no_element_is_further_than_half_a_step_of_its_channel_or_group(weights):
    channel = quantize_tensor(weights, "channel-8").dequantize()
    steps = (weights.amax(0) - weights.amin(0)) / 255
    assert ((channel - weights).abs() <= steps * 0.501).all()
    group = (quantize_tensor(weights, "group-4").dequantize() - weights).flatten()
    for begin in range(0, weights.numel(), 64):
        part = weights.flatten()[begin : begin + 64]
        reach = part.abs().max().item()
        half_a_step = (part.max() - part.min()).item() / 15 * 0.5
        assert (
            group[begin : begin + 64].abs().max() <= half_a_step + 2e-3 * reach
        )  # rounding of the group's ends to float16
    assert squared_error(weights, "channel-8") < squared_error(weights, "uniform-8")


@pytest.mark.parametrize("encoding", ["float16", "group-4"])
def test_values_beyond_the_range_of_float16_are_refused(encoding):
    with pytest.raises(UsageError, match=f"{encoding} holds values up to 65,504"):
        quantize_tensor(torch.full((200, 100), 1e6), encoding)


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_inconsistent_parts_are_not_assembled(weights, encoding):
    parts = stored_in(encoding, weights).parts()
    assert assemble({**parts, "more": torch.zeros(1)}) is None
    for name, part in parts.items():
        assert assemble({**parts, name: part.double()}) is None
        if name:
            assert assemble({key: value for key, value in parts.items() if key != name}) is None
            assert assemble({**parts, name: part[..., :-1]}) is None


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(DATA_FREE), st.floats(-10, 10, width=32), st.floats(0.125, 8, width=32))
def test_errors_of_every_encoding_are_bounded(encoding, middle, width):
    tensor = torch.full((20, 13), middle) + torch.rand(20, 13, generator=torch.Generator().manual_seed(1)) * width
    back = dequantize_state({"w": quantize_tensor(tensor, encoding)})["w"]
    assert torch.isfinite(back).all()
    assert (back - tensor).abs().max() <= width / 15 + 2e-3 * tensor.abs().max()


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("float32", "float32"),
        ("float16", "float16"),
        ("uniform-8", "uniform-8"),
        ("kmeans-8", "kmeans-8 or quantile-8"),
        ("quantile-8", "kmeans-8 or quantile-8"),
        ("channel-8", "channel-8"),
        ("group-4", "group-4"),
    ],
)
def test_encodings_are_reported_by_their_names_in_recipes(encoding, name):
    state = {"large": torch.randn(200, 100), "small": torch.randn(8)}
    assert stored_as(quantize_state(state, encoding)) == name


def test_coded_tensors_are_reported_by_their_name():
    coded, half = stored_in("coded", torch.randn(200, 100)), stored_in("float16", torch.randn(8))
    assert stored_as({"large": coded, "small": half}) == "coded"
    assert stored_as({"small": half}) == "float16"


@pytest.mark.parametrize("large", [True, False], ids=["large", "small"])
def test_coded_needs_videos(large):
    tensor = torch.randn(200, 100) if large else torch.randn(8)
    config = parse_config({"family": "mean"})
    artifact = Artifact(SCHEMA, None, (Member("m", config, 1.0, {"w": tensor}),), {})
    for call in (
        lambda: quantize_tensor(tensor, "coded"),
        lambda: quantize_state({"w": tensor}, "coded"),
        lambda: quantize_artifact(artifact, "coded"),
    ):
        with pytest.raises(UsageError, match=r"coded needs videos that .* --encoding coded --calibrate SHARDS"):
            call()


CODES = torch.zeros(3, 4, 5, dtype=torch.int8)


@pytest.mark.parametrize(
    ("codes", "steps", "fits"),
    [
        (CODES[0], (1, 5), True),
        (CODES[0], (4, 1), True),
        (CODES[0], (1, 1), True),
        (CODES[0, 0], (1,), True),
        (CODES[0, 0], (5,), True),
        (CODES, (1, 1, 5), True),
        (CODES, (3, 1, 1), True),
        (CODES, (1, 4, 1), False),
        (CODES, (3, 1, 5), False),
        (CODES[0], (4, 5), False),
        (CODES[0], (5,), False),
        (CODES[0], (1, 4), False),
        (CODES[0], (5, 1), False),
        (CODES[0, 0, 0], (), False),
        (CODES[0, 0, 0], (1,), False),
    ],
    ids=str,
)
def test_steps_of_codes_belong_to_the_first_or_the_last_dimension(codes, steps, fits):
    for dtype in (torch.float16, torch.float32):
        assert (assemble({"": codes, "steps": torch.ones(steps, dtype=dtype)}) is not None) == fits
    assert assemble({"": codes, "steps": torch.ones(steps, dtype=torch.bfloat16)}) is None
    assert assemble({"": codes.to(torch.uint8), "steps": torch.ones(steps)}) is None


def slow_uniform(tensor):
    """Quantize element by element in float64: find the two neighbouring values and take the nearer one."""
    values = tensor.numpy().astype(np.float64)
    codebook = np.linspace(values.min(), values.max(), 256)
    step = (values.max() - values.min()) / 255 or 1.0
    below = np.clip((values - values.min()) // step, 0, 254).astype(np.int64)
    nearer_above = np.square(values - codebook[below + 1]) < np.square(values - codebook[below])
    return below + nearer_above, codebook.astype(np.float32)


def between_codes(low, high):
    """Return the float32 values nearest to the midpoints of neighbouring codes, and the next floats on both sides."""
    codebook = np.linspace(low, high, 256)
    middles = np.float32((codebook[1:] + codebook[:-1]) / 2)
    ends = np.float32([low, high])
    return np.concatenate([ends, middles, np.nextafter(middles, ends[0]), np.nextafter(middles, ends[1])])


RANDOM = np.random.default_rng(0).normal(size=200_003).astype(np.float32)
TENSORS = {
    "random": RANDOM,
    "whole and half codes": np.arange(511, dtype=np.float32) / 2,
    "between codes": between_codes(-0.75, 0.5),
    "between codes, far from 0": between_codes(1e6, 1e6 + 64),
    "constant": np.full(300, -0.3, np.float32),
    "neighbours": np.repeat(np.nextafter(np.float32(1e6), np.float32([0, 2e6])), 200),
    "three in a row": np.float32([1, 1 + 2**-23, 1 + 2**-22]),
    "the whole range": np.concatenate([RANDOM * 1e37, np.finfo(np.float32).max * np.float32([-1, 1])]),
    "denormal": (RANDOM * 100).astype(np.int32).view(np.float32)[RANDOM > 0],
    "two": np.float32([0.1, -7]),
    "one": np.float32([3]),
}


@pytest.mark.parametrize("name", TENSORS)
def test_codes_equal_a_slow_implementation_for_every_element(name):
    tensor = torch.from_numpy(TENSORS[name])
    codes, codebook = slow_uniform(tensor)
    ours = quantize_uniform(tensor)
    np.testing.assert_array_equal(ours.codes.numpy(), codes)
    np.testing.assert_array_equal(ours.codebook.numpy(), codebook)
    np.testing.assert_array_equal(ours.dequantize().numpy(), codebook[codes])


def test_a_transposed_tensor_keeps_its_shape():
    tensor = torch.from_numpy(RANDOM[:200_000]).view(400, 500).T
    np.testing.assert_array_equal(quantize_uniform(tensor).codes.numpy(), slow_uniform(tensor)[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(UsageError, match="not finite"):
        quantize_uniform(torch.tensor([1.0, bad]))
