"""What every tagger's configuration has; each family adds its own keys (see its file)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class HeadConfig(BaseModel):
    """The classifier that turns a vector into C probabilities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["logistic", "moe"] = "moe"
    experts: int = Field(2, gt=0, description="M, experts a class; moe only")
    prob_gating: bool = Field(False, description="gate the probabilities by each other; moe only")
    l2: float = Field(1e-6, ge=0, description="c of the penalty c·Σw²/2 (published: moe 1e-6, logistic 1e-8)")


class TaggerConfig(BaseModel):
    """Keys that every family has."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    hidden: int = Field(1024, gt=0, description="H, width of the hidden layer")
    relu: bool = Field(False, description="batch norm and relu6 after the hidden layer, instead of a bias")
    gating: bool = Field(True, description="context gating after the hidden layer")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of hidden units dropped in training")
    bn_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay of batch-norm statistics a step; a training of few steps needs less (0.99)",
    )
    head: HeadConfig = HeadConfig()
