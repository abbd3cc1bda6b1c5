"""The videos of a source, and how the fields of one become features, labels and an id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from reeltag.core.errors import DataError
from reeltag.core.text import is_utf8, same_form
from reeltag.data.sources.conversion import Array, to_feature

StoredLabels = str | list[Any]  # numbers, names or N-hot, as found

FEATURES = "features"  # name of the only feature of a file that gives it none

# Names that a field may have, the likeliest first; compared in lower case.
IDS = (
    *("video_id", "id", "__key__", "video_ids", "ids", "video_id_list", "youtube_id", "ytid", "vid", "video_name"),
    *("audio_name", "filename", "file_name", "clip/media_id", "media_id", "clip_id", "video", "name", "file", "key"),
)
LABELS = (
    *("labels", "label", "targets", "target", "classes", "class", "cls", "class_id", "class_ids", "label_ids"),
    *("label_names", "positive_labels", "tags", "tag"),
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
    labels: StoredLabels | None
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

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """Open a file within a block.

        Raises:
            DataError: it cannot be read.
        """
        try:
            with (self.root / name).open("rb") as file:
                yield file
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror or error})", file=str(self.root / name)) from error


def field(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the likeliest of some fields for a role, such as `IDS`; None if none of the names fits."""
    lowered = {name.lower(): name for name in reversed(names)}
    return next((lowered[each] for each in known if each in lowered), None)


def as_id(value: Any) -> str | None:
    """Return an id as text in form NFC, whether it is stored as text, bytes or a whole number; None for anything else.

    Text that cannot be written in UTF-8 is no id either.

    Raises:
        ValueError: bytes that are not UTF-8.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        value = str(value)
    return same_form(str(value)) if isinstance(value, str) and value and is_utf8(value) else None


def as_labels(value: Any) -> StoredLabels | None:
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
    return same_form(str(Path(name).with_suffix("")))


def video_from(fields: Mapping[str, Any], name: str, place: str, wanted: Sequence[str] = ()) -> SourceVideo:
    """Make a video of its fields.

    Arrays of one or two dimensions are features. A field `id` or `video_id` is the id, one of `LABELS` the labels, one
    of `LENGTHS` the number of frames that are real, and one of `FRAME_NUMBERS` numbers the frames; text and single
    numbers of other names are none of these. An array of one dimension beside a number of frames holds them one after
    the other.

    Args:
        fields: arrays, texts and numbers by name.
        name: the id if no field is one.
        place: for messages.
        wanted: names of the features to read; by default all.

    Raises:
        DataError: no feature, or one that cannot be read.
    """
    try:
        given = next((as_id(fields[key]) for key in IDS[:2] if key in fields), None) or as_id(name)
        label = field([key for key in fields if key not in wanted], LABELS)
        labels = as_labels(fields[label]) if label else None
    except UnicodeDecodeError as error:
        raise DataError(f"its id or labels are not UTF-8 ({error}); write them as text", file=place) from error
    if given is None:
        raise DataError("its name is not UTF-8; rename it", file=place)
    arrays = {key: value for key, value in fields.items() if isinstance(value, np.ndarray)}
    chosen = sorted(key for key, value in arrays.items() if (key in wanted if wanted else _is_feature(key, value)))
    if not chosen:
        sought = f"none of the features {', '.join(wanted)}" if wanted else "no features, arrays [T, D]"
        raise DataError(f"has {sought}; it has {', '.join(fields) or 'nothing'}", file=place)
    length = field([key for key in fields if key not in chosen], LENGTHS)
    frames = None if length is None else _number_of_frames(fields[length], place)
    features = {key: to_feature(_frames_of(arrays[key], key, frames, place), key, place) for key in chosen}
    if len({value.ndim for value in features.values()}) > 1:
        shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in features.items())
        raise DataError(f"{shapes}: some are of frames and some of the video; choose features of one kind", file=place)
    return SourceVideo(given, features, labels, place)


def _is_feature(name: str, value: Array) -> bool:
    if value.ndim == 0 or value.dtype.kind in "SU" or name.lower() in (*LABELS, *LENGTHS):
        return False
    return value.ndim > 1 or name.lower() not in FRAME_NUMBERS


def _number_of_frames(value: Any, place: str) -> int:
    number = np.asarray(value)
    if number.ndim or number.dtype.kind not in "iu" or number < 1:
        raise DataError(f"its number of frames is {value}; expected a whole number, 1 or more", file=place)
    return int(number)


def _frames_of(values: Array, name: str, frames: int | None, place: str) -> Array:
    """Return the real frames [T, D] of padded or flat ones; other values stay as they are."""
    if frames is None or values.ndim not in (1, 2):
        return values
    if values.ndim == 2 and frames <= len(values):
        return values[:frames]
    if values.ndim == 1 and len(values) % frames == 0:
        return values.reshape(frames, -1)
    raise DataError(f"is said to have {frames} frames, but {name!r} is {list(values.shape)}", file=place)
