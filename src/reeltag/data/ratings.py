"""Human ratings of a video's segments: classes that are present, and classes that are not.

YouTube-8M's segment-rated records (2019) have four context features of one length, with one entry a rating. There is
one frame a second, so times are frame indices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import DataError
from reeltag.data.schema import Schema

STARTS, ENDS, CLASSES, SCORES = "segment_start_times", "segment_end_times", "segment_labels", "segment_scores"
FEATURES = {STARTS: "int64_list", ENDS: "int64_list", CLASSES: "int64_list", SCORES: "float_list"}

Lists = Mapping[str, Sequence[float]]  # rating features of a record, by name


@dataclass(frozen=True)
class Ratings:
    """R ratings, by segment and class, each pair once.

    Attributes:
        starts: [R] first frame of the segment, a multiple of the schema's `segments`; ascending.
        classes: [R] rated class.
        positive: [R] True if the class is present.
    """

    starts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]

    def at(self, start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the classes present in a segment, and all classes rated there; both ascending."""
        segment = self.starts == start
        return self.classes[segment & self.positive], self.classes[segment]


def from_lists(lists: Lists, frames: int, schema: Schema) -> Ratings | None:
    """Build ratings from a record's features; None if it has none of them.

    Args:
        lists: the features, by name.
        frames: of the video, within the schema's limit.
        schema: of segments.

    Raises:
        DataError: a feature is missing, lengths differ, or ratings contradict each other, the video or the schema.
    """
    if not lists:
        return None
    if missing := [name for name in FEATURES if name not in lists]:
        raise DataError(
            f"has the rating features {', '.join(lists)} without {', '.join(missing)}; write all four, or none"
        )
    lengths = {name: len(values) for name, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the rating features differ in length: {lengths}")
    found: dict[tuple[int, int], bool] = {}
    for start, end, label, score in zip(*(lists[name] for name in FEATURES), strict=True):
        _check(int(start), int(end), int(label), score, frames=frames, schema=schema)
        if found.setdefault((int(start), int(label)), score == 1) != (score == 1):
            raise DataError(f"class {label} is rated 0 and 1 in the segment at {start}; keep one of the two")
    pairs = sorted(found)
    starts, classes = np.array(pairs, np.int64).reshape(-1, 2).T
    return Ratings(starts, classes, np.array([found[pair] for pair in pairs], bool))


def _check(start: int, end: int, label: int, score: float, *, frames: int, schema: Schema) -> None:
    size = schema.segments
    assert size is not None
    if start < 0 or start % size or end != start + size:
        raise DataError(
            f"segment {start} to {end} is not one of the segments of {size} frames, "
            f"0 to {size}, {size} to {2 * size}, …; check the schema's 'segments'"
        )
    if start >= frames:
        raise DataError(f"segment {start} to {end} begins beyond the {frames} frames of the video; check 'max_frames'")
    if not 0 <= label < schema.classes:
        raise DataError(
            f"segment label {label} is outside the {schema.classes} classes 0…{schema.classes - 1}; "
            "check the schema's 'classes'"
        )
    if (known := schema.segment_classes) and known[bisect_left(known, label, hi=len(known) - 1)] != label:  # ascending
        raise DataError(f"class {label} is rated but not in the schema's 'segment_classes'; add it there")
    if score not in (0, 1):
        raise DataError(f"the segment at {start} has score {score:g} for class {label}; only 0 and 1 are allowed")


def to_lists(ratings: Ratings, schema: Schema) -> Lists:
    """Convert ratings to a record's features, the inverse of `from_lists`."""
    assert schema.segments is not None
    ends = ratings.starts + schema.segments
    return {
        STARTS: ratings.starts.tolist(),
        ENDS: ends.tolist(),
        CLASSES: ratings.classes.tolist(),
        SCORES: ratings.positive.astype(np.float32).tolist(),
    }
