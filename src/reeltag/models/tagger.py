"""The tagger, input → pooling → hidden layer → gating → head, and the poolings of the families."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reeltag.core.distributed.process_group import world_size
from reeltag.core.errors import UsageError
from reeltag.models.attention import AttentionPooling
from reeltag.models.config import TaggerConfig
from reeltag.models.dbof import build_dbof
from reeltag.models.frames import Frames, frame_mask
from reeltag.models.gating import build_gate
from reeltag.models.heads import build_head
from reeltag.models.layers import Dropout, Hidden, InputNorm, Pooling, dequantize, l2_normalize
from reeltag.models.mean import Mean
from reeltag.models.netfv import NetFV
from reeltag.models.netvlad import NetVLAD
from reeltag.models.nextvlad import NeXtVLAD
from reeltag.models.rnn import RNN

# For each family the class or function that builds its pooling from its configuration and the widths of the features.
POOLINGS: dict[str, Callable[[Any, Sequence[int]], Pooling]] = {
    "attention": AttentionPooling,
    "dbof": build_dbof,
    "mean": Mean,
    "netfv": NetFV,
    "netvlad": NetVLAD,
    "nextvlad": NeXtVLAD,
    "rnn": RNN,
}


# Frames that are tagged at a time on a CPU; with fewer, its matrix products are slower.
CHUNK_FRAMES = 4800


class Tagger(nn.Module):
    """Model from the frames of videos to probabilities of classes.

    Args:
        config: one family's configuration.
        widths: D_f of each feature, in the order in which frames concatenate them.
        classes: C.
    """

    def __init__(self, config: TaggerConfig, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.config = config
        self.input_norm = InputNorm(sum(widths)) if config.input_norm else None
        self.pooling = POOLINGS[config.family](config, widths)
        width, self.hidden = self.pooling.outputs, None
        if config.hidden:
            self.hidden = Hidden(width, config.hidden, self.pooling.scale, config.activation)
            width = config.hidden
        self.gate = build_gate(width, config.gating)
        self.dropout = Dropout(config.dropout)
        self.head = build_head(width, classes, config.head)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1 - config.bn_decay

    def forward(self, frames: Tensor, lengths: Tensor, counts: Tensor | None = None) -> Tensor:
        """Return the probabilities of classes.

        Args:
            frames: [B, T, D], `uint8` codes or float32 values.
            lengths: [B] int64, number of real frames of each video; frames past it are ignored.
            counts: [B, T] int64, weight of each frame, 0 past a video's length; by default each real frame counts
                once.

        Returns:
            Probabilities [B, C], float32.
        """
        whole = self.training or counts is not None or frames.device.type != "cpu"
        if whole or bool((lengths == lengths[0]).all()):
            vector = self._vector(frames, lengths, counts)
        else:
            vector = self._vector_by_chunks(frames, lengths)
        return self._classify(vector)

    def tag(self, x_BTD: Tensor) -> Tensor:
        """Return probabilities [B, C] of dequantized frames [B, T, D] without padding."""
        return self._classify(self._pool(Frames.plain(l2_normalize(x_BTD, 2))))

    def penalty(self) -> Tensor:
        """Return the L2 penalty that is added to the loss."""
        return self.head.penalty()

    def _vector_by_chunks(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool videos of similar length together, so that little work goes into padding."""
        order = lengths.argsort(stable=True)
        shorter = int((lengths < lengths.max()).sum())
        # Where most videos are equally long, they need no mask, and recurrent layers no packed sequences.
        split = 2 * shorter <= len(order)
        groups = torch.split(order, [shorter, len(order) - shorter]) if split else (order,)
        size = len(order) if self.pooling.ordered else max(1, CHUNK_FRAMES // frames.shape[1])
        chunks = [chunk for group in groups for chunk in torch.split(group, size)]
        vectors = [self._vector(frames[some, : int(lengths[some[-1]])], lengths[some]) for some in chunks]
        return torch.cat(vectors)[order.argsort()]

    def _vector(self, frames: Tensor, lengths: Tensor, counts: Tensor | None = None) -> Tensor:
        x_BTD = dequantize(frames) if frames.dtype == torch.uint8 else frames
        mask_BT = frame_mask(lengths, frames.shape[1])
        # Ranks that share a batch must call the same collectives, so none may skip the mask on its own.
        shared = self.training and world_size() > 1
        mask = None if not shared and bool(mask_BT.all()) else mask_BT
        # Padding has to be 0 after dequantizing, not before.
        x_BTD = x_BTD if mask is None else x_BTD.masked_fill(~mask[..., None], 0)
        return self._pool(Frames.plain(l2_normalize(x_BTD, 2), mask, None if counts is None else counts.float()))

    def _pool(self, frames: Frames) -> Tensor:
        if self.input_norm is not None:
            frames = self.input_norm(frames)
        vector: Tensor = self.pooling(frames)
        return vector

    def _classify(self, vector: Tensor) -> Tensor:
        if self.hidden is not None:
            vector = self.hidden(vector)
        probabilities: Tensor = self.head(self.dropout(self.gate(vector)))
        return probabilities


def build_tagger(config: TaggerConfig, widths: Sequence[int], classes: int, seed: int) -> Tagger:
    """Build a tagger with initial weights sampled from a seed; the global generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tagger(config, widths, classes)


def meta_tagger(config: TaggerConfig, widths: Sequence[int], classes: int) -> Tagger:
    """Build a tagger on the meta device, without memory for its weights: for shapes, sizes and loading.

    Raises:
        UsageError: a tensor would be larger than torch can address.
    """
    with _on_meta_device(config):
        return Tagger(config, widths, classes)


def class_blocks(config: TaggerConfig, widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return which dimensions of a tagger's tensors are over classes: the numbers of each that belong to one class.

    Dimensions over classes are those that grow with C. They are class-major: the numbers of a class are adjacent.

    Args:
        config: one family's configuration.
        widths: D_f of each feature.

    Returns:
        By the tensor's name one number for each dimension, 0 for a dimension that is not over classes.
    """
    one, two = (meta_tagger(config, widths, classes).state_dict() for classes in (1, 2))
    return {
        name: tuple(more - fewer for fewer, more in zip(one[name].shape, two[name].shape, strict=True)) for name in one
    }


def meta_pooling(config: TaggerConfig, widths: Sequence[int]) -> Pooling:
    """Build a pooling on the meta device.

    Raises:
        UsageError: as `meta_tagger`.
    """
    with _on_meta_device(config):
        return POOLINGS[config.family](config, widths)


@contextmanager
def _on_meta_device(config: TaggerConfig) -> Iterator[None]:
    try:
        with torch.device("meta"):
            yield
    except (RuntimeError, TypeError) as error:  # TypeError: a single size is too large
        reason = str(error).splitlines()[0]
        raise UsageError(f"{config.family}: is larger than any memory ({reason}); make its sizes smaller") from error
