"""Video files → what a model reads, by the extractors that its schema names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reeltag.artifact.file import Artifact
from reeltag.core.errors import UsageError
from reeltag.core.text import counted
from reeltag.data.extractor_origin import describe_difference
from reeltag.data.formats.example import Video
from reeltag.data.schema import Feature, Schema
from reeltag.data.video.extractors import IMAGE, SOUND, Extractor, image_extractor, sound_extractor
from reeltag.data.video.features import Pipeline

# By feature: the option that names its extractor, the extractors there are, and what opens one.
_KINDS: dict[str, tuple[str, dict[str, Any], Callable[[str], Extractor[Any] | None]]] = {
    "rgb": ("--image", IMAGE, image_extractor),
    "audio": ("--audio", SOUND, sound_extractor),
}


@dataclass(frozen=True)
class VideoReader:
    """The extractors of a model; see `open_reader`.

    Attributes:
        schema: what the model reads.
        pipeline: file → features.
    """

    schema: Schema
    pipeline: Pipeline

    def read(self, path: Path, name: str, threads: int = 1) -> tuple[Video, tuple[str, ...]]:
        """Extract the features that the model reads from a file, and remarks about the file.

        Args:
            path: the file.
            name: the video's.
            threads: of the decoder.

        Raises:
            VideoError: the file cannot be read, or is too slow to decode.
        """
        extraction = self.pipeline.extract(path, threads)
        codes = dict(zip(extraction.values, self.pipeline.codes(extraction), strict=True))
        most = self.schema.max_frames
        ordered = tuple(codes[feature.name][:most] for feature in self.schema.features)
        return Video(name, None, ordered, max(0, extraction.seconds - most)), extraction.remarks


def open_reader(artifact: Artifact, name: str, image: str | None = None, audio: str | None = None) -> VideoReader:
    """The extractors of a model, opened by the names that its schema has, or as they are given.

    Args:
        artifact: the model; its members are not needed.
        name: of its file, for errors.
        image: what makes the feature `rgb`, such as `onnx:PATH`, where the name does not tell.
        audio: what makes the feature `audio`.

    Raises:
        UsageError: the model's features are of no extractor that is known, or of another.
    """
    schema = artifact.schema
    given = {feature: value for feature, value in (("rgb", image), ("audio", audio)) if value is not None}
    refuse_unreadable(artifact, name, given)
    read = {feature.name for feature in schema.features}
    if unread := sorted(set(given) - read):
        raise UsageError(
            f"{_KINDS[unread[0]][0]}: {name} reads no such feature, but {', '.join(sorted(read))}; leave it out"
        )
    opened = {feature.name: _extractor(feature, given.get(feature.name), name) for feature in schema.features}
    return VideoReader(schema, Pipeline(opened.get("rgb"), opened.get("audio"), artifact.projections))


def refuse_unreadable(artifact: Artifact, name: str, given: Collection[str] = ()) -> None:
    """See that a model knows what made its features, before anything is opened.

    Args:
        artifact: the model.
        name: of its file.
        given: features whose extractors are given, and need not be known by their names.

    Raises:
        UsageError: it does not, or reads no files.
    """
    schema = artifact.schema
    if schema.segments is not None:
        what = f"tags segments of {counted(schema.segments, 'frame')}, not whole videos"
        raise UsageError(f"{name}: {what}; use `reeltag extract` and `reeltag predict`")
    for feature in schema.features:
        origin = feature.extractor
        if origin is None or feature.name not in _KINDS or (schema.level, schema.dtype) != ("frame", "uint8"):
            what = f"does not know what makes its feature {feature.name!r} of a video"
            raise UsageError(f"{name}: {what}; train on the shards of `reeltag extract`, with the recipe beside them")
        if origin.projection and feature.name not in artifact.projections:
            what = f"does not hold the PCA of its feature {feature.name!r}"
            raise UsageError(f"{name}: {what}; name it in the recipe, data.pca, and run that again")
        option, known, _ = _KINDS[feature.name]
        kind, _, file = origin.name.partition(":")
        if file and feature.name not in given:
            raise UsageError(f"{name}: reads the features of {origin.name}; say where it is, {option} {kind}:PATH?…")
        if kind not in known and feature.name not in given:
            raise UsageError(f"{name}: reads the features of {origin.name!r}, which this reeltag does not have")


def _extractor(feature: Feature, given: str | None, model: str) -> Extractor[Any]:
    origin = feature.extractor
    assert origin is not None  # `refuse_unreadable` saw to it
    option, _, opener = _KINDS[feature.name]
    extractor = opener(given or origin.name)
    found = extractor.origin(origin.projection) if extractor else None
    if extractor is None or found is None or found.hash != origin.hash:
        other = f"{found.name}{describe_difference(found, origin)}" if found else "none"
        raise UsageError(f"{model}: reads {feature.name!r} from {origin.name}, not from {other}; give {option} as then")
    return extractor
