"""Configuration that all taggers share; each family adds its own keys in `families.py`.

A rule between two keys is a validator of the later key, so that one pass finds every fault. Rules that need the widths
of the features read them from pydantic's validation context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


class _Config(BaseModel):
    # Defaults are validated too, because a key that was not given may break a rule between keys.
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def _is_default(cls, info: ValidationInfo, value: object) -> bool:
        assert info.field_name is not None
        return bool(value == cls.model_fields[info.field_name].default)


class HeadConfig(_Config):
    """Configuration of the classifier that turns a vector into C probabilities."""

    kind: Literal["logistic", "moe"] = "moe"
    experts: int = Field(2, gt=0, description="M, experts per class; moe only")
    gate_rank: int = Field(0, ge=0, description="rank of the gates' weights, 0 for full; moe only")
    prob_gating: bool = Field(False, description="gate the probabilities; moe only")
    prob_gating_input: Literal["probabilities", "hidden"] = Field(
        "probabilities", description="what the gates of the probabilities are computed from"
    )
    prob_gating_diagonal: bool = Field(True, description="a probability takes part in its own gate")
    l2: float = Field(1e-6, ge=0, description="c of the penalty c·Σw²/2 (published: moe 1e-6, logistic 1e-8)")

    @field_validator("experts", "gate_rank", "prob_gating")
    @classmethod
    def _moe_only(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("kind") == "logistic" and not cls._is_default(info, value):
            raise ValueError(f'{value!r} needs kind = "moe"; leave it out for "logistic"')
        return value

    @field_validator("prob_gating_input", "prob_gating_diagonal")
    @classmethod
    def _needs_prob_gating(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("prob_gating") is False and not cls._is_default(info, value):
            raise ValueError(f"{value!r} needs prob_gating = true")
        return value

    @field_validator("prob_gating_diagonal")
    @classmethod
    def _has_a_diagonal(cls, value: bool, info: ValidationInfo) -> bool:
        if info.data.get("prob_gating_input") == "hidden" and not value:
            raise ValueError(
                'gates fed by the hidden vector have no diagonal; true, or prob_gating_input = "probabilities"'
            )
        return value


class GatingConfig(_Config):
    """Configuration of the gate on the vector before the head."""

    kind: Literal["none", "context", "se"] = Field("context", description="se: squeeze and excitation")
    norm: bool = Field(True, description="batch norm before the sigmoid, otherwise a bias; context only")
    diagonal: bool = Field(True, description="a feature takes part in its own gate; context only")
    reduction: int = Field(8, gt=0, description="width of the vector over that of the bottleneck; se only")

    @field_validator("norm", "diagonal", "reduction")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        kind = "se" if info.field_name == "reduction" else "context"
        if info.data.get("kind") not in (kind, None) and not cls._is_default(info, value):
            raise ValueError(f'{value!r} needs kind = "{kind}"')
        return value


HiddenWidth = Annotated[int, Field(ge=0, description="H, width of the hidden layer; 0 for none")]
Part = Literal["input_norm", "pooling", "hidden", "gate"]  # of a tagger, before its head
Activation = Annotated[
    Literal["bias", "norm", "relu6"],
    Field(description="after the hidden layer's product: a bias; batch norm; batch norm and relu6"),
]


class TaggerConfig(_Config):
    """Keys that every family has; a family may override defaults.

    Attributes:
        only_training: keys that only training reads; two models that differ in nothing else compute the same.
    """

    only_training: ClassVar[frozenset[str]] = frozenset({"dropout", "bn_decay"})

    family: str
    input_norm: bool = Field(True, description="batch norm over the normalised frames")
    hidden: HiddenWidth = 1024
    activation: Activation = "bias"
    gating: GatingConfig = GatingConfig()
    dropout: float = Field(0.0, ge=0, lt=1, description="fraction of the units before the head dropped in training")
    bn_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of batch-norm statistics per step; a training of few steps needs less (0.99)",
    )
    head: HeadConfig = HeadConfig()

    def architecture(self) -> dict[str, Any]:
        """Return the keys, as JSON, that decide the tensors and what is computed with them."""
        return self.model_dump(mode="json", exclude={**dict.fromkeys(self.only_training, True), "head": {"l2"}})

    @field_validator("activation")
    @classmethod
    def _needs_a_hidden_layer(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("hidden") == 0 and not cls._is_default(info, value):
            raise ValueError(f"{value!r} needs a hidden layer; leave it out, or give hidden above 0")
        return value

    @field_validator("gating")
    @classmethod
    def _leaves_a_bottleneck(cls, value: GatingConfig, info: ValidationInfo) -> GatingConfig:
        hidden = info.data.get("hidden") or 0
        if value.kind == "se" and 0 < hidden < value.reduction:
            raise ValueError(f"reduction = {value.reduction} must be at most hidden = {hidden}")
        return value


def feature_widths(info: ValidationInfo) -> Sequence[int]:
    """Return the widths D_f of the features that a configuration is validated for; empty if they are unknown."""
    widths: Sequence[int] = (info.context or {}).get("widths", ())
    return widths


def at_least_for_further_features(value: int, info: ValidationInfo, share: int) -> int:
    """Check a number of clusters of which each further feature gets 1/share, and return it.

    Raises:
        ValueError: there are further features, and they would get no cluster.
    """
    if len(feature_widths(info)) > 1 and value < share:
        raise ValueError(f"{value} must be at least {share}, because each further feature gets 1/{share} of it")
    return value


def shares(count: int, features: int, divisor: int) -> list[int]:
    """Return the number of clusters of each feature: `count` for the first, count/divisor for each further one."""
    return [count, *[count // divisor] * (features - 1)]
