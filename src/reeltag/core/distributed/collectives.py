"""One batch shared by the processes of a training: each has some of its rows, and computes as if it had all.

What is random is drawn for the whole batch, as one process would, and each takes its rows of that. Statistics are sums
over all processes. So the number of processes changes only the order in which numbers are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from reeltag.core.distributed.process_group import rank, world_size


def own_rows(count: int) -> slice:
    """Which of `count` rows of the whole batch are this process's."""
    share = count // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def drawn(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """This process's `rows` rows of what is drawn for all rows of the whole batch."""
    whole = draw(rows * world_size())
    return whole[own_rows(len(whole))]


def whole_rows(x: Tensor) -> Tensor:
    """The rows of all processes, in the order of the whole batch."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def whole_sums(*parts: Tensor) -> tuple[Tensor, ...]:
    """Sums over the processes of tensors of one dimension, with gradients, in one message."""
    if world_size() == 1:
        return parts
    total: Tensor = _Sum.apply(torch.cat(parts))  # type: ignore[no-untyped-call]
    return torch.split(total, [len(part) for part in parts])


def whole_mean(x: Tensor) -> Tensor:
    """The mean over the processes; without a gradient."""
    return x if world_size() == 1 else _sum(x) / world_size()


class _Sum(torch.autograd.Function):
    """What each process adds to the sum moves the losses of all, so gradients are summed too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _sum(grad)


def _sum(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total
