"""Convert checkpoints of the authors' TensorFlow program to members of an artifact.

The program keeps its architecture in flags, not in the checkpoint, so the architecture is inferred from names and
shapes of the variables. Settings that leave no trace there (mean or maximum in classic DBoF, a gate without its
diagonal, the scale of coupled centres) take reeltag's default, which is the program's, unless the caller sets them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reeltag.artifact.file import Member
from reeltag.artifact.quantization.encodings import CodebookTensor
from reeltag.artifact.quantization.sizes import LEVELS
from reeltag.artifact.tensorflow.bundle import Array, index_path, read_checkpoint
from reeltag.core.errors import ArtifactError
from reeltag.data.schema import Schema
from reeltag.models.config import TaggerConfig
from reeltag.models.tagger import meta_tagger

Value = Tensor | CodebookTensor
Variables = Mapping[str, Value]

_TRAINING = re.compile(r"(^|/)(global_step|beta[12]_power|Adam|Adam_1)$")
_NORM = {"beta": "bias", "gamma": "weight", "moving_mean": "running_mean", "moving_variance": "running_var"}
_PARTS = {"video": 0, "audio": 1}
# Inside a feature's scope, such as tower/video_VLAD.
_FEATURE = {
    "cluster_weights": "assign.weight",
    "cluster_weights2": "centres",
    "cluster_bn": "assign.norm.norm",
    "covar_weights": "deviation",
    "dim_red": "reduce",
    "cluster_weights_2": "expand",
    "cluster_bn_2": "norm",
}
_TOP = {
    "input_bn": "input_norm.norm",
    "cluster_weights": "pooling.weight",
    "cluster_bn": "pooling.norm.norm",
    "hidden1_weights": "hidden.weight",
    "hidden1_biases": "hidden.bias",
    "hidden1_bn": "hidden.norm",
    "gating_weights_2": "gate.weight",
    "gating_biases": "gate.bias",
    "gating_bn": "gate.norm",
    "gates1/weights": "head.gates_in",
    "gates2/weights": "head.gates",
    "gates/weights": "head.gates",
    "experts/weights": "head.experts",
    "experts/biases": "head.bias",
    "gating_prob_weights": "head.prob_gate.weight",
    "gating_prob_bn": "head.prob_gate.norm",
    "fully_connected/weights": "head.weight",
    "fully_connected/biases": "head.bias",
}
# The dual-path GRU has a layer before each path, so its head is the third that TensorFlow named.
_DUAL = _TOP | {
    "video_input_bn": "pooling.before.0.input_norm.norm",
    "audio_input_bn": "pooling.before.1.input_norm.norm",
    "fully_connected/weights": "pooling.before.0.weight",
    "fully_connected_1/weights": "pooling.before.1.weight",
    "video_cluster_bn": "pooling.before.0.norm.norm",
    "audio_cluster_bn": "pooling.before.1.norm.norm",
    "fully_connected_2/weights": "head.weight",
    "fully_connected_2/biases": "head.bias",
}
_GRU = {
    "gates/kernel": "gates",
    "gates/bias": "gates_bias",
    "candidate/kernel": "candidate",
    "candidate/bias": "candidate_bias",
}
_CELL = re.compile(
    r"(?:(?P<path>video|audio)/)?(?P<layer>bidirectional_rnn/fw|bidirectional_rnn/bw|rnn)/multi_rnn_cell/cell_0/"
    r"(?:gru_cell/(?P<gru>(?:gates|candidate)/(?:kernel|bias))|basic_lstm_cell/(?P<lstm>kernel|bias))"
)


def import_checkpoint(
    checkpoint: Path, schema: Schema, name: str, parse: Callable[[dict[str, Any]], TaggerConfig]
) -> Member:
    """Read a checkpoint of the authors' program; quantized weights keep their codes.

    Args:
        checkpoint: prefix, index file, data file or folder.
        schema: of the data that the model reads.
        name: of the member.
        parse: converts the table of keys, inferred from the variables, to a configuration.

    Raises:
        DataError: the checkpoint is missing or damaged.
        ArtifactError: it is not a model of that program, or does not fit the schema.
    """
    index = index_path(checkpoint)
    try:
        variables = named_variables(read_checkpoint(checkpoint))
        table = architecture(variables, index)
    except IndexError as error:  # a matrix with too few dimensions, or codes beyond their codebook
        raise ArtifactError(f"{index}: its variables do not have the shapes of the authors' program") from error
    config = parse(table)
    state = state_dict(variables, index)
    _check_shapes(config, schema, state, index)
    return Member(name, config, 1.0, state)


def named_variables(arrays: Mapping[str, Array]) -> dict[str, Value]:
    """Return the model's variables, by name without the tower's prefix; those of the optimizer are left out.

    Codes and codebook (`NAME_quants`, `NAME_space`) become one value, and `NAMEfloat16` becomes float32.
    """
    variables: dict[str, Value] = {}
    arrays = {name.removeprefix("tower/"): array for name, array in arrays.items() if not _TRAINING.search(name)}
    for name, array in arrays.items():
        base = name.removesuffix("_quants")
        if name.endswith("_space") and f"{name.removesuffix('_space')}_quants" in arrays:
            continue
        if base != name and f"{base}_space" in arrays:
            value = CodebookTensor(_tensor(array), _tensor(arrays[f"{base}_space"]))
            # A codebook of the authors' k-means may have fewer values.
            variables[base] = value if value.codebook.shape == (LEVELS,) else value.dequantize()
        elif name.endswith("float16") and array.dtype == "float16":
            variables[name.removesuffix("float16")] = _tensor(array)
        else:
            variables[name] = _tensor(array)
    return variables


def architecture(variables: Variables, source: Path) -> dict[str, Any]:
    """Infer the configuration, a table with a `family` key, from names and shapes of the variables.

    Raises:
        ArtifactError: no model of the authors' program has such variables.
    """
    shapes = {name: tuple(_codes(value).shape) for name, value in variables.items()}
    table: dict[str, Any] = _family(shapes) | {"input_norm": "input_bn/beta" in shapes, "head": _head(shapes)}
    if not table["head"]:
        names = ", ".join(sorted(shapes)[:5]) or "none"
        raise ArtifactError(f"{source}: has no classifier of the authors' program; its variables: {names}, …")
    table["hidden"] = shapes["hidden1_weights"][1] if "hidden1_weights" in shapes else 0
    if "hidden1_bn/beta" in shapes:
        table["activation"] = "relu6"
    table["gating"] = {"kind": "none"}
    if "gating_weights_2" in shapes:
        table["gating"] = {"kind": "context", "norm": "gating_bn/beta" in shapes}
    return table


def _family(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    for scope, family in {"VLAD": "netvlad", "FV": "netfv", "DBOF": "dbof"}.items():
        prefix = f"video_{scope}"
        if f"{prefix}/cluster_weights" not in shapes:
            continue
        clusters = shapes[f"{prefix}/cluster_weights"][-1]
        if family == "dbof":
            pooled = clusters + shapes.get(f"audio_{scope}/cluster_weights", (0,))[-1]
            doubled = shapes.get("hidden1_weights", (0,))[0] == 2 * pooled
            pooling = "gated" if f"{prefix}/dim_red" in shapes else "soft+max" if doubled else "soft"
            return {"family": family, "clusters": clusters, "pooling": pooling}
        without = {"netvlad": "none", "netfv": "coupled"}[family]
        centres = "free" if f"{prefix}/cluster_weights2" in shapes else without
        return {"family": family, "clusters": clusters, "centres": centres}
    if "cluster_weights" in shapes:
        return {"family": "dbof", "clusters": shapes["cluster_weights"][-1], "pooling": "max"}
    for path, paths in {"": "joint", "video/": "dual"}.items():
        biases = {"lstm": ("basic_lstm_cell/bias", 4), "gru": ("gru_cell/candidate/bias", 1)}
        for cell, (bias, gates) in biases.items():
            shape = shapes.get(f"{path}rnn/multi_rnn_cell/cell_0/{bias}")
            if shape is not None:
                return {"family": "rnn", "cell": cell, "paths": paths, "cells": shape[0] // gates}
    return {"family": "mean"}


def _head(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    if "experts/weights" not in shapes:
        logistic = any(re.fullmatch(r"fully_connected(_2)?/biases", name) for name in shapes)
        return {"kind": "logistic", "l2": 1e-8} if logistic else {}
    gates = shapes.get("gates/weights") or shapes.get("gates2/weights") or (0, 0)
    classes = gates[1] - shapes["experts/weights"][1]  # C·(M+1) − C·M
    head = {"kind": "moe", "experts": shapes["experts/weights"][1] // max(1, classes)}
    if "gates2/weights" in shapes:
        head["gate_rank"] = shapes["gates2/weights"][0]
    if "gating_prob_weights" in shapes:
        rows = shapes["gating_prob_weights"][0]
        head |= {"prob_gating": True, "prob_gating_input": "probabilities" if rows == classes else "hidden"}
    return head


def state_dict(variables: Variables, source: Path) -> dict[str, Value]:
    """Rename the variables to reeltag's names.

    Raises:
        ArtifactError: variables have no counterpart; the message lists them all.
    """
    top = _DUAL if "video_input_bn/beta" in variables else _TOP
    state: dict[str, Value] = {}
    unknown = []
    for name, value in variables.items():
        if cell := _CELL.fullmatch(name):
            state |= _cell(cell, value)
        elif (ours := _our_name(name, top)) is not None:
            state[ours] = _without_leading_one(value)
        else:
            unknown.append(name)
    if unknown:
        what = "belong to no model of the authors' program that reeltag knows"
        raise ArtifactError(f"{source}: variables {', '.join(sorted(unknown))} {what}")
    return state


def _our_name(name: str, top: Mapping[str, str]) -> str | None:
    scope, _, leaf = name.rpartition("/")
    if leaf in _NORM:
        ours = _our_name(scope, top)
        return f"{ours}.{_NORM[leaf]}" if ours else None
    if name in top:
        return top[name]
    feature, _, kind = scope.partition("_")
    if feature in _PARTS and kind in ("VLAD", "FV", "DBOF") and leaf in _FEATURE:
        return f"pooling.parts.{_PARTS[feature]}.{_FEATURE[leaf]}"
    return None


def _cell(match: re.Match[str], value: Value) -> dict[str, Value]:
    """Convert a variable of a recurrent cell; that of an LSTM becomes several in torch's layout."""
    stack = f"pooling.stacks.{_PARTS[match['path'] or 'video']}"
    backwards = match["layer"].endswith("bw")
    if match["gru"]:
        layer = "second" if match["layer"] == "rnn" else f"first.{int(backwards)}"
        return {f"{stack}.{layer}.{_GRU[match['gru']]}": value}
    layer = "second" if match["layer"] == "rnn" else "first.0"
    module, end = f"{stack}.{layer}.rnn", "_l0_reverse" if backwards else "_l0"
    if match["lstm"] == "bias":
        bias = _reordered(value if isinstance(value, Tensor) else value.dequantize())
        cells = len(bias) // 4
        bias[cells : 2 * cells] += 1.0  # TensorFlow adds its forget bias at each step
        return {f"{module}.bias_ih{end}": bias, f"{module}.bias_hh{end}": torch.zeros_like(bias)}
    cells = _codes(value).shape[1] // 4
    return {
        f"{module}.weight_ih{end}": _mapped(value, lambda kernel: _reordered(kernel[:-cells].T)),
        f"{module}.weight_hh{end}": _mapped(value, lambda kernel: _reordered(kernel[-cells:].T)),
    }


