"""Record schema: feature names, widths, classes and the frame limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from reeltag.core.errors import UsageError

MAX_FRAMES = 1_000_000  # of a video


_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Origin(BaseModel):
    """Extractor that produced a feature. Features of two videos are comparable only if their extractors are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    hash: _Hash = Field(description="SHA-256 of its weights and settings")
    projection: _Hash | None = Field(None, description="SHA-256 of the PCA that its values went through")


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


class Schema(BaseModel):
    """Layout of the records of a data set.

    Frame level is a `SequenceExample` whose feature lists hold T frames; video level is an `Example`
    whose features hold one vector. Frames are `uint8` codes of values in [-2, 2] (golden file
    `dequantize`) or plain `float32`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    level: Literal["frame", "video"] = "frame"
    ids: tuple[str, ...] = Field(("id", "video_id"), min_length=1, description="names that the id may have")
    labels: str = "labels"
    features: tuple[Feature, ...] = Field(min_length=1, max_length=64)
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
