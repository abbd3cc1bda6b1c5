"""The tagger: input → pooling → hidden layer → gating → head. And the registry of families."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema
from torch import Tensor, nn

from reeltag.models.config import TaggerConfig
from reeltag.models.heads import build_head
from reeltag.models.layers import ContextGate, FrameNorm, Hidden, dequantize, frame_mask, l2_normalize
from reeltag.models.netvlad import NetVLAD, NetVLADConfig

# The registry: one line a family, its configuration and its pooling.
FAMILIES: dict[str, tuple[type[TaggerConfig], Any]] = {
    "netvlad": (NetVLADConfig, NetVLAD),
}


class _ByFamily:
    """Tells pydantic to choose the configuration's class by its `family` key."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(config) for name, (config, _) in FAMILIES.items()}
        return core_schema.tagged_union_schema(choices, discriminator="family")


AnyTaggerConfig = Annotated[TaggerConfig, _ByFamily()]


def parse_config(table: Any) -> TaggerConfig:
    """The configuration that a table with a `family` key describes.

    Raises:
        pydantic.ValidationError: unknown family, unknown key or wrong value.
    """
    adapter: TypeAdapter[TaggerConfig] = TypeAdapter(AnyTaggerConfig)
    return adapter.validate_python(table)


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
        self.input_norm = FrameNorm(sum(widths))
        self.pooling: Any = FAMILIES[config.family][1](config, widths)
        self.hidden = Hidden(self.pooling.outputs, config.hidden, self.pooling.scale, config.relu)
        self.gate = ContextGate(config.hidden) if config.gating else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.head = build_head(config.hidden, classes, config.head)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1 - config.bn_decay

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Tag videos.

        Args:
            frames: [B, T, D], `uint8` codes or float32 values.
            lengths: [B] int64, real frames of each video; the others are ignored.

        Returns:
            Probabilities [B, C], float32.
        """
        x_BTD = dequantize(frames) if frames.dtype == torch.uint8 else frames
        mask_BT = frame_mask(lengths, frames.shape[1])
        if bool(mask_BT.all()):
            return self.tag(x_BTD, None)
        return self.tag(x_BTD * mask_BT[..., None], mask_BT)

    def tag(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Tag dequantised frames; the mask is None where every frame is real."""
        x_BTD = self.input_norm(l2_normalize(x_BTD, 2), mask_BT)
        pooled = self.pooling(x_BTD, mask_BT)
        probabilities: Tensor = self.head(self.dropout(self.gate(self.hidden(pooled))))
        return probabilities

    def penalty(self) -> Tensor:
        """L2 penalty, to be added to the loss."""
        return self.head.penalty()


def build_tagger(config: TaggerConfig, widths: Sequence[int], classes: int, seed: int) -> Tagger:
    """A tagger with initial weights drawn from a seed; leaves the global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tagger(config, widths, classes)


def meta_tagger(config: TaggerConfig, widths: Sequence[int], classes: int) -> Tagger:
    """A tagger without memory for its weights: for shapes, sizes and loading."""
    with torch.device("meta"):
        return Tagger(config, widths, classes)
