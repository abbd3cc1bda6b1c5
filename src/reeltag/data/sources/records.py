"""Turn the videos of a source into records of a schema."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import DataError
from reeltag.data import ratings
from reeltag.data.formats.example import Video
from reeltag.data.schema import MAX_FEATURES, MAX_FRAMES, Feature, Schema
from reeltag.data.sources.videos import FEATURES, SourceVideo

NO_RATINGS: ratings.Lists = {}


def schema_of(video: SourceVideo, classes: int) -> Schema:
    """Return the schema of records like one video, the widest feature first.

    Args:
        video: the video.
        classes: C.

    Raises:
        DataError: some of its features hold codes and others values, or there are too many of them.
    """
    dtypes = {name: str(array.dtype) for name, array in video.features.items()}
    if len(dtypes) > MAX_FEATURES:
        what = f"has {len(dtypes):,} features, such as {min(dtypes)!r}, and a video has {MAX_FEATURES} at most"
        raise DataError(f"{what}; if each is of a video, store them by video, then by feature", file=video.place)
    if len(set(dtypes.values())) > 1:
        held = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise DataError(f"{held}: a record holds one type; choose features of one type", file=video.place)
    widths = {name: array.shape[-1] for name, array in video.features.items()}
    features = tuple(
        Feature(name=name, width=width) for name, width in sorted(widths.items(), key=lambda item: (-item[1], item[0]))
    )
    (level,) = {"video" if array.ndim == 1 else "frame" for array in video.features.values()}
    try:
        return Schema(
            level=level, dtype=dtypes[features[0].name], features=features, classes=classes, max_frames=MAX_FRAMES
        )
    except ValueError as error:
        what = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())  # type: ignore[attr-defined]
        raise DataError(what, file=video.place) from error


def to_video(
    found: SourceVideo, schema: Schema, labels: npt.NDArray[np.int64] | None, rated: ratings.Lists = NO_RATINGS
) -> Video:
    """Return the record of a video.

    Args:
        found: the video of a source.
        schema: of the record.
        labels: class indices, sorted; None if they are not known.
        rated: ratings of its segments.

    Raises:
        DataError: a feature is missing, not in the schema, or of another width, type or level than there, or the
            features have unequal numbers of frames.
    """
    arrays = found.features
    if len(schema.features) == 1 and arrays.keys() == {FEATURES}:
        arrays = {schema.features[0].name: arrays[FEATURES]}  # an only feature without a name
    features = []
    for feature in schema.features:
        array = arrays.get(feature.name)
        if array is None:
            have = ", ".join(arrays)
            raise DataError(f"no feature {feature.name!r}; the video has {have}", file=found.place)
        if array.ndim == 1 and schema.level == "video":
            array = array[None]
        expected = f"[{'T, ' if schema.level == 'frame' else ''}{feature.width}] {schema.dtype}"
        if array.ndim != 2 or array.shape[1] != feature.width or array.dtype != schema.dtype:
            shape = list(array.shape[-2:] if schema.level == "frame" else array.shape[1:])
            raise DataError(f"{feature.name!r} is {shape} {array.dtype}, expected {expected}", file=found.place)
        features.append(array)
    if more := arrays.keys() - {feature.name for feature in schema.features}:
        what = f"has {min(more)!r} too, which the first video does not have; choose the features to read"
        raise DataError(what, file=found.place)
    lengths = {feature.name: len(array) for feature, array in zip(schema.features, features, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"features disagree on the number of frames: {lengths}", file=found.place)
    length = len(features[0])
    if length > MAX_FRAMES:
        raise DataError(f"{length:,} frames, and a video has {MAX_FRAMES:,} at most; cut it", file=found.place)
    try:
        of_segments = ratings.from_lists(rated, length, schema)
    except DataError as error:
        raise DataError(error.reason, file=found.place) from error
    return Video(found.id, labels, tuple(features), ratings=of_segments)
