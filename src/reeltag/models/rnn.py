"""Recurrent taggers: a bidirectional layer, then one forwards (paper section 2.1; golden `model_bi*`).

Frames are read in order up to their true length. The pooled vector is the last layer's state after the last frame;
of an LSTM its cell state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from reeltag.core.distributed.collectives import sample_global
from reeltag.core.distributed.process_group import rank
from reeltag.models.config import shares
from reeltag.models.families import Cell, RNNConfig
from reeltag.models.frames import Frames
from reeltag.models.layers import FrameNorm, Pooling, glorot

logger = logging.getLogger(__name__)


class CuDNNLayer(nn.Module):
    """`torch.nn.LSTM` or `torch.nn.GRU` over ragged sequences, initialised as TensorFlow's cells are.

    Args:
        cell: `lstm` or `gru-torch`.
        inputs: width of a frame.
        cells: H of each direction.
        bidirectional: also read backwards; outputs are concatenated.
    """

    def __init__(self, cell: Cell, inputs: int, cells: int, bidirectional: bool) -> None:
        super().__init__()
        kind = nn.LSTM if cell == "lstm" else nn.GRU
        self.rnn = kind(inputs, cells, batch_first=True, bidirectional=bidirectional)
        for name, parameter in self.rnn.named_parameters():
            with torch.no_grad():
                if name.startswith("weight"):
                    bound = math.sqrt(6 / (inputs + cells + len(parameter)))
                    parameter.uniform_(-bound, bound)
                else:
                    parameter.zero_()
                if name.startswith("bias_ih"):  # forget bias 1; a GRU's gates start open
                    gates = parameter.view(-1, cells)
                    (gates[1:2] if cell == "lstm" else gates[:2]).fill_(1.0)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return outputs [B, T, cells or twice that] and the final state [B, cells]; of an LSTM its cell state."""
        autocast = x_BTD.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if autocast and isinstance(self.rnn, nn.LSTM) and not has_bfloat16_lstm():
            with torch.autocast("cpu", enabled=False):
                return self._run(x_BTD.float(), mask_BT)
        return self._run(x_BTD, mask_BT)

    def _run(self, x_BTD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        frames = x_BTD.shape[1]
        x: Tensor | PackedSequence = x_BTD
        if mask_BT is not None:
            x = pack_padded_sequence(x_BTD, mask_BT.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, state = self.rnn(x)
        if mask_BT is not None:
            outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=frames)
        final: Tensor = state[1][-1] if isinstance(state, tuple) else state[-1]
        return outputs, final


@cache
def has_bfloat16_lstm() -> bool:
    """Return True if this CPU has a bfloat16 kernel for LSTM layers, and log once if it has none.

    oneDNN has the kernel only for CPUs with AVX-512 or better, and autocast has no fallback. torch does not report
    which kernels exist, so this runs a tiny layer forward and backward.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        layer = nn.LSTM(1, 1, bidirectional=True)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                outputs, _ = layer(torch.zeros(1, 1, 1))
            outputs.float().sum().backward()
        except RuntimeError:
            if rank() == 0:
                logger.warning(
                    "this CPU has no bfloat16 kernel for LSTM layers: they compute in float32, and only the rest of "
                    "the model in bfloat16"
                )
            return False
    return True


class PublishedGRU(nn.Module):
    """The GRU of TensorFlow 1: r, u = sigmoid([x, h]W + b), c = tanh([x, r⊙h]V + v), h ← u⊙h + (1−u)⊙c.

    Args:
        inputs: width of a frame.
        cells: H.
        backwards: from the last frame to the first.
    """

    def __init__(self, inputs: int, cells: int, backwards: bool = False) -> None:
        super().__init__()
        self.inputs, self.backwards = inputs, backwards
        self.gates = glorot(inputs + cells, 2 * cells)
        self.gates_bias = nn.Parameter(torch.ones(2 * cells))
        self.candidate = glorot(inputs + cells, cells)
        self.candidate_bias = nn.Parameter(torch.zeros(cells))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return outputs [B, T, H] and the final state [B, H]; padded frames keep the state."""
        # The products that do not depend on the state are computed for all frames at once.
        gates_BT = x_BTD @ self.gates[: self.inputs] + self.gates_bias
        candidate_BT = x_BTD @ self.candidate[: self.inputs] + self.candidate_bias
        weights = (w[self.inputs :] for w in (self.gates, self.candidate))
        outputs_BTH: Tensor = GRURecurrence.apply(gates_BT, candidate_BT, *weights, mask_BT, self.backwards)  # type: ignore[no-untyped-call]
        return outputs_BTH, outputs_BTH[:, 0 if self.backwards else -1]


class GRURecurrence(torch.autograd.Function):
    """The recurrence of `PublishedGRU`, with a gradient of its own.

    Autograd would accumulate a gradient [H, 2·H] for every frame, in bfloat16 under autocast. This one computes the
    gradients of the weights in one product over all frames.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd calls it by position)
        ctx: Any,
        gates_BTG: Tensor,
        candidate_BTH: Tensor,
        gates_HG: Tensor,
        candidate_HH: Tensor,
        mask_BT: Tensor | None,
        backwards: bool,
    ) -> Tensor:
        """Return states [B, T, H].

        Args:
            ctx: of autograd.
            gates_BTG: [B, T, 2·H] float32, products of the frames for both gates.
            candidate_BTH: [B, T, H] float32, products of the frames for the candidate state.
            gates_HG: [H, 2·H], recurrent weights of the gates.
            candidate_HH: [H, H], recurrent weights of the candidate state.
            mask_BT: true for real frames; None if all are real.
            backwards: from the last frame to the first.
        """
        device, frames = gates_BTG.device.type, gates_BTG.shape[1]
        # Converted here once: autocast would convert the weights for every frame, and nothing in the backward pass.
        # The plan's FLOP estimate runs on the meta device, which has no autocast.
        autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else gates_BTG.dtype
        weights = gates_HG.to(dtype), candidate_HH.to(dtype)
        h = torch.zeros_like(candidate_BTH[:, 0])
        before, resets, updates, candidates, states = ([h] * frames for _ in range(5))
        ctx.order = list(reversed(range(frames)) if backwards else range(frames))
        for t in ctx.order:
            before[t] = h
            r, u = torch.sigmoid(gates_BTG[:, t] + h.to(dtype) @ weights[0]).chunk(2, 1)
            c = torch.tanh(candidate_BTH[:, t] + (r * h).to(dtype) @ weights[1])
            new = torch.lerp(c, h, u)
            h = new if mask_BT is None else torch.where(mask_BT[:, t, None], new, h)
            resets[t], updates[t], candidates[t], states[t] = r, u, c, h
        if any(ctx.needs_input_grad):
            kept = (torch.stack(each, 1) for each in (before, resets, updates, candidates))
            ctx.save_for_backward(*kept, *weights, *(() if mask_BT is None else (mask_BT,)))
        return torch.stack(states, 1)

    @staticmethod
    def backward(ctx: Any, grad_BTH: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the products and of the recurrent weights."""
        before, resets, updates, candidates, gates_HG, candidate_HH, *mask = ctx.saved_tensors
        dtype, dh = gates_HG.dtype, torch.zeros_like(before[:, 0])
        gates_GH, candidate_T = gates_HG.T.contiguous(), candidate_HH.T.contiguous()
        grad_gates, grad_candidate = (before.new_empty(*before.shape[:2], w.shape[1]) for w in (gates_HG, candidate_HH))
        for t in reversed(ctx.order):
            h, r, u, c = before[:, t], resets[:, t], updates[:, t], candidates[:, t]
            dh = dh + grad_BTH[:, t]
            dnew = dh * mask[0][:, t, None] if mask else dh
            dc = dnew * (1 - u) * (1 - c.square())
            drh = (dc.to(dtype) @ candidate_T).float()
            dgates = torch.cat([drh * h * r * (1 - r), dnew * (h - c) * u * (1 - u)], 1)
            dh = dh - dnew + dnew * u + drh * r + (dgates.to(dtype) @ gates_GH).float()
            grad_gates[:, t], grad_candidate[:, t] = dgates, dc
        rows = [each.flatten(0, 1).to(dtype) for each in (before, resets * before, grad_gates, grad_candidate)]
        weights = (rows[0].T @ rows[2]).float(), (rows[1].T @ rows[3]).float()
        return grad_gates, grad_candidate, *weights, None, None


class Stack(nn.Module):
    """A bidirectional layer with H/2 cells in each direction, followed by a forward layer with H cells.

    Args:
        cell: kind of cell.
        inputs: width of a frame.
        cells: H.
    """

    def __init__(self, cell: Cell, inputs: int, cells: int) -> None:
        super().__init__()
        if cell == "gru":
            self.first = nn.ModuleList([PublishedGRU(inputs, cells // 2, backwards) for backwards in (False, True)])
            self.second: nn.Module = PublishedGRU(cells, cells)
        else:
            self.first = nn.ModuleList([CuDNNLayer(cell, inputs, cells // 2, bidirectional=True)])
            self.second = CuDNNLayer(cell, cells, cells, bidirectional=False)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Return the final state [B, H]."""
        outputs = torch.cat([layer(x_BTD, mask_BT)[0] for layer in self.first], 2)
        final: Tensor = self.second(outputs, mask_BT)[1]
        return final


class FrameLayer(nn.Module):
    """BN, fully connected layer without bias, BN and relu6 on each frame; before each path of a dual RNN.

    Args:
        features: D, also the layer's width.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.input_norm = FrameNorm(features)
        self.weight = glorot(features, features)
        self.norm = FrameNorm(features)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Return transformed frames [B, T, D]."""
        weights_BT = None if mask_BT is None else mask_BT.float()
        return F.relu6(self.norm(self.input_norm(x_BTD, weights_BT) @ self.weight, weights_BT))


class RNN(Pooling):
    """Recurrent pooling: one stack over all features jointly, or one stack for each feature.

    Args:
        config: cells, paths and shuffling.
        widths: D_f of each feature.
    """

    ordered = True

    def __init__(self, config: RNNConfig, widths: Sequence[int]) -> None:
        super().__init__()
        dual = config.paths == "dual"
        self.shuffle, self.widths = config.shuffle, list(widths) if dual else [sum(widths)]
        cells = shares(config.cells, len(self.widths), 8)
        self.outputs, self.scale = sum(cells), 1 / math.sqrt(sum(cells))
        self.before = nn.ModuleList(map(FrameLayer, self.widths) if dual else [])
        self.stacks = nn.ModuleList([Stack(config.cell, d, h) for d, h in zip(self.widths, cells, strict=True)])

    def forward(self, frames: Frames) -> Tensor:
        """Pool normalised frames to [B, outputs]."""
        x_BTD, mask_BT = frames.x, frames.mask
        if self.shuffle and self.training:
            x_BTD = shuffle_frames(x_BTD, mask_BT)
        paths = list(torch.split(x_BTD, self.widths, 2))
        if len(self.before):
            paths = [layer(path, mask_BT) for layer, path in zip(self.before, paths, strict=True)]
        return torch.cat([stack(path, mask_BT) for stack, path in zip(self.stacks, paths, strict=True)], 1)


def shuffle_frames(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Shuffle the real frames of each video; padded frames stay behind them."""
    keys_BT = sample_global(lambda videos: torch.rand(videos, x_BTD.shape[1], device=x_BTD.device), len(x_BTD))
    if mask_BT is not None:
        keys_BT = keys_BT.masked_fill(~mask_BT, 2.0)
    order_BT1 = keys_BT.argsort(1)[..., None]
    return x_BTD.gather(1, order_BT1.expand_as(x_BTD))