def _reordered(gates: Tensor) -> Tensor:
    """Reorder rows of TensorFlow's gates i, j, f, o to torch's order i, f, j, o."""
    i, j, f, o = gates.chunk(4)
    return torch.cat([i, f, j, o])


def _without_leading_one(value: Value) -> Value:
    """Remove the leading dimension of centres, which are [1, D, K] in TensorFlow."""
    return _mapped(value, lambda tensor: tensor[0]) if _codes(value).ndim == 3 else value


def _mapped(value: Value, change: Callable[[Tensor], Tensor]) -> Value:
    """Rearrange a tensor, or the codes of a quantized one."""
    if isinstance(value, CodebookTensor):
        return CodebookTensor(change(value.codes).contiguous(), value.codebook)
    return change(value).contiguous()


def _codes(value: Value) -> Tensor:
    return value.codes if isinstance(value, CodebookTensor) else value


def _tensor(array: Array) -> Tensor:
    tensor = torch.from_numpy(array.copy())
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_shapes(config: TaggerConfig, schema: Schema, state: Mapping[str, Value], source: Path) -> None:
    tagger = meta_tagger(config, schema.widths, schema.classes)
    expected = {name: tuple(t.shape) for name, t in tagger.state_dict().items() if t.is_floating_point()}
    actual = {name: tuple(_codes(value).shape) for name, value in state.items()}
    faults = [f"{name} is missing" for name in sorted(expected.keys() - actual.keys())]
    faults += [f"{name} has no counterpart" for name in sorted(actual.keys() - expected.keys())]
    faults += [
        f"{name} is {list(actual[name])} and not {list(expected[name])}"
        for name in sorted(expected.keys() & actual.keys())
        if expected[name] != actual[name]
    ]
    if faults:
        data = f"{' + '.join(map(str, schema.widths))} values a frame and {schema.classes} classes"
        raise ArtifactError(
            f"{source}: does not fit data with {data} as {config.family}; give the --schema of its data, or give "
            f"with --set what the checkpoint does not hold:\n  " + "\n  ".join(faults)
        )
