"""Record schema: feature names, widths, classes and the frame limit."""

from __future__ import annotations

from operator import not_
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema

from reeltag.core.errors import UsageError

MAX_FRAMES = 1_000_000  # of a video
MAX_FEATURES = 64  # of a video
# Keys are left out of dumps at their defaults, so that hashes of older stages and files stay valid.
_is_fail, _is_native, _is_listed = "fail".__eq__, "native".__eq__, "listed".__eq__
_is_first = (1).__eq__
DECODING = 2  # version of the pictures and sound that files are decoded to; raised whenever these change


def _is_none(value: Any) -> bool:
    return value is None


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Origin(BaseModel):
    """Extractor that produced a feature. Features of two videos are comparable only if their extractors are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hash: _Hash = Field(description="SHA-256 of its weights and settings")
    projection: _Hash | None = Field(None, description="SHA-256 of the PCA that its values went through")
    settings: str | None = Field(
        None,
        exclude_if=_is_none,
        description="settings of an extractor that reads a file, as they follow its path: key=value&…",
    )
    scale: tuple[_Finite, _Finite] | None = Field(
        None,
        exclude_if=_is_none,
        description="offset and scale, for 8 bits without a PCA: a code is that of (value - offset) · scale",
    )
    decoding: int = Field(1, ge=1, exclude_if=_is_first, description="version of how reeltag decoded the files")


class Feature(BaseModel):
    """One stream of vectors in a record, for example `rgb` with 1024 values a frame."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    width: int = Field(gt=0, description="values a frame (frame level) or a video (video level)")
    extractor: Origin | None = Field(None, description="what `reeltag extract` made it with")

    @model_serializer(mode="wrap")
    def _without_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omit an unknown extractor, so that hashes of older stages and files stay valid."""
        content: dict[str, Any] = handler(self)
        if self.extractor is None:
            content.pop("extractor", None)
        return content


class Labels(BaseModel):
    """Feature of a record that holds its labels; in a recipe its name, or a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = "labels"
    encoding: Literal["index", "n-hot"] | None = Field(
        None,
        description="index: numbers of the classes that are present; n-hot: a 0 or 1 for each class; by default index, "
        "but lists that could be either are refused",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_name(self, handler: SerializerFunctionWrapHandler) -> Any:
        """Write the name alone if no encoding is given, so that hashes of older stages and files stay valid."""
        return self.name if self.encoding is None else handler(self)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        table = handler.resolve_ref_schema(handler(core))
        return {**table, "type": ["string", "object"]}


Storage = Literal["uint8", "float16", "float32"]
# Keys of the schema for each form in which `reeltag extract` stores values.
STORAGE_KEYS: dict[Storage, dict[str, str]] = {
    "uint8": {"dtype": "uint8"},
    "float16": {"dtype": "float32", "storage": "float16-bytes"},
    "float32": {"dtype": "float32"},
}
# What a value of `storage` is in a record, as a NumPy type; the others are as `dtype` says.
STORED_BYTES = {"float16-bytes": "<f2", "float32-bytes": "<f4", "float64-bytes": "<f8"}


class Schema(BaseModel):
    """Layout of the records of a data set.

    Frame level is a `SequenceExample` whose feature lists hold T frames; video level is an `Example`
    whose features hold one vector. Frames are `uint8` codes of values in [-2, 2] (golden file
    `dequantize`) or plain `float32`. The keys from `storage` on allow other layouts and incomplete records.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    level: Literal["frame", "video"] = "frame"
    ids: tuple[str, ...] = Field(("id", "video_id"), min_length=1, description="names that the id may have")
    labels: Labels = Labels()
    features: tuple[Feature, ...] = Field(min_length=1, max_length=MAX_FEATURES)
    dtype: Literal["uint8", "float32"] = "uint8"
    classes: int = Field(gt=0)
    max_frames: int = Field(
        300, gt=0, le=MAX_FRAMES, description="frames beyond these are cut, as the paper's authors do"
    )
    segments: int | None = Field(
        None, gt=0, description="frames a segment: not videos are examples, but the segments that they are cut into"
    )
    segment_classes: tuple[int, ...] | None = Field(
        None, min_length=1, description="the classes that segments are rated in; all by default"
    )
    storage: Literal["native", "int64", "float16-bytes", "float32-bytes", "float64-bytes"] = Field(
        "native",
        exclude_if=_is_native,
        description="how records hold values; native: uint8 as bytes, float32 as a float list",
    )
    frames: Literal["listed", "flat"] = Field(
        "listed",
        exclude_if=_is_listed,
        description="listed: a feature list of frames; flat: all frames of a feature one after another in one feature",
    )
    frame_count: str | None = Field(
        None, exclude_if=not_, description="flat: name of the number of frames; values beyond these are padding"
    )
    missing: Literal["fail", "zero", "skip"] = Field(
        "fail",
        exclude_if=_is_fail,
        description="records that lack a feature: an error, a feature of zeros, or left out",
    )
    unequal: Literal["fail", "cut"] = Field(
        "fail",
        exclude_if=_is_fail,
        description="features of a record with different numbers of frames: an error, or cut to the shortest",
    )
    unnamed: Literal["fail", "number"] = Field(
        "fail", exclude_if=_is_fail, description="records without an id: an error, or called SHARD:NUMBER"
    )
    empty_shards: Literal["fail", "skip"] = Field(
        "fail", exclude_if=_is_fail, description="files of 0 bytes: an error, or passed over"
    )

    @field_validator("features")
    @classmethod
    def _named_once(cls, value: tuple[Feature, ...]) -> tuple[Feature, ...]:
        names = [feature.name for feature in value]
        if len(set(names)) < len(names):
            raise ValueError(f"each name may occur only once, not {names}")
        return value

    @field_validator("dtype")
    @classmethod
    def _of_its_level(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("level") == "video" and value != "float32":
            raise ValueError("video-level features are float32")
        return value

    @field_validator("storage")
    @classmethod
    def _of_its_dtype(cls, value: str, info: ValidationInfo) -> str:
        if value in STORED_BYTES and info.data.get("dtype") == "uint8":
            raise ValueError(f'"{value}" needs dtype = "float32", which the values become')
        return value

    @field_validator("frames")
    @classmethod
    def _of_frames(cls, value: str, info: ValidationInfo) -> str:
        if value == "flat" and info.data.get("level") == "video":
            raise ValueError("video-level features are one vector; leave it out")
        return value

    @field_validator("frame_count")
    @classmethod
    def _of_flat_frames(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("frames", "flat") != "flat":
            raise ValueError('is for frames = "flat"; feature lists have a length of their own')
        return value

    @field_validator("segments")
    @classmethod
    def _within_a_video(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("level") == "video":
            raise ValueError("segments are made of frames; leave it out for video-level features")
        if value is not None and value > info.data.get("max_frames", value):
            raise ValueError(f"{value} is more than max_frames; a segment is a part of a video")
        return value

    @field_validator("segment_classes")
    @classmethod
    def _known_classes(cls, value: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        if value is None:
            return None
        if "segments" in info.data and info.data["segments"] is None:
            raise ValueError("needs segments, such as segments = 5")
        if len(set(value)) < len(value):
            raise ValueError("each class may occur only once")
        if outside := [each for each in value if not 0 <= each < info.data.get("classes", each + 1)]:
            raise ValueError(f"{outside[0]} is not one of the schema's classes")
        return tuple(sorted(value))

    @property
    def standard(self) -> bool:
        """True if records are laid out as `encode` writes them."""
        by_frame = self.level == "frame" and self.storage in STORED_BYTES
        return (self.storage == "native" or by_frame) and self.frames == "listed" and self.labels.encoding != "n-hot"

    @property
    def precision(self) -> Storage:
        """Precision of the values of its records."""
        if self.dtype == "uint8":
            return "uint8"
        return "float16" if self.storage == "float16-bytes" else "float32"

    @property
    def lenient(self) -> Schema:
        """The schema that reads whatever can be tagged: incomplete records, and empty shards."""
        missing = "zero" if self.missing == "fail" else self.missing
        return self.model_copy(
            update={"missing": missing, "unequal": "cut", "unnamed": "number", "empty_shards": "skip"}
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each feature, in the order in which a frame concatenates them."""
        return tuple(feature.width for feature in self.features)

    @property
    def width(self) -> int:
        """D, the width of a frame's concatenated vector."""
        return sum(self.widths)

    @property
    def example(self) -> str:
        """Noun for what is labelled and tagged: video or segment."""
        return "video" if self.segments is None else "segment"

    @property
    def example_frames(self) -> int:
        """Largest number of frames of an example."""
        return self.segments or self.max_frames


_RGB_AUDIO = ({"name": "rgb", "width": 1024}, {"name": "audio", "width": 128})
PRESETS: dict[str, dict[str, Any]] = {
    "yt8m-frame": {"features": _RGB_AUDIO, "classes": 3862},
    "yt8m-video": {
        "level": "video",
        "dtype": "float32",
        "features": ({"name": "mean_rgb", "width": 1024}, {"name": "mean_audio", "width": 128}),
        "classes": 3862,
    },
    "audioset": {"features": ({"name": "audio_embedding", "width": 128},), "classes": 527, "max_frames": 10},
}


def expand_preset(value: Any) -> Any:
    """Expand a preset's name, or a table with a `preset` key, to a complete schema table.

    Raises:
        ValueError: there is no such preset.
    """
    if isinstance(value, str):
        value = {"preset": value}
    if isinstance(value, dict) and "preset" in value:
        preset = value["preset"]
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; the presets are {', '.join(PRESETS)}")
        return PRESETS[preset] | {key: item for key, item in value.items() if key != "preset"}
    return value


def preset_schema(name: str) -> Schema:
    """Return the schema of a preset.

    Raises:
        UsageError: there is no such preset.
    """
    try:
        return Schema.model_validate(expand_preset(name))
    except ValueError as error:
        raise UsageError(str(error)) from error
