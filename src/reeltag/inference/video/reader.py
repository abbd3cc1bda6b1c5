"""Read video files as a model's input, with the extractors that its schema names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reeltag.artifact.file import Artifact
from reeltag.core.errors import UsageError, VideoError
from reeltag.core.text import counted
from reeltag.data.extractor_origin import Published, describe_difference, published
from reeltag.data.formats.example import Video, is_computable
from reeltag.data.schema import DECODING, Feature, Origin, Schema
from reeltag.data.video.engine import IN_PROCESS, Engine
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.registry import IMAGE, SOUND, image_extractor, sound_extractor
from reeltag.data.video.extractors.settings import names_scale
from reeltag.data.video.features import Pipeline

# For each feature: the option that names its extractor, the known extractors, and the function that opens one.
_KINDS: dict[str, tuple[str, Mapping[str, Any], Callable[[str], Extractor[Any] | None]]] = {
    "rgb": ("--image", IMAGE, image_extractor),
    "audio": ("--audio", SOUND, sound_extractor),
}


@dataclass(frozen=True)
class VideoReader:
    """Reader of video files for one model; see `open_reader`.

    Attributes:
        schema: schema of the model.
        pipeline: extractors of its features.
    """

    schema: Schema
    pipeline: Pipeline

    def read(self, path: Path, name: str, engine: Engine = IN_PROCESS) -> tuple[Video, tuple[str, ...]]:
        """Extract the features of a file.

        Args:
            path: the file.
            name: id of the video.
            engine: decoder and encoders; by default this process decodes, and this thread encodes.

        Returns:
            The video, and remarks about the file.

        Raises:
            VideoError: the file cannot be read, decoding stalls or crashes, or its values do not fit the model's
                precision.
        """
        extraction = self.pipeline.extract(path, engine)
        stored = dict(
            zip(extraction.values, self.pipeline.stored(self.pipeline.mapped(extraction.values)), strict=True)
        )
        most = self.schema.max_frames
        ordered = tuple(stored[extracted_name(feature, self.schema)][:most] for feature in self.schema.features)
        if not all(map(is_computable, ordered)):
            raise VideoError(
                f"{path}: has values beyond {self.pipeline.storage}, in which the model reads them; leave it out"
            )
        return Video(name, None, ordered, max(0, extraction.seconds - most)), extraction.remarks


def open_reader(artifact: Artifact, name: str, image: str | None = None, audio: str | None = None) -> VideoReader:
    """Open the extractors of a model: those that its schema names, or those that the user names instead.

    Args:
        artifact: the model; its members are not needed.
        name: name of its file, for messages.
        image: extractor of the feature `rgb`, such as `onnx:PATH`; needed if it reads a file of its own.
        audio: extractor of the feature `audio`, likewise.

    Raises:
        UsageError: the extractor of a feature is unknown, or the named one is not that of the training data.
    """
    schema = artifact.schema
    chosen = {feature: value for feature, value in (("rgb", image), ("audio", audio)) if value is not None}
    refuse_unreadable(artifact, name, chosen)
    read = {extracted_name(feature, schema): feature for feature in schema.features}
    if unread := sorted(set(chosen) - read.keys()):
        raise UsageError(
            f"{_KINDS[unread[0]][0]}: {name} reads no such feature, but {', '.join(sorted(read))}; leave it out"
        )
    opened: dict[str, Extractor[Any] | None] = {}
    for extracted, feature in read.items():
        if known := published(feature, schema):
            opened[extracted] = _published_extractor(known, chosen[extracted], name)
        else:
            opened[extracted] = _extractor(feature, chosen.get(extracted), name)
    pipeline = Pipeline(opened.get("rgb"), opened.get("audio"), artifact.projections, schema.precision)
    return VideoReader(schema, pipeline)


def extracted_name(feature: Feature, schema: Schema) -> str:
    """Return the name that `reeltag extract` gives a feature of a model."""
    known = published(feature, schema)
    return known.feature if known else feature.name


def refuse_unreadable(artifact: Artifact, name: str, named: Collection[str] = ()) -> None:
    """Refuse a model whose input cannot be made from video files.

    Args:
        artifact: the model.
        name: name of its file, for messages.
        named: features whose extractors the user names.

    Raises:
        UsageError: the model tags segments, does not say which extractors made its features, had its videos decoded
            otherwise, or needs the file of an extractor that the user does not name.
    """
    schema, missing = artifact.schema, list[str]()
    if schema.segments is not None:
        what = f"tags segments of {counted(schema.segments, 'frame')}, not whole videos"
        raise UsageError(f"{name}: {what}; use `reeltag extract` and `reeltag predict`")
    for feature in schema.features:
        if known := published(feature, schema):
            if known.feature not in named:
                missing.append(_how_to_get(known.feature, known.encoder, f"{feature.name}, as published"))
            continue
        origin = _origin(artifact, name, feature)
        _, encoders, _ = _KINDS[feature.name]
        kind = origin.name.partition(":")[0]
        if feature.name in named:
            continue
        if kind not in encoders:
            what = f"reads the features of {origin.name!r}, which this reeltag does not have"
            raise UsageError(f"{name}: {what}; update it, or use `register_encoder` for an encoder of your own")
        if encoders[kind].argument.startswith("PATH"):
            missing.append(_how_to_get(feature.name, kind, origin.name))
    if missing:
        raise UsageError(f"{name}: needs the file of its extractor; {'; '.join(missing)}")


def _origin(artifact: Artifact, name: str, feature: Feature) -> Origin:
    """Return the extractor of a feature, if this reeltag can make such features from video files."""
    origin = feature.extractor
    if origin is None or feature.name not in _KINDS or artifact.schema.level != "frame":
        what = f"does not name the extractor of its feature {feature.name!r}"
        raise UsageError(
            f"{name}: {what}; train on shards of `reeltag extract`, with the recipe that it writes beside them"
        )
    if origin.decoding != DECODING:
        earlier = "an earlier" if origin.decoding < DECODING else "a later"
        what = f"its features {feature.name!r} were extracted by {earlier} reeltag, which decodes files otherwise"
        raise UsageError(f"{name}: {what}; use that reeltag, or extract the videos again and train on them")
    if origin.projection and feature.name not in artifact.projections:
        what = f"does not hold the PCA of its feature {feature.name!r}"
        raise UsageError(f"{name}: {what}; name the PCA in the recipe under data.pca, and run the recipe again")
    return origin


def _how_to_get(feature: str, kind: str, made_by: str) -> str:
    """Return the option for an extractor that reads a file, and where to get the file."""
    option, known, _ = _KINDS[feature]
    argument = known[kind].argument.partition("?")[0]
    return f"give {option} {kind}:{argument} for {made_by} (to get it: {known[kind].source})"


def _published_extractor(known: Published, chosen: str, model: str) -> Extractor[Any]:
    """Open the extractor of published features, whose PCA and scale can be verified, but not its network."""
    option, _, opener = _KINDS[known.feature]
    wanted = f"give {option} {known.encoder}:PATH,{known.file}"
    if chosen.partition(":")[0] != known.encoder:
        raise UsageError(f"{model}: reads {known.feature!r} from {known.encoder}, not from {chosen}; {wanted}")
    extractor = opener(chosen)
    assert extractor is not None  # only `none` opens none
    if extractor.network["pca"] != known.pca or not extractor.published:
        what = f"the published features went through the published {known.file}, on its own scale"
        raise UsageError(f"{model}: {what}, and {extractor.name} does not; {wanted}, without a scale")
    return extractor


def _extractor(feature: Feature, chosen: str | None, model: str) -> Extractor[Any]:
    """Open the extractor of a feature and verify that it is the one of the training data."""
    origin = feature.extractor
    assert origin is not None  # checked by `refuse_unreadable`
    option, _, opener = _KINDS[feature.name]
    extractor = opener(_with_settings(chosen or origin.name, origin))
    scale = origin.scale
    if extractor and scale and names_scale(chosen or ""):
        scale = extractor.offset, extractor.scale  # otherwise it is that of the model
    opened = extractor.origin(origin.projection, scale) if extractor else None
    if extractor is None or opened is None or (opened.hash, opened.scale) != (origin.hash, origin.scale):
        other = f"{opened.name}{describe_difference(opened, origin)}" if opened else "none"
        raise UsageError(
            f"{model}: reads {feature.name!r} from {origin.name}, not from {other}; "
            f"give {option} as it was for the training data"
        )
    return extractor.rescaled(*origin.scale) if origin.scale else extractor


def _with_settings(named: str, origin: Origin) -> str:
    """Add the settings of the training data to the text that names an extractor, unless it has settings."""
    same = named.partition(":")[0] == origin.name.partition(":")[0]
    return f"{named}?{origin.settings}" if same and origin.settings and "?" not in named else named
