"""Weighted ensembles of taggers, and predictions batch by batch.

All real frames are used and padding is masked, so results are deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reeltag.artifact.quantization.quantize import is_large
from reeltag.artifact.tagging_rule import Calibration
from reeltag.core.memory import explain_out_of_memory
from reeltag.core.text import counted
from reeltag.data.loader import Batch
from reeltag.data.schema import Schema

BATCH_SIZE = 64
LARGEST_BATCH, FRAMES = 256, 2560  # videos tagged at once where they are short, and their frames
LESS_MEMORY = "end other programs, take fewer processes, a smaller model, or one of the modes bf16 and small"


def videos_at_once(schema: Schema) -> int:
    """Return the number of videos to tag at once: 64, or up to 256 of few frames, so that each call has more to do."""
    frames = schema.example_frames if schema.level == "frame" else 1
    return min(max(BATCH_SIZE, FRAMES // frames), LARGEST_BATCH)


@dataclass(frozen=True)
class Predictions:
    """Predictions of a model for B videos or segments.

    Attributes:
        ids: of the videos.
        probabilities: [B, C] float32.
        labels: [B, C] bool, or None.
        rated: [B, C] bool, True for classes with a known label; None if all are known.
    """

    ids: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor | None
    rated: Tensor | None = None

    @property
    def comparable(self) -> Tensor:
        """Probabilities [B, C], with -1 for classes without a known label, so that these rank last."""
        return self.probabilities if self.rated is None else self.probabilities.masked_fill(~self.rated, -1)


class Ensemble(nn.Module):
    """Weighted mean of the probabilities of several models.

    Args:
        taggers: modules that compute the members, or ensembles of them; with `bf16` their large parameters are
            converted in place.
        weights: of the members in the mean; they sum to 1.
        bf16: compute matrix products in bf16 and keep large weights in it, in half the memory, except those of
            `torch.nn.LSTM` and `GRU`.
    """

    def __init__(self, taggers: Iterable[nn.Module], weights: Sequence[float], bf16: bool = False) -> None:
        super().__init__()
        self.weights, self.bf16 = list(weights), bf16
        self.taggers = nn.ModuleList(self._arranged(tagger) for tagger in taggers)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return probabilities [B, C] for frames [B, T, D] and lengths [B]."""
        parts = zip(self.taggers, self.weights, strict=True)
        with torch.autocast(frames.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return torch.stack([weight * tagger(frames, lengths) for tagger, weight in parts]).sum(0)

    def _arranged(self, tagger: nn.Module) -> nn.Module:
        for module in tagger.modules():
            if self.bf16 and not isinstance(module, nn.RNNBase):  # its kernels need weights and biases of one type
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim > 1 and is_large(parameter):
                        parameter.data = parameter.data.bfloat16()
        return tagger


class Calibrated(nn.Module):
    """Model whose probabilities are calibrated.

    Args:
        model: from frames [B, T, D] and lengths [B] to probabilities [B, C].
        calibration: of these.
    """

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        super().__init__()
        self.model, self.calibration = model, calibration

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return calibrated probabilities [B, C] for frames [B, T, D] and lengths [B]."""
        return self.calibration(self.model(frames, lengths))


@torch.inference_mode()
def predict_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Predictions]:
    """Predict batches in order; the model must be in evaluation mode.

    Raises:
        OutOfMemoryError: a batch needs more memory than is available.
    """
    first = next(model.parameters(), None)  # None: other engines than PyTorch compute
    device = torch.device("cpu") if first is None else first.device
    for batch in batches:
        with explain_out_of_memory(f"tagging {counted(len(batch), 'video')} at once", LESS_MEMORY):
            on_device = batch.to(device)
            probabilities = model(on_device.frames, on_device.lengths).cpu()
        yield Predictions(batch.ids, probabilities, batch.labels, batch.rated)
