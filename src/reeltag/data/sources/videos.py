"""The videos of a source, and how the fields of one become features, labels and an id."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reeltag.core.errors import DataError
from reeltag.data.sources.conversion import Array, to_feature

RawLabels = str | list[Any]  # numbers, names or N-hot, as found

FEATURES = "features"  # name of the only feature of a file that gives it none

# Names that a field may have, the likeliest first; compared in lower case.
IDS = (
    *("video_id", "id", "__key__", "youtube_id", "ytid", "vid", "video_name", "audio_name", "filename", "file_name"),
    *("clip/media_id", "media_id", "clip_id", "video", "name", "file", "key"),
)
LABELS = (
    *("labels", "label", "targets", "target", "classes", "class", "cls", "class_id", "class_ids", "label_ids"),
    *("label_names", "positive_labels", "tags", "tag", "y"),
)
LENGTHS = ("lengths", "length", "num_frames", "n_frames", "frame_count", "frames_count", "nframes", "seq_len")
FRAME_NUMBERS = (
    *("frame", "frame_id", "frame_index", "frame_number", "frame_no", "timestamps", "timestamp", "time", "time_ms"),
    *("second", "seconds", "t", "pts", "index"),
)


@dataclass(frozen=True)
class SourceVideo:
    """One video of a source.

    Attributes:
        id: its name in the data set, in Unicode's form NFC.
        features: [T, D] of a frame-level feature or [D] of a video-level one, uint8 or finite float32.
        labels: as they stand beside the features: numbers, names, N-hot or one text; None where there are none.
        place: file and video, for messages, such as "film.h5: /video12".
    """

    id: str
    features: dict[str, Array]
    labels: RawLabels | None
    place: str


class Source(Protocol):
    """Videos in files that are not shards. Sources can be pickled, and are cheap to create."""

    @property
    def kind(self) -> str:
        """Kind of the files, such as HDF5."""

    def parts(self) -> Sequence[str]:
        """Return the names of pieces that can be read independently of each other, in a fixed order."""

    def read(self, part: str) -> Iterator[SourceVideo]:
        """Yield the videos of a part in order.

        Raises:
            DataError: a video that cannot be read or trusted.
        """


@dataclass(frozen=True)
class Files:
    """Files below a common folder.

    Attributes:
        root: the folder.
        names: paths relative to it, in order.
    """

    root: Path
    names: tuple[str, ...]

    def parts(self) -> Sequence[str]:
        """Return the names of the files."""
        return self.names


def field(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the likeliest of some fields for a role, such as `IDS`; None if none of the names fits."""
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[each] for each in known if each in lowered), None)


def as_id(value: Any) -> str | None:
    """Return an id as text in form NFC, whether it is stored as text, bytes or a whole number; None for anything else.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        value = str(value)
    return unicodedata.normalize("NFC", value) if isinstance(value, str) and value else None


def as_labels(value: Any) -> RawLabels | None:
    """Return labels as text or a list, as they were stored; a single number is a list of one."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bytes):
        value = value.decode()
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        return [value]
    return [each.decode() if isinstance(each, bytes) else each for each in value]


def without_suffix(name: str) -> str:
    """Return a relative path without the suffix of its file, as an id."""
    return unicodedata.normalize("NFC", str(Path(name).with_suffix("")))


def video_from(fields: Mapping[str, Any], name: str, place: str, wanted: Sequence[str] = ()) -> SourceVideo:
    """Make a video of its fields.

    Arrays of one or two dimensions are features. A field `id` or `video_id` is the id, one of `LABELS` the labels, one
    of `LENGTHS` the number of frames that are real, and one of `FRAME_NUMBERS` numbers the frames; text and single
    numbers of other names are none of these.

    Args:
        fields: arrays, texts and numbers by name.
        name: the id if no field is one.
        place: for messages.
        wanted: names of the features to read; by default all.

    Raises:
        DataError: no feature, a wanted one that is missing, or one that cannot be read.
    """
    try:
        given = next((as_id(fields[key]) for key in IDS[:2] if key in fields), None)
        label = field(list(fields), LABELS)
        labels = as_labels(fields[label]) if label and label not in wanted else None
    except UnicodeDecodeError as error:
        raise DataError(f"its id or labels are not UTF-8 ({error}); write them as text", file=place) from error
    arrays = {key: value for key, value in fields.items() if isinstance(value, np.ndarray)}
    if wanted:
        if missing := [key for key in wanted if key not in arrays]:
            raise DataError(f"no feature {missing[0]!r}; it has {', '.join(arrays) or 'none'}", file=place)
        chosen = {key: arrays[key] for key in wanted}
    else:
        chosen = {key: value for key, value in arrays.items() if _is_feature(key, value)}
    length = field([key for key in fields if key not in chosen], LENGTHS)
    features = {
        key: to_feature(_cut(value, key, fields[length], place) if length else value, key, place)
        for key, value in sorted(chosen.items())
    }
    if not features:
        raise DataError(f"no features; it has {', '.join(fields) or 'nothing'}, and needs arrays [T, D]", file=place)
    if len({value.ndim for value in features.values()}) > 1:
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in features.items())
        raise DataError(f"{shapes}: some are of frames and some of the video; choose features of one kind", file=place)
    return SourceVideo(given or name, features, labels, place)


def _is_feature(name: str, value: Array) -> bool:
    if value.ndim == 0 or value.dtype.kind in "SU" or name.lower() in (*IDS, *LABELS, *LENGTHS):
        return False
    return value.ndim > 1 or name.lower() not in FRAME_NUMBERS


def _cut(values: Array, name: str, length: Any, place: str) -> Array:
    """Return the frames that are real, of frames that are padded to some length."""
    number = np.asarray(length)
    if number.ndim or number.dtype.kind not in "iu":
        raise DataError(f"its number of frames is {length!r}, not a whole number", file=place)
    if values.ndim == 2 and not 0 <= number <= len(values):
        raise DataError(f"it is said to have {number} frames, but {name!r} has {len(values)}", file=place)
    return values[: int(number)] if values.ndim == 2 else values
