"""Feature extractor: a function from pictures or seconds of sound to vectors, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from reeltag.core.storage import content_hash
from reeltag.data.pca import Values
from reeltag.data.schema import DECODING, Origin
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
        network: JSON of all that decides the values of an input: name, weights and settings.
        offset: with `scale`, the scale (x - offset) · scale that maps values without a PCA to the 8-bit range.
        scale: see `offset`.
        values: function from [T, height, width, 3] uint8 or [T, samples] float32 to values [T, width] float32; with
            `prepare`, from a stack of what it returns.
        batch: number of inputs a call of `values`, at most.
        prepare: preprocessing of one picture, [height, width, 3] uint8 RGB of any size, upright, with square pixels;
            None if pictures are scaled to `takes` without keeping their aspect ratio.
        calibrated: True if the scale is for the values of all videos, so that few codes in use are due to the videos.
        published: True if codes of this scale were published, so that the values that it cuts are no fault.
    """

    name: str
    width: int
    takes: tuple[int, ...]
    network: dict[str, Any]
    offset: float
    scale: float
    values: Callable[[Any], Values]
    batch: int = BATCH
    prepare: Callable[[Picture], npt.NDArray[Any]] | None = None
    calibrated: bool = False
    published: bool = False

    @property
    def identity(self) -> dict[str, Any]:
        """JSON of all that decides the values of a file: those of the network, and how files are decoded."""
        return {**self.network, "decoding": DECODING}

    def origin(self, projection: str | None = None, scale: tuple[float, float] | None = None) -> Origin:
        """Return the provenance that is stored with a feature of this extractor.

        Args:
            projection: hash of the PCA, or None.
            scale: offset and scale of 8-bit codes without a PCA, or None.
        """
        settings = as_query(self.network.get("settings", {})) or None
        return Origin(
            name=self.name,
            hash=content_hash(self.identity),
            projection=projection,
            decoding=DECODING,
            settings=settings,
            scale=scale,
        )

    def rescaled(self, offset: float, scale: float) -> Extractor[Input]:
        """Return this extractor with another scale; its values are the same."""
        return replace(self, offset=offset, scale=scale, calibrated=False, published=False)

    def scaled(self, values: Values) -> Values:
        """Map values by the scale, most of them into [-2, 2]."""
        scaled: Values = (values - np.float32(self.offset)) * np.float32(self.scale)
        return scaled
