"""The golden files name weights as the authors' program does; here is what ours are called."""

import torch

_NORM = {"beta": "bias", "gamma": "weight", "moving_mean": "running_mean", "moving_variance": "running_var"}
_NORM_SCOPES = {
    "input_bn": "input_norm.norm",
    "video_VLAD.cluster_bn": "pooling.parts.0.norm.norm",
    "audio_VLAD.cluster_bn": "pooling.parts.1.norm.norm",
    "gating_bn": "gate.norm",
    "gating_prob_bn": "head.prob_gate.norm",
    "cluster_bn": "norm.norm",
}
_WEIGHTS = {
    "video_VLAD.cluster_weights": "pooling.parts.0.assign",
    "video_VLAD.cluster_weights2": "pooling.parts.0.centres",
    "audio_VLAD.cluster_weights": "pooling.parts.1.assign",
    "audio_VLAD.cluster_weights2": "pooling.parts.1.centres",
    "cluster_weights": "assign",
    "cluster_weights2": "centres",
    "hidden1_weights": "hidden.weight",
    "hidden1_biases": "hidden.bias",
    "gating_weights_2": "gate.weight",
    "gates.weights": "head.gates",
    "experts.weights": "head.experts",
    "experts.biases": "head.bias",
    "gating_prob_weights": "head.prob_gate.weight",
    "fully_connected.weights": "head.weight",
    "fully_connected.biases": "head.bias",
}


def our_name(peer_name: str) -> str:
    name = peer_name.removeprefix("tower.")
    if name in _WEIGHTS:
        return _WEIGHTS[name]
    scope, _, kind = name.rpartition(".")
    return f"{_NORM_SCOPES[scope]}.{_NORM[kind]}"


def state_dict(arrays, prefix="w:", strip=""):
    """The arrays `PREFIXname` of a golden file as a state dict; `strip` cuts our own prefix off."""
    state = {}
    for key in arrays:
        if key.startswith(prefix):
            array = arrays[key]
            array = array[0] if array.ndim == 3 else array  # centres come as [1, D, K]
            state[our_name(key[len(prefix) :]).removeprefix(strip)] = torch.from_numpy(array)
    return state
