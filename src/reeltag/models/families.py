"""Configurations of the families, and their registry. Nothing here imports torch, so recipes are read without it.

The pooling of each family is in the file of its name; `tagger.py` lists the poolings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, GetCoreSchemaHandler, TypeAdapter, ValidationInfo, field_validator
from pydantic_core import CoreSchema, core_schema

from reeltag.models.config import (
    Activation,
    GatingConfig,
    HiddenWidth,
    TaggerConfig,
    at_least_for_further_features,
    feature_widths,
    shares,
)


class AttentionConfig(TaggerConfig):
    """Keys of the attention family."""

    family: Literal["attention"]
    width: int = Field(512, gt=0, description="W, width that frames are projected to")
    heads: int = Field(8, gt=0, description="attention heads; divide the width")
    queries: int = Field(4, gt=0, description="Q, learned queries; the pooled vector has Q·W numbers")

    @field_validator("heads")
    @classmethod
    def _divides_the_width(cls, value: int, info: ValidationInfo) -> int:
        width = info.data.get("width")
        if width is not None and width % value:
            allowed = ", ".join(str(heads) for heads in range(1, min(width, 64) + 1) if width % heads == 0)
            raise ValueError(f"{value} must divide width = {width}; allowed: {allowed}")
        return value


class DBoFConfig(TaggerConfig):
    """Keys of the deep-bag-of-frames family."""

    family: Literal["dbof"]
    pooling: Literal["max", "mean", "soft", "soft+max", "gated"] = Field(
        "gated", description="classic (max, mean), soft (with or without the maximum), or gated"
    )
    clusters: int = Field(4096, gt=0, description="K; soft and gated: of the first feature, each further one gets K/8")
    gating: GatingConfig = GatingConfig(kind="none")

    @field_validator("clusters")
    @classmethod
    def _clusters_for_all(cls, value: int, info: ValidationInfo) -> int:
        joint = info.data.get("pooling") in ("max", "mean")
        return value if joint else at_least_for_further_features(value, info, 8)


class MeanConfig(TaggerConfig):
    """Keys of the mean family; by default the head reads the mean itself."""

    family: Literal["mean"]
    input_norm: bool = False
    hidden: HiddenWidth = 0
    gating: GatingConfig = GatingConfig(kind="none")


class NetFVConfig(TaggerConfig):
    """Keys of the NetFV family."""

    family: Literal["netfv"]
    clusters: int = Field(64, gt=1, description="K of the first feature; each further one gets K/2")
    centres: Literal["free", "coupled"] = Field("free", description="coupled: the assignment's weights, scaled")
    coupling: float = Field(0.01, gt=0, description="scale of coupled centres")

    @field_validator("clusters")
    @classmethod
    def _clusters_for_all(cls, value: int, info: ValidationInfo) -> int:
        return at_least_for_further_features(value, info, 2)

    @field_validator("coupling")
    @classmethod
    def _needs_coupled_centres(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("centres") == "free" and not cls._is_default(info, value):
            raise ValueError(f'{value} needs centres = "coupled"')
        return value


class NetVLADConfig(TaggerConfig):
    """Keys of the NetVLAD family."""

    family: Literal["netvlad"]
    clusters: int = Field(64, gt=1, description="K of the first feature; each further one gets K/2")
    centres: Literal["free", "none"] = Field("free", description="none is LightVLAD")

    @field_validator("clusters")
    @classmethod
    def _clusters_for_all(cls, value: int, info: ValidationInfo) -> int:
        return at_least_for_further_features(value, info, 2)


class NeXtVLADConfig(TaggerConfig):
    """Keys of the NeXtVLAD family."""

    only_training = TaggerConfig.only_training | {"vlad_dropout"}

    family: Literal["nextvlad"]
    clusters: int = Field(64, gt=1, description="K of the first feature; each further one gets K/2")
    expansion: int = Field(2, gt=0, description="λ, a frame is projected from D to λ·D first")
    groups: int = Field(8, gt=0, description="G of the first feature; each further one gets G/2")
    vlad_dropout: float = Field(0.5, ge=0, lt=1, description="fraction of the pooled vector dropped in training")
    input_norm: bool = False
    activation: Activation = "norm"
    gating: GatingConfig = GatingConfig(kind="se")

    @field_validator("clusters")
    @classmethod
    def _clusters_for_all(cls, value: int, info: ValidationInfo) -> int:
        return at_least_for_further_features(value, info, 2)

    @field_validator("groups")
    @classmethod
    def _divides_every_feature(cls, value: int, info: ValidationInfo) -> int:
        widths, expansion = feature_widths(info), info.data.get("expansion")
        if expansion is None or not widths:
            return value
        for width, groups in zip(widths, groups_of(value, len(widths)), strict=True):
            if expansion * width % groups:
                allowed = [str(g) for g in range(1, 65) if _fits(g, widths, expansion)]
                raise ValueError(
                    f"{value} must divide expansion·D for every feature, here {expansion}·{width} by {groups}; "
                    f"allowed: {', '.join(allowed)}"
                )
        return value


def groups_of(count: int, features: int) -> list[int]:
    """Return the number of groups of each feature: G for the first, max(1, G/2) for each further one."""
    return [max(1, groups) for groups in shares(count, features, 2)]


def _fits(count: int, widths: Sequence[int], expansion: int) -> bool:
    return all(expansion * width % g == 0 for width, g in zip(widths, groups_of(count, len(widths)), strict=True))


Cell = Literal["lstm", "gru", "gru-torch"]


class RNNConfig(TaggerConfig):
    """Keys of the RNN family; by default the head reads the state itself."""

    only_training = TaggerConfig.only_training | {"shuffle"}

    family: Literal["rnn"]
    cell: Cell = Field(
        "lstm",
        description="gru resets its state before the matrix product, as published (TensorFlow 1); "
        "gru-torch after it, the form that cuDNN has kernels for",
    )
    cells: int = Field(1024, gt=1, multiple_of=2, description="H; the first layer has H/2 in each direction")
    paths: Literal["joint", "dual"] = Field(
        "joint", description="dual: a stack for each feature after BN, FC, BN and relu6; further ones have H/8 cells"
    )
    shuffle: bool = Field(False, description="shuffle the frames in training")
    input_norm: bool = False
    hidden: HiddenWidth = 0
    gating: GatingConfig = GatingConfig(kind="none")

    @field_validator("paths")
    @classmethod
    def _cells_for_all(cls, value: str, info: ValidationInfo) -> str:
        cells = info.data.get("cells")
        if value == "dual" and cells is not None and len(feature_widths(info)) > 1 and cells % 16:
            raise ValueError(
                f"'dual' gives each further feature cells/8, which must be even; cells = {cells} is no multiple of 16"
            )
        return value


# The registry: the configuration of each family, by its name in recipes.
FAMILIES: dict[str, type[TaggerConfig]] = {
    "attention": AttentionConfig,
    "dbof": DBoFConfig,
    "mean": MeanConfig,
    "netfv": NetFVConfig,
    "netvlad": NetVLADConfig,
    "nextvlad": NeXtVLADConfig,
    "rnn": RNNConfig,
}


class _ByFamily:
    """Annotation that makes pydantic choose the configuration's class by its `family` key."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(config) for name, config in FAMILIES.items()}
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
