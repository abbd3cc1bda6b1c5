"""Collective operations that make ranks compute on their rows of a global batch as one process would on all of them.

Random numbers are sampled for the global batch, and each rank takes its rows of them. Statistics are sums over all
ranks. So the number of ranks changes only the order in which numbers are added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from reeltag.core.distributed.process_group import rank, world_size


def local_rows(count: int) -> slice:
    """Return the slice of this rank's rows in a global batch of `count` rows."""
    local = count // world_size()
    return slice(rank() * local, (rank() + 1) * local)


def sample_global(sample: Callable[[int], Tensor], rows: int) -> Tensor:
    """Sample random numbers for the global batch, and return this rank's rows of them.

    Args:
        sample: samples a tensor with the number of rows that it is called with; equal on all ranks.
        rows: number of rows of this rank.
    """
    sampled = sample(rows * world_size())
    return sampled[local_rows(len(sampled))]


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in the order of the global batch; without a gradient."""
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def all_reduce_sums(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return the sums over all ranks of one-dimensional tensors, with gradients, in one message."""
    if world_size() == 1:
        return parts
    total: Tensor = _Sum.apply(torch.cat(parts))  # type: ignore[no-untyped-call]
    return torch.split(total, [len(part) for part in parts])


def global_mean(x: Tensor) -> Tensor:
    """Return the mean over all ranks; without a gradient."""
    return x if world_size() == 1 else _sum(x) / world_size()


class _Sum(torch.autograd.Function):
    """Sum over ranks. Each rank's term changes the losses of all ranks, so gradients are summed too."""

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
