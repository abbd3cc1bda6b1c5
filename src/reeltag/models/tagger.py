"""The tagger: input → pooling → hidden layer → gating → head. And the registry of families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema
from torch import Tensor, nn

from reeltag.core.distributed.process_group import world_size
from reeltag.core.errors import UsageError
from reeltag.models.attention import AttentionConfig, AttentionPooling
from reeltag.models.config import TaggerConfig
from reeltag.models.dbof import DBoFConfig, build_dbof
from reeltag.models.frames import Frames, frame_mask
from reeltag.models.gating import build_gate
from reeltag.models.heads import build_head
from reeltag.models.layers import Dropout, Hidden, InputNorm, Pooling, dequantize, l2_normalize
from reeltag.models.mean import Mean, MeanConfig
from reeltag.models.netfv import NetFV, NetFVConfig
from reeltag.models.netvlad import NetVLAD, NetVLADConfig
from reeltag.models.nextvlad import NeXtVLAD, NeXtVLADConfig
from reeltag.models.rnn import RNN, RNNConfig

# The registry: one line a family, its configuration and what makes its pooling.
FAMILIES: dict[str, tuple[type[TaggerConfig], Callable[[Any, Sequence[int]], Pooling]]] = {
    "attention": (AttentionConfig, AttentionPooling),
    "dbof": (DBoFConfig, build_dbof),
    "mean": (MeanConfig, Mean),
    "netfv": (NetFVConfig, NetFV),
    "netvlad": (NetVLADConfig, NetVLAD),
    "nextvlad": (NeXtVLADConfig, NeXtVLAD),
    "rnn": (RNNConfig, RNN),
}


# Frames that are tagged at a time on a processor; fewer make its matrix products slower.
CHUNK_FRAMES = 4800


class _ByFamily:
    """Tells pydantic to choose the configuration's class by its `family` key."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(config) for name, (config, _) in FAMILIES.items()}
        return core_schema.tagged_union_schema(choices, discriminator="family")


AnyTaggerConfig = Annotated[TaggerConfig, _ByFamily()]


def parse_config(table: Any, widths: Sequence[int] = ()) -> TaggerConfig:
    """The configuration that a table with a `family` key describes.

    Args:
        table: the keys.
        widths: D_f of the features it is meant for, so that what does not fit them is found.

    Raises:
        pydantic.ValidationError: unknown family, unknown key, wrong or contradictory value; lists them all.
    """
    adapter: TypeAdapter[TaggerConfig] = TypeAdapter(AnyTaggerConfig)
    return adapter.validate_python(table, context={"widths": tuple(widths)})


class Tagger(nn.Module):
    """Frames of a video to probabilities of classes.

    Args:
        config: one family's configuration.
        widths: D_f of each feature, in the order in which frames concatenate them.
        classes: C.
    """

    def __init__(self, config: TaggerConfig, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.config = config
        self.input_norm = InputNorm(sum(widths)) if config.input_norm else None
        self.pooling = FAMILIES[config.family][1](config, widths)
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
        """Tag videos.

        Args:
            frames: [B, T, D], `uint8` codes or float32 values.
            lengths: [B] int64, real frames of each video; the others are ignored.
            counts: [B, T] int64, how often each frame counts, 0 past a video's length; by default each real one
                once.

        Returns:
            Probabilities [B, C], float32.
        """
        whole = self.training or self.pooling.ordered or counts is not None or frames.device.type != "cpu"
        if whole or bool((lengths == lengths[0]).all()):
            vector = self._vector(frames, lengths, counts)
        else:
            vector = self._vector_by_chunks(frames, lengths)
        return self._classify(vector)

    def tag(self, x_BTD: Tensor) -> Tensor:
        """Tag dequantised frames that are all real."""
        return self._classify(self._pool(Frames.plain(l2_normalize(x_BTD, 2))))

    def penalty(self) -> Tensor:
        """L2 penalty, to be added to the loss."""
        return self.head.penalty()

    def _vector_by_chunks(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool a few videos of about one length at a time, so that little of the work is on padding."""
        order = lengths.argsort(stable=True)
        chunks = torch.split(order, max(1, CHUNK_FRAMES // frames.shape[1]))
        vectors = [self._vector(frames[some, : int(lengths[some[-1]])], lengths[some]) for some in chunks]
        return torch.cat(vectors)[order.argsort()]

    def _vector(self, frames: Tensor, lengths: Tensor, counts: Tensor | None = None) -> Tensor:
        x_BTD = dequantize(frames) if frames.dtype == torch.uint8 else frames
        mask_BT = frame_mask(lengths, frames.shape[1])
        # Processes that share a batch send each other the same messages, so none takes a shorter way than the others.
        shared = self.training and world_size() > 1
        mask = None if not shared and bool(mask_BT.all()) else mask_BT
        # Padding is 0 after dequantising, not before.
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
    """A tagger with initial weights drawn from a seed; leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tagger(config, widths, classes)


def meta_tagger(config: TaggerConfig, widths: Sequence[int], classes: int) -> Tagger:
    """A tagger without memory for its weights: for shapes, sizes and loading.

    Raises:
        UsageError: the sizes are more than torch can count.
    """
    try:
        with torch.device("meta"):
            return Tagger(config, widths, classes)
    except (RuntimeError, TypeError) as error:  # TypeError: a single one of them is
        reason = str(error).splitlines()[0]
        raise UsageError(f"{config.family}: is larger than any memory ({reason}); make its sizes smaller") from error
