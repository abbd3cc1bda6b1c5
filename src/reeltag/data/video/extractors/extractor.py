"""Feature extractor: a function from pictures or seconds of sound to vectors, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from reeltag.core.storage import content_hash
from reeltag.data.pca import Values
from reeltag.data.schema import Origin
from reeltag.data.video.decode import Picture, Samples
from reeltag.data.video.extractors.settings import as_query

BATCH = 8  # inputs a call of an extractor, by default; bounds the memory of a video

Input = TypeVar("Input", Picture, Samples)


@dataclass(frozen=True)
class Extractor(Generic[Input]):
    """Feature extractor, run on the CPU in the calling thread.

    Attributes:
        name: name for people.
        width: number of values a second.
        takes: shape of one input: height and width of a picture, or number of samples a second.
        identity: JSON of all that decides the values: name, weights and settings.
        offset: with `scale`, the fixed scale (x - offset) · scale that maps values without a PCA to the 8-bit range.
        scale: see `offset`.
        values: function from [T, height, width, 3] uint8 or [T, samples] float32 to values [T, width] float32; with
            `prepare`, from a stack of what it returns.
        batch: number of inputs a call of `values`, at most.
        prepare: preprocessing of one picture, [height, width, 3] uint8 RGB of any size, upright, with square pixels;
            None if pictures are scaled to `takes` without keeping their aspect ratio.
    """

    name: str
    width: int
    takes: tuple[int, ...]
    identity: dict[str, Any]
    offset: float
    scale: float
    values: Callable[[Any], Values]
    batch: int = BATCH
    prepare: Callable[[Picture], npt.NDArray[Any]] | None = None

    def origin(self, projection: str | None) -> Origin:
        """Return the provenance that is stored with a feature of this extractor.

        Args:
            projection: hash of the PCA, or None.
        """
        settings = as_query(self.identity.get("settings", {})) or None
        return Origin(name=self.name, hash=content_hash(self.identity), projection=projection, settings=settings)

    def scaled(self, values: Values) -> Values:
        """Map values to the fixed scale, most of them into [-2, 2]."""
        scaled: Values = (values - np.float32(self.offset)) * np.float32(self.scale)
        return scaled
