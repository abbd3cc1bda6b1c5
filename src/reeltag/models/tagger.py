"""The tagger, input → pooling → hidden layer → gating → head, and the registry of families."""

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

# The registry: for each family its configuration and the class or function that builds its pooling.
FAMILIES: dict[str, tuple[type[TaggerConfig], Callable[[Any, Sequence[int]], Pooling]]] = {
    "attention": (AttentionConfig, AttentionPooling),
    "dbof": (DBoFConfig, build_dbof),
    "mean": (MeanConfig, Mean),
    "netfv": (NetFVConfig, NetFV),
    "netvlad": (NetVLADConfig, NetVLAD),
    "nextvlad": (NeXtVLADConfig, NeXtVLAD),
    "rnn": (RNNConfig, RNN),
}


# Frames that are tagged at a time on a CPU; with fewer, its matrix products are slower.
CHUNK_FRAMES = 4800


class _ByFamily:
    """Annotation that makes pydantic choose the configuration's class by its `family` key."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(config) for name, (config, _) in FAMILIES.items()}
        return core_schema.tagged_union_schema(choices, discriminator="family")


AnyTaggerConfig = Annotated[TaggerConfig, _ByFamily()]


def parse_config(table: Any, widths: Sequence[int] = ()) -> TaggerConfig:
    """Parse the configuration of a tagger.

    Args:
        table: its keys, `family` among them.
        widths: D_f of the features that the tagger will read, so that sizes that do not fit them are reported too.

    Raises:
        pydantic.ValidationError: unknown family, unknown key, wrong or contradictory values; lists all of them.
    """
    adapter: TypeAdapter[TaggerConfig] = TypeAdapter(AnyTaggerConfig)
    return adapter.validate_python(table, context={"widths": tuple(widths)})


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
        """Return the probabilities of classes.

        Args:
            frames: [B, T, D], `uint8` codes or float32 values.
            lengths: [B] int64, number of real frames of each video; frames past it are ignored.
            counts: [B, T] int64, weight of each frame, 0 past a video's length; by default each real frame counts
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
        """Return probabilities [B, C] of dequantized frames [B, T, D] without padding."""
        return self._classify(self._pool(Frames.plain(l2_normalize(x_BTD, 2))))

    def penalty(self) -> Tensor:
        """Return the L2 penalty that is added to the loss."""
        return self.head.penalty()

    def _vector_by_chunks(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pool videos of similar length together, a few at a time, so that little work goes into padding."""
        order = lengths.argsort(stable=True)
        chunks = torch.split(order, max(1, CHUNK_FRAMES // frames.shape[1]))
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
    try:
        with torch.device("meta"):
            return Tagger(config, widths, classes)
    except (RuntimeError, TypeError) as error:  # TypeError: a single size is too large
        reason = str(error).splitlines()[0]
        raise UsageError(f"{config.family}: is larger than any memory ({reason}); make its sizes smaller") from error
