"""Extract the frame-level features that a tagger reads from one video file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from reeltag.core.environment import one_torch_thread
from reeltag.core.errors import UsageError, VideoError
from reeltag.core.text import counted
from reeltag.data.formats.example import MAX_VALUE, FrameArray, is_computable
from reeltag.data.pca import Projection, Values, to_codes
from reeltag.data.schema import Feature, Storage
from reeltag.data.video.decode import MAX_SECONDS, Damage, Media, Picture, Samples
from reeltag.data.video.engine import IN_PROCESS, Engine
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.registry import image_extractor, sound_extractor


@dataclass(frozen=True)
class Extraction:
    """Features of one file.

    Attributes:
        values: by feature, [T, D] float32, the extractor's output; row t belongs to second t.
        remarks: remarks about unusual properties of the file, for people.
    """

    values: dict[str, Values]
    remarks: tuple[str, ...]

    @property
    def seconds(self) -> int:
        """Number of seconds T."""
        return len(next(iter(self.values.values())))


@dataclass(frozen=True)
class Pipeline:
    """Extractors, the projections of their values, and the form in which records hold them.

    Attributes:
        image: extractor of pictures, for the feature `rgb`.
        sound: extractor of sound, for the feature `audio`.
        projections: PCA by feature; a feature without one is quantized on its extractor's scale.
        storage: `uint8` codes, or floats, which need no scale.
    """

    image: Extractor[Picture] | None
    sound: Extractor[Samples] | None
    projections: Mapping[str, Projection] = field(default_factory=dict)
    storage: Storage = "uint8"

    def __post_init__(self) -> None:
        if not self.extractors:
            raise UsageError("nothing to extract: --image and --audio are both none")
        for feature, projection in self.projections.items():
            width = self.extractors[feature].width if feature in self.extractors else None
            if projection.widths[0] != width:
                what = f"the PCA of {feature!r} is for {projection.widths[0]} values"
                raise UsageError(f"--pca: {what}, and its extractor gives {width or 'none'}")

    @property
    def extractors(self) -> dict[str, Extractor[Any]]:
        """Extractors by feature, in the order of a record."""
        found = {"rgb": self.image, "audio": self.sound}
        return {feature: extractor for feature, extractor in found.items() if extractor is not None}

    @property
    def features(self) -> tuple[Feature, ...]:
        """Features of the records, for their schema."""
        return tuple(self._feature(name, extractor) for name, extractor in self.extractors.items())

    def _feature(self, name: str, extractor: Extractor[Any]) -> Feature:
        projection = self.projections.get(name)
        width = projection.widths[1] if projection else extractor.width
        scale = (extractor.offset, extractor.scale) if self.storage == "uint8" and not projection else None
        return Feature(
            name=name, width=width, extractor=extractor.origin(projection.hash if projection else None, scale)
        )

    def rescaled(self, scales: Mapping[str, tuple[float, float]]) -> Pipeline:
        """Return this pipeline with another offset and scale for some features."""
        image = self.image.rescaled(*scales["rgb"]) if self.image and "rgb" in scales else self.image
        sound = self.sound.rescaled(*scales["audio"]) if self.sound and "audio" in scales else self.sound
        return replace(self, image=image, sound=sound)

    def extract(self, path: Path, engine: Engine = IN_PROCESS) -> Extraction:
        """Extract the features of every second of a file.

        Equal files give equal bytes, whatever the engine and whatever else runs.

        Args:
            path: a file with pictures, sound or both.
            engine: decoder and encoders; by default this process decodes, and this thread encodes.

        Raises:
            VideoError: the file cannot be read, or decoding stalls or crashes.
        """
        media = engine.decoder.probe(path)
        if not ((self.image and media.pictures) or (self.sound and media.sound)):
            raise VideoError(f"{path}: has no {'sound' if media.pictures else 'pictures'}; leave it out")
        damage, values, heard = Damage(), {}, None
        if self.image and media.pictures:
            values["rgb"] = _values_of_pictures(self.image, media, damage, engine)
        if self.sound:
            length = len(values["rgb"]) if values else None
            values["audio"], heard = _values_of_sound(self.sound, media, damage, length, engine)
        if self.image and not media.pictures:
            values = {"rgb": _black(self.image, len(values["audio"]), engine), **values}
        for feature, found in values.items():
            _refuse_uncomputable(path, self.extractors[feature], found)
        length = len(next(iter(values.values())))
        return Extraction(values, tuple(_remarks(self, media, damage, length, heard)))

    def mapped(self, values: Mapping[str, Values]) -> dict[str, Values]:
        """Map the extractors' values as they are before they are stored: by the PCA, or for 8 bits by the scale.

        Args:
            values: by feature, [T, D] float32.

        Returns:
            By feature, [T, W] float32.
        """
        with one_torch_thread():
            return {feature: self._mapped(feature, found) for feature, found in values.items()}

    def _mapped(self, feature: str, values: Values) -> Values:
        if projection := self.projections.get(feature):
            return projection(values)
        return self.extractors[feature].scaled(values) if self.storage == "uint8" else values

    def stored(self, mapped: Mapping[str, Values]) -> tuple[FrameArray, ...]:
        """Return the features of a record, [T, W] each: uint8 codes, or float32 in the precision of the records.

        Args:
            mapped: by feature, what `mapped` returns.
        """
        return tuple(map(self._stored, mapped.values()))

    def _stored(self, values: Values) -> FrameArray:
        if self.storage == "uint8":
            return to_codes(values)
        with np.errstate(over="ignore"):  # what becomes infinite is refused by who stores it
            return values.astype(self.storage).astype(np.float32)


def open_pipeline(image: str, sound: str) -> Pipeline:
    """Open extractors by name, without projections.

    Args:
        image: name of the extractor of pictures, or `none`.
        sound: name of the extractor of sound, or `none`.

    Raises:
        UsageError: there is no extractor of that name, or it cannot be opened.
    """
    return Pipeline(image_extractor(image), sound_extractor(sound))


def _values_of_pictures(image: Extractor[Picture], media: Media, damage: Damage, engine: Engine) -> Values:
    size = None if image.prepare else (image.takes[0], image.takes[1])
    pictures = engine.decoder.pictures(media.path, size, damage, threads=engine.threads)
    prepared = map(image.prepare, pictures) if image.prepare else pictures
    batches = iter(lambda: list(islice(prepared, image.batch)), [])
    return _joined([engine.encoders.submit(image.values, np.stack(batch)) for batch in batches])


def _values_of_sound(
    sound: Extractor[Samples], media: Media, damage: Damage, length: int | None, engine: Engine
) -> tuple[Values, int]:
    """Return the values of `length` seconds, or of all if it is None; and the number of seconds that have sound."""
    (rate,) = sound.takes
    samples = engine.decoder.sound(media.path, rate, damage, seconds=length or MAX_SECONDS)
    heard = -(-len(samples) // rate)
    if length is None:
        if not heard:
            raise VideoError(f"{media.path}: no sound can be decoded; is it complete?")
        length = max(1, round(len(samples) / rate))
    seconds = np.zeros((length, rate), np.float32)
    seconds.reshape(-1)[: len(samples)] = samples[: seconds.size]
    batches = (seconds[i : i + sound.batch] for i in range(0, length, sound.batch))
    return _joined([engine.encoders.submit(sound.values, batch) for batch in batches]), heard


def _refuse_uncomputable(path: Path, extractor: Extractor[Any], values: Values) -> None:
    if not is_computable(values):
        second = int(np.argmin((np.abs(values) <= MAX_VALUE).all(1)))  # NaN compares as false
        what = f"{extractor.name} gives NaN, infinite values or some beyond ±{MAX_VALUE:g} for second {second}"
        raise VideoError(f"{path}: {what}; check its settings, or leave the file out")


def _black(image: Extractor[Picture], length: int, engine: Engine) -> Values:
    black = np.zeros((*image.takes, 3), np.uint8)
    prepared = image.prepare(black) if image.prepare else black
    return np.repeat(_joined([engine.encoders.submit(image.values, prepared[None])]), length, axis=0)


def _joined(batches: Sequence[Future[Values]]) -> Values:
    return np.concatenate([batch.result() for batch in batches])


def _remarks(pipeline: Pipeline, media: Media, damage: Damage, length: int, heard: int | None) -> Iterator[str]:
    if pipeline.image and not media.pictures:
        yield "no pictures, taken as black"
    if pipeline.sound and not media.sound:
        yield "no sound, taken as silence"
    elif heard is not None and heard < length - 1:
        yield f"sound ends after {counted(heard, 'second')}"
    if media.seconds is not None and length == MAX_SECONDS and media.seconds > MAX_SECONDS + 1:
        yield f"the first {MAX_SECONDS} of {media.seconds:,.0f} seconds"
    elif media.seconds is not None and length < media.seconds - 2:
        yield f"says that it has {media.seconds:,.0f} seconds, and {counted(length, 'second')} can be decoded"
    yield from damage.remarks()
