"""The recipe's table `[data]`."""

from __future__ import annotations

from operator import not_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from reeltag.core.remote_files import is_url
from reeltag.core.storage import join_path
from reeltag.data.labels import Encoding
from reeltag.data.schema import Schema, expand_preset
from reeltag.data.synthetic import SyntheticSettings


class RecipeTable(BaseModel):
    """Base class of a recipe's tables: immutable, and without other keys than the declared ones."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, validate_default=True, allow_inf_nan=False
    )


class HoldoutSettings(RecipeTable):
    """Hold-out: training videos that no model is trained on, by which models are chosen."""

    fraction: float | None = Field(None, gt=0, lt=1, description="fraction of the training videos; or give `shards`")
    shards: int | None = Field(None, gt=0, description="number of whole training shards; or give `fraction`")
    # Not part of hashes unless set, so that trainings that are older than this key stay valid.
    patterns: tuple[str, ...] = Field(
        (),
        alias="from",
        exclude_if=not_,
        description="patterns of the training shards that the hold-out is drawn from; all by default",
    )

    @field_validator("shards")
    @classmethod
    def _one_of_two(cls, value: int | None, info: ValidationInfo) -> int | None:
        if "fraction" in info.data and (info.data["fraction"] is None) == (value is None):
            raise ValueError("give either fraction or shards")
        return value


class LimitSettings(RecipeTable):
    """Largest number of videos of each split; the first ones are used, in the order of the shards."""

    train: int | None = Field(
        None, gt=0, description="largest number of training videos, including those of the hold-out"
    )
    test: int | None = Field(None, gt=0, description="largest number of test videos")


class DataSettings(RecipeTable):
    """Location and format of the videos, or settings for generated ones."""

    synthetic: SyntheticSettings | None = None
    root: Path | str = Field(Path(), description="folder of the patterns below, or its URL")
    layout: Annotated[Schema | None, BeforeValidator(expand_preset)] = Field(None, alias="schema")
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    labels: str | None = Field(
        None, description="file of the labels of features that are not shards; by default they are found beside these"
    )
    label_encoding: Encoding | None = Field(
        None, description="form of these labels; by default it is found, if only one fits"
    )
    label_names: str | None = Field(None, description="CSV file that names the classes")
    pca: str | None = Field(
        None, description="file with the PCA that was applied to the features; stored in the model file"
    )
    videos: int | None = Field(None, gt=0, description="number of training videos, for the estimates of a plan")
    holdout: HoldoutSettings = HoldoutSettings(fraction=0.1)
    limit: LimitSettings = LimitSettings()
    max_bad_records: int = Field(0, ge=0, description="largest number of bad records of each split that may be skipped")
    order: Literal["auto", "shuffled", "by-shard"] = Field(
        "auto", description="order of the training videos; auto: by-shard for shards at URLs, otherwise shuffled"
    )
    shuffle_window: int = Field(8, gt=0, description="by-shard: number of shards that are mixed at a time")
    cache_gb: float | None = Field(None, gt=0, description="largest size of the cache of shards at URLs, in gigabytes")

    @field_validator("root", mode="before")
    @classmethod
    def _place(cls, value: Any) -> Path | str:
        if not isinstance(value, Path | str):
            raise ValueError(f"must be a folder, or its URL, not {value!r}")
        return str(value) if is_url(str(value)) else Path(value)

    @field_validator("layout", "train", "test", "labels", "label_encoding", "label_names", "pca")
    @classmethod
    def _one_source(cls, value: object, info: ValidationInfo) -> object:
        if "synthetic" in info.data:  # absent if it has a fault itself
            generated = info.data["synthetic"] is not None
            if generated and value:
                raise ValueError("cannot be given beside [data.synthetic], which generates the data")
            if not generated and not value and info.field_name in ("layout", "train", "test"):
                raise ValueError("missing or empty; describe the data, or generate some with [data.synthetic]")
        return value

    @property
    def expected_videos(self) -> int | None:
        """Number of training videos according to the recipe; None if it does not say."""
        videos = self.synthetic.train_videos if self.synthetic else self.videos
        return videos and min(videos, self.limit.train or videos)

    @property
    def mixed_shards(self) -> int | None:
        """Number of training shards that are mixed at a time; None for all of them."""
        remote = any(is_url(join_path(self.root, pattern)) for pattern in self.train)
        return self.shuffle_window if self.order == "by-shard" or (self.order == "auto" and remote) else None

    @property
    def record_schema(self) -> Schema:
        """Schema of the records, of generated data too."""
        schema = self.synthetic.record_schema if self.synthetic else self.layout
        assert schema is not None  # the validator above has checked it
        return schema
