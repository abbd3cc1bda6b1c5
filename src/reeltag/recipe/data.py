"""The recipe's table `[data]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from reeltag.core.storage import join_path
from reeltag.core.transfer import is_url
from reeltag.data.schema import Schema, expand_preset
from reeltag.data.synthetic import SyntheticSettings


class RecipeTable(BaseModel):
    """A table of a recipe: no other keys than it names, and none that changes later."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False
    )


class HoldoutSettings(RecipeTable):
    """Which training videos are kept from training, to choose by."""

    fraction: float | None = Field(None, gt=0, lt=1, description="share of the videos, or")
    shards: int | None = Field(None, gt=0, description="number of whole shards")

    @field_validator("shards")
    @classmethod
    def _one_of_two(cls, value: int | None, info: ValidationInfo) -> int | None:
        if "fraction" in info.data and (info.data["fraction"] is None) == (value is None):
            raise ValueError("give either fraction or shards")
        return value


class LimitSettings(RecipeTable):
    """How many videos of a split are used: the first ones, in the order of the shards."""

    train: int | None = Field(None, gt=0, description="most training videos, those of the hold-out included")
    test: int | None = Field(None, gt=0, description="most test videos")


class DataSettings(RecipeTable):
    """Where the videos are, or how to generate some."""

    synthetic: SyntheticSettings | None = None
    root: Path | str = Field(Path(), description="folder that the patterns below start from, or its URL")
    layout: Annotated[Schema | None, BeforeValidator(expand_preset)] = Field(None, alias="schema")
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    label_names: str | None = Field(None, description="CSV file that names the classes")
    pca: str | None = Field(None, description="file with the PCA that the features went through, to be shipped")
    videos: int | None = Field(None, gt=0, description="training videos, for the estimates of a plan")
    holdout: HoldoutSettings = HoldoutSettings(fraction=0.1)
    limit: LimitSettings = LimitSettings()
    max_bad_records: int = Field(0, ge=0, description="most bad records of each split that are left out")
    order: Literal["auto", "shuffled", "by-shard"] = Field("auto", description="auto: by-shard behind URLs alone")
    shuffle_window: int = Field(8, gt=0, description="by-shard: how many shards are mixed at a time")
    cache_gb: float | None = Field(None, gt=0, description="most gigabytes of the cache of shards behind URLs")

    @field_validator("root", mode="before")
    @classmethod
    def _place(cls, value: Any) -> Path | str:
        if not isinstance(value, Path | str):
            raise ValueError(f"must be a folder, or its URL, not {value!r}")
        return str(value) if is_url(str(value)) else Path(value)

    @field_validator("layout", "train", "test", "label_names", "pca")
    @classmethod
    def _one_source(cls, value: object, info: ValidationInfo) -> object:
        if "synthetic" in info.data:  # otherwise that has a fault of its own
            generated = info.data["synthetic"] is not None
            if generated and value:
                raise ValueError("cannot be given beside [data.synthetic], which generates the data")
            if not generated and not value and info.field_name in ("layout", "train", "test"):
                raise ValueError("missing or empty; say what the data are, or generate some with [data.synthetic]")
        return value

    @property
    def expected_videos(self) -> int | None:
        """How many videos the training set has, as far as the recipe says."""
        videos = self.synthetic.train_videos if self.synthetic else self.videos
        return videos and min(videos, self.limit.train or videos)

    @property
    def mixed_shards(self) -> int | None:
        """How many training shards are mixed at a time; None for all of them."""
        remote = any(is_url(join_path(self.root, pattern)) for pattern in self.train)
        return self.shuffle_window if self.order == "by-shard" or (self.order == "auto" and remote) else None

    @property
    def record_schema(self) -> Schema:
        """The schema, whichever way it was given."""
        schema = self.synthetic.record_schema if self.synthetic else self.layout
        assert schema is not None  # the validator above saw to it
        return schema
