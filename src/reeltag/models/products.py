"""Matrix products with large weights, in float32 training on a CPU as 1 × 1 convolutions of oneDNN.

For the hundred rows of a batch, the CPU library behind PyTorch's matrix product packs all of the weight again in each
of a step's three products. oneDNN's convolution reads it as it lies in memory: each row of the weight is a pixel, whose
channels are the hidden units.

Shapes: B videos, N inputs, H hidden units, and [N, C] rows of pixels with C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

LARGE = 1 << 20  # weights from which a convolution's overhead is not felt
IMAGES = 128  # over which pixels are divided; with one thread PyTorch gives only 16 images or more to oneDNN


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x [B, N] by a weight [N, H].

    In training sums have another order than those of `x @ weight`, so that the last bits may differ.
    """
    return _Product.apply(x, weight) if _by_onednn(x, weight) else x @ weight  # type: ignore[no-untyped-call]


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and weight.numel() >= LARGE
        and len(weight) % IMAGES == 0
        and weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BN: Tensor, weight_NH: Tensor) -> Tensor:
        x_NB = x_BN.T.contiguous()
        ctx.save_for_backward(x_NB, weight_NH)
        # The sum over pixels of a convolution's input times its output is the gradient of the convolution's weight.
        shape = (x_NB.shape[1], weight_NH.shape[1], 1, 1)
        grad: Tensor = conv2d_weight(_pixels(weight_NH), shape, _pixels(x_NB))  # type: ignore[no-untyped-call]
        return grad.view(shape[:2])

    @staticmethod
    def backward(ctx: Any, grad_BH: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_NB, weight_NH = ctx.saved_tensors
        for_x, for_weight = ctx.needs_input_grad
        return (
            _convolved(weight_NH, grad_BH).T.contiguous() if for_x else None,
            _convolved(x_NB, grad_BH.T) if for_weight else None,
        )


def _convolved(rows_NC: Tensor, kernel_OC: Tensor) -> Tensor:
    """Return rows_NC @ kernel_OC.T as [N, O]."""
    outputs = F.conv2d(_pixels(rows_NC), kernel_OC.contiguous()[..., None, None])
    return outputs.movedim(1, 3).flatten(0, 2)


def _pixels(rows_NC: Tensor) -> Tensor:
    """View rows as the pixels of images [I, C, N/I, 1], channels last."""
    return rows_NC.view(IMAGES, -1, 1, rows_NC.shape[1]).movedim(3, 1)
