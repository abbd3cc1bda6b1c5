"""A weighted ensemble of taggers, and its predictions batch by batch.

All real frames take part, masked, so that results are deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reeltag.artifact.quantization.quantize import is_large
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.text import counted
from reeltag.data.loader import Batch

BATCH_SIZE = 64
LESS_MEMORY = "end other programs, take fewer processes, a smaller model, or one of the modes bf16 and small"


@dataclass(frozen=True)
class Predictions:
    """What a model says of B videos, or of their segments.

    Attributes:
        ids: names of the videos.
        probabilities: [B, C] float32.
        labels: [B, C] bool, or None.
        rated: [B, C] bool, which classes the labels tell of; None: all.
    """

    ids: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor | None
    rated: Tensor | None = None

    @property
    def comparable(self) -> Tensor:
        """[B, C], the probabilities, but -1 where no label tells what is right, so that it ranks behind all others."""
        return self.probabilities if self.rated is None else self.probabilities.masked_fill(~self.rated, -1)


class Ensemble(nn.Module):
    """The weighted mean of models' probabilities.

    Args:
        taggers: the members, or ensembles of them; theirs are the weights whose type changes.
        weights: their shares; sum to 1.
        bf16: compute matrix products in bf16, and keep the large weights in it too, in half the memory, but for those
            of `torch.nn.LSTM` and `GRU`.
    """

    def __init__(self, taggers: Iterable[nn.Module], weights: Sequence[float], bf16: bool = False) -> None:
        super().__init__()
        self.weights, self.bf16 = list(weights), bf16
        self.taggers = nn.ModuleList(self._arranged(tagger) for tagger in taggers)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames [B, T, D] and lengths [B] to probabilities [B, C]."""
        parts = zip(self.taggers, self.weights, strict=True)
        with torch.autocast(frames.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return torch.stack([weight * tagger(frames, lengths) for tagger, weight in parts]).sum(0)

    def _arranged(self, tagger: nn.Module) -> nn.Module:
        for module in tagger.modules():
            if self.bf16 and not isinstance(module, nn.RNNBase):  # whose kernels want weights and biases of one type
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim > 1 and is_large(parameter):
                        parameter.data = parameter.data.bfloat16()
        return tagger


@torch.inference_mode()
def predict_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Predictions]:
    """Tag batches, in their order; the model must be in evaluation mode.

    Raises:
        OutOfMemoryError: a batch takes more memory than there is.
    """
    device = next(model.parameters()).device
    for batch in batches:
        with explain_out_of_memory(f"tagging {counted(len(batch), 'video')} at once", LESS_MEMORY):
            there = batch.to(device)
            probabilities = model(there.frames, there.lengths).cpu()
        yield Predictions(batch.ids, probabilities, batch.labels, batch.rated)
