"""Layers, heads and whole models, compared with results of the authors' program."""

import numpy as np
import pytest
import torch

from conftest import golden
from peer_arrays import peer_architecture, peer_state
from reeltag.models.config import HeadConfig
from reeltag.models.dbof import GatedDBoF, SoftDBoF
from reeltag.models.families import parse_config
from reeltag.models.frames import Frames
from reeltag.models.heads import build_head
from reeltag.models.layers import dequantize
from reeltag.models.netfv import NetFVFeature
from reeltag.models.netvlad import NetVLADFeature
from reeltag.models.tagger import Tagger

LAYERS = {
    "layer_netvlad": ("VLAD", lambda: NetVLADFeature(12, 6)),
    "layer_lightvlad": ("VLAD", lambda: NetVLADFeature(12, 6, light=True)),
    "layer_netfv_uncoupled": ("FV", lambda: NetFVFeature(12, 6, None)),
    "layer_netfv_coupled": ("FV", lambda: NetFVFeature(12, 6, 0.01)),
    "layer_softdbof": ("DBOF", lambda: SoftDBoF(12, 6)),
    "layer_gateddbof": ("DBOF", lambda: GatedDBoF(12, 6)),
}
MODELS = {
    "model_netvlad": {"family": "netvlad", "clusters": 4, "centres": "free", "hidden": 16},
    "model_lightvlad": {"family": "netvlad", "clusters": 4, "centres": "none", "hidden": 16},
    "model_netfv": {"family": "netfv", "clusters": 4, "centres": "free", "hidden": 16},
    "model_dbof": {"family": "dbof", "clusters": 16, "pooling": "max", "hidden": 12, "activation": "relu6"},
    "model_softdbof": {"family": "dbof", "clusters": 16, "pooling": "soft", "hidden": 12},
    "model_gateddbof": {"family": "dbof", "clusters": 16, "pooling": "gated", "hidden": 12},
    "model_bilstm": {"family": "rnn", "cell": "lstm", "cells": 8, "paths": "joint", "hidden": 0},
    "model_bigru": {"family": "rnn", "cell": "gru", "cells": 8, "paths": "joint", "hidden": 0},
}


def test_dequantize_is_the_authors():
    arrays = golden("dequantize")
    ours = dequantize(torch.from_numpy(arrays["x_uint8"])).numpy()
    np.testing.assert_allclose(ours, arrays["y_f64"], atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_the_authors(name):
    arrays = golden(name)
    scope, make = LAYERS[name]
    # The golden file of a layer names its weights without the scope of the feature.
    scoped = {f"w:video_{scope}.{key[2:]}": array for key, array in arrays.items() if key.startswith("w:")}
    layer = make()
    layer.load_state_dict({key.removeprefix("pooling.parts.0."): value for key, value in peer_state(scoped).items()})
    y = layer.eval()(Frames.plain(torch.from_numpy(arrays["x"])))
    assert y.shape[1] == layer.outputs
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
    head.load_state_dict({key.removeprefix("head."): value for key, value in peer_state(arrays).items()})
    y = head.eval()(torch.from_numpy(arrays["x"]))
    np.testing.assert_allclose(y.detach().numpy(), arrays["y"], atol=1e-5)
    assert head.penalty().item() == pytest.approx(float(arrays["regularization_loss"]), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_models_are_the_authors_from_uint8_frames_to_probabilities(name):
    arrays = golden(name)
    table = peer_architecture(arrays)
    assert MODELS[name].items() <= table.items()
    tagger = Tagger(parse_config(table, (1024, 128)), (1024, 128), 10)
    tagger.load_state_dict(peer_state(arrays))
    y = tagger.eval()(torch.from_numpy(arrays["x_uint8"]), torch.from_numpy(arrays["num_frames"]).long())
    np.testing.assert_allclose(y.detach().numpy(), arrays["y"], atol=1e-5)
    if "cg_in" in arrays:
        gated = tagger.gate(torch.from_numpy(arrays["cg_in"]))
        np.testing.assert_allclose(gated.detach().numpy(), arrays["cg_out"], atol=1e-5)
