"""Partial 8-bit quantisation: the authors' codes, and sizes as published."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import golden
from reeltag.models.tagger import meta_tagger, parse_config
from reeltag.quantize import dequantize_state, is_large, quantize_state, quantize_uniform, quantized_bytes

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


def test_a_constant_tensor_comes_back_unchanged():
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
# Bytes after quantisation from the paper's Table 4 and the published configuration, in whole MB.
PUBLISHED = {
    "NetVLAD, large": (321, {"family": "netvlad", "clusters": 256, "hidden": 1024, "head": MOE}),
    "NetVLAD1": (242, {"family": "netvlad", "clusters": 192, "hidden": 992, "head": MOE}),
    "FVNet1": (369, {"family": "netfv", "clusters": 96, "hidden": 1540, "head": MOE}),
    "DBoF1": (59, {"family": "dbof", "clusters": 6144, "hidden": 1536}),
    "DBoF2": (37, {"family": "dbof", "clusters": 4096, "hidden": 1024}),
    "DBoF3": (33, {"family": "dbof", "clusters": 3684, "hidden": 920}),
}


def megabytes(table):
    return quantized_bytes(meta_tagger(parse_config(table), (1024, 128), 3862).state_dict()) / 1e6


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name):
    published, table = PUBLISHED[name]
    assert megabytes(table) == pytest.approx(published, rel=0.01)


def test_an_lstm_of_1024_cells_rounds_to_its_published_size():
    """RNN2 is published with 19 MB, and its weights alone are 0.8 % more."""
    weights = 2 * (1024 + 128 + 512) * 4 * 512 + (1024 + 1024) * 4 * 1024 + 1024 * 3862
    size = megabytes({"family": "rnn", "cell": "lstm", "cells": 1024, "head": LOGISTIC})
    assert round(size) == 19
    # the rest is codebooks and float biases, of which torch's cells have two
    assert weights < 1e6 * size < 1.005 * weights


def test_a_gru_of_1024_cells_has_the_weights_of_its_formula():
    """RNN3 is published with 19 MB, which no bidirectional GRU of 1024 cells with a logistic head can have."""
    first = 2 * 3 * ((1024 + 128 + 512) * 512 + 512)
    second = 3 * ((1024 + 1024) * 1024 + 1024)
    head = 1024 * 3862 + 3862
    table = {"family": "rnn", "cell": "gru", "cells": 1024, "head": LOGISTIC}
    # biases take four bytes, codebooks and 8 bits one byte a weight
    assert first + second + head < 1e6 * megabytes(table) < 1.01 * (first + second + head)
