"""Start a training from the weights of a finished model, whose classes may be others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reeltag.models.tagger import Tagger, class_blocks


@torch.no_grad()
def take_over(
    tagger: Tagger, widths: Sequence[int], weights: Mapping[str, Tensor], sources: Sequence[int | None]
) -> None:
    """Copy a model's weights and statistics into a tagger; what belongs to a new class keeps its initial value.

    Args:
        tagger: of the same architecture, with initial weights; it changes.
        widths: D_f of each feature.
        weights: float32 tensors of the model by name.
        sources: [C] number that each of the tagger's classes has in the model; None for a new one.
    """
    kept = [number for number, source in enumerate(sources) if source is not None]
    known = [source for source in sources if source is not None]
    blocks = class_blocks(tagger.config, widths)
    for name, tensor in tagger.state_dict().items():
        if name not in weights:  # batch norm's counters are not stored
            continue
        if any(blocks[name]):
            tensor[_at(kept, tensor, blocks[name])] = weights[name][_at(known, weights[name], blocks[name])]
        else:
            tensor.copy_(weights[name])


def _at(classes: Sequence[int], tensor: Tensor, blocks: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the index of all that belongs to some classes, one tensor for each dimension."""
    chosen = torch.tensor(classes, dtype=torch.long)
    rows = [
        (chosen[:, None] * block + torch.arange(block)).flatten() if block else torch.arange(size)
        for block, size in zip(blocks, tensor.shape, strict=True)
    ]
    return torch.meshgrid(*rows, indexing="ij")
