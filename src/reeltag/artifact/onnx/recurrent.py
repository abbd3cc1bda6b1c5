"""ONNX forms of the recurrent families. ONNX's recurrent layers take videos of different lengths."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto
from torch import nn

from reeltag.artifact.onnx.graph import Value, concat
from reeltag.artifact.onnx.layers import normed
from reeltag.artifact.onnx.poolings import OnnxFrames, pool
from reeltag.artifact.onnx.weights import Weights
from reeltag.models.rnn import RNN, CuDNNLayer, PublishedGRU, Stack

# Positions of ONNX's gates among torch's: input, output, forget, cell; update, reset, hidden.
_LSTM, _GRU = (0, 3, 1, 2), (1, 0, 2)


@pool.register
def _(layer: RNN, frames: OnnxFrames, weights: Weights) -> Value:
    paths = [path.x for path in frames.split(layer.widths)]
    for number in range(len(layer.before)):
        part = weights.of("before", number)
        inner = part.product(normed(paths[number], part.of("input_norm", "norm")), "weight")
        paths[number] = normed(inner, part.of("norm", "norm")).clip(0.0, 6.0)
    lengths = frames.lengths.cast(TensorProto.INT32)
    stacks = zip(layer.stacks, paths, strict=True)
    return concat([_stack(stack, x, lengths, weights.of("stacks", n)) for n, (stack, x) in enumerate(stacks)], axis=1)


def _stack(layer: nn.Module, x_BTD: Value, lengths: Value, weights: Weights) -> Value:
    """Return the final state [B, H]."""
    assert isinstance(layer, Stack)
    x_TBD, both = x_BTD.transpose(1, 0, 2), []
    for number, first in enumerate(layer.first):
        outputs, _ = _recurrent(first, x_TBD, lengths, weights.of("first", number))
        both.append(outputs.transpose(0, 2, 1, 3).reshape(0, 0, -1))
    _, state_1BH = _recurrent(layer.second, concat(both, axis=2), lengths, weights.of("second"))
    return state_1BH.squeeze(0)


def _recurrent(layer: nn.Module, x_TBD: Value, lengths: Value, weights: Weights) -> tuple[Value, Value]:
    """Return outputs [T, directions, B, H] and final states [directions, B, H]; of an LSTM the cell states."""
    if isinstance(layer, PublishedGRU):
        return _published(layer, x_TBD, lengths, weights)
    assert isinstance(layer, CuDNNLayer)
    lstm, cells = layer.rnn.mode == "LSTM", layer.rnn.hidden_size
    order, suffixes = (_LSTM if lstm else _GRU), ["", "_reverse"] if layer.rnn.bidirectional else [""]
    rnn = weights.of("rnn")

    def gates(kind: str) -> Value:
        """Return the weights of all gates, [directions, gates·H, …]."""
        return concat(
            [_reordered(rnn.floats(f"{kind}_l0{suffix}"), order, cells).unsqueeze(0) for suffix in suffixes], axis=0
        )

    biases = concat([gates("bias_ih"), gates("bias_hh")], axis=1)
    direction = "bidirectional" if len(suffixes) == 2 else "forward"
    inputs = (x_TBD, gates("weight_ih"), gates("weight_hh"), biases, lengths)
    if lstm:
        outputs, _, states = x_TBD.graph.add_several(3, "LSTM", *inputs, hidden_size=cells, direction=direction)
    else:
        outputs, states = x_TBD.graph.add_several(
            2, "GRU", *inputs, hidden_size=cells, direction=direction, linear_before_reset=1
        )
    return outputs, states


def _reordered(value: Value, order: Sequence[int], cells: int) -> Value:
    """Reorder the rows of the gates as ONNX expects them."""
    pieces = value.split([cells] * len(order), axis=0)
    return concat([pieces[gate] for gate in order], axis=0)


def _published(layer: PublishedGRU, x_TBD: Value, lengths: Value, weights: Weights) -> tuple[Value, Value]:
    """Apply TensorFlow's GRU, which resets its state before the product, as ONNX's GRU does by default."""
    cells = layer.candidate_bias.numel()
    reset, update = weights.floats("gates").split([cells] * 2, axis=1)
    parts = [part.split([layer.inputs, cells], axis=0) for part in (update, reset, weights.floats("candidate"))]
    reset_bias, update_bias = weights.floats("gates_bias").split([cells] * 2, axis=0)
    bias = concat([update_bias, reset_bias, weights.floats("candidate_bias")], axis=0)
    x_gates, h_gates = (concat(part, axis=1).transpose(1, 0).unsqueeze(0) for part in zip(*parts, strict=True))
    outputs, states = x_TBD.graph.add_several(
        2,
        "GRU",
        x_TBD,
        x_gates,
        h_gates,
        concat([bias, bias * 0.0], axis=0).unsqueeze(0),
        lengths,
        hidden_size=cells,
        direction="reverse" if layer.backwards else "forward",
    )
    return outputs, states
