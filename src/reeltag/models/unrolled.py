"""Recurrent layers as one product after another, so that inputs and gradients of every product can be seen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reeltag.models.rnn import CuDNNLayer, PublishedGRU


class UnrolledLayer(nn.Module):
    """Recurrent layer that computes what another one does; padded frames take part in no product.

    Args:
        layer: whose parameters are used.
    """

    def __init__(self, layer: CuDNNLayer | PublishedGRU) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return outputs [B, T, cells or twice that] and the final state [B, cells]; of an LSTM its cell state."""
        real_BT = torch.ones(x_BTD.shape[:2], dtype=torch.bool) if mask_BT is None else mask_BT
        if isinstance(self.layer, PublishedGRU):
            return self._published_gru(self.layer, x_BTD, real_BT)
        run = _lstm if isinstance(self.layer.rnn, nn.LSTM) else _gru
        endings = ["", "_reverse"] if self.layer.rnn.bidirectional else [""]
        found = [run(self.layer.rnn, ending, x_BTD, real_BT) for ending in endings]
        return torch.cat([outputs for outputs, _ in found], 2), found[-1][1]

    @staticmethod
    def _published_gru(layer: PublishedGRU, x_BTD: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
        gates = _by_frame(x_BTD[real_BT] @ layer.gates[: layer.inputs] + layer.gates_bias, real_BT)
        candidates = _by_frame(x_BTD[real_BT] @ layer.candidate[: layer.inputs] + layer.candidate_bias, real_BT)
        h = x_BTD.new_zeros(len(x_BTD), candidates.shape[2])
        states = [h] * x_BTD.shape[1]
        for t in _order(real_BT, layer.backwards):
            rows = real_BT[:, t].nonzero()[:, 0]
            before = h[rows]
            r, u = torch.sigmoid(gates[rows, t] + before @ layer.gates[layer.inputs :]).chunk(2, 1)
            c = torch.tanh(candidates[rows, t] + (r * before) @ layer.candidate[layer.inputs :])
            h = h.index_copy(0, rows, torch.lerp(c, before, u))
            states[t] = h
        return torch.stack(states, 1), h


def _lstm(rnn: nn.RNNBase, ending: str, x_BTD: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
    gates, w_hh, b_hh = _parts(rnn, ending, x_BTD, real_BT)
    h = c = x_BTD.new_zeros(len(x_BTD), rnn.hidden_size)
    outputs = [torch.zeros_like(h)] * x_BTD.shape[1]
    for t in _order(real_BT, bool(ending)):
        rows = real_BT[:, t].nonzero()[:, 0]
        i, f, g, o = (gates[rows, t] + F.linear(h[rows], w_hh, b_hh)).chunk(4, 1)
        cell = torch.sigmoid(f) * c[rows] + torch.sigmoid(i) * torch.tanh(g)
        output = torch.sigmoid(o) * torch.tanh(cell)
        c, h = c.index_copy(0, rows, cell), h.index_copy(0, rows, output)
        outputs[t] = torch.zeros_like(h).index_copy(0, rows, output)
    return torch.stack(outputs, 1), c


def _gru(rnn: nn.RNNBase, ending: str, x_BTD: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor]:
    gates, w_hh, b_hh = _parts(rnn, ending, x_BTD, real_BT)
    h = x_BTD.new_zeros(len(x_BTD), rnn.hidden_size)
    outputs = [h] * x_BTD.shape[1]
    for t in _order(real_BT, bool(ending)):
        rows = real_BT[:, t].nonzero()[:, 0]
        x_r, x_z, x_n = gates[rows, t].chunk(3, 1)
        h_r, h_z, h_n = F.linear(h[rows], w_hh, b_hh).chunk(3, 1)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        output = torch.lerp(n, h[rows], torch.sigmoid(x_z + h_z))
        h = h.index_copy(0, rows, output)
        outputs[t] = torch.zeros_like(h).index_copy(0, rows, output)
    return torch.stack(outputs, 1), h


def _parts(rnn: nn.RNNBase, ending: str, x_BTD: Tensor, real_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gates' products of all frames [B, T, gates·H], and the recurrent weight and bias."""
    w_ih, w_hh, b_ih, b_hh = (
        getattr(rnn, f"{name}_l0{ending}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    return _by_frame(F.linear(x_BTD[real_BT], w_ih, b_ih), real_BT), w_hh, b_hh


def _by_frame(rows_NH: Tensor, real_BT: Tensor) -> Tensor:
    """Scatter the rows of real frames [N, H] to [B, T, H]."""
    spread = rows_NH.new_zeros(real_BT.numel(), rows_NH.shape[1])
    return spread.index_copy(0, real_BT.flatten().nonzero()[:, 0], rows_NH).view(*real_BT.shape, -1)


def _order(real_BT: Tensor, backwards: bool) -> list[int]:
    times = list(range(real_BT.shape[1]))
    return times[::-1] if backwards else times
