"""Registry of feature extractors, which turn pictures or seconds of sound into vectors.

To add one, write a function from the text after its name (`NAME:TEXT`) to an `Extractor`, and enter it in `IMAGE` or
`SOUND` below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from reeltag.core.errors import UsageError
from reeltag.core.storage import content_hash
from reeltag.data.pca import Values
from reeltag.data.schema import Origin
from reeltag.data.video import audio, efficientnet, onnx_extractor
from reeltag.data.video.decode import Picture, Samples

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
        values: function from [T, height, width, 3] uint8 or [T, samples] float32 to values [T, width] float32.
    """

    name: str
    width: int
    takes: tuple[int, ...]
    identity: dict[str, Any]
    offset: float
    scale: float
    values: Callable[[Input], Values]

    def origin(self, projection: str | None) -> Origin:
        """Return the provenance that is stored with a feature of this extractor.

        Args:
            projection: hash of the PCA, or None.
        """
        return Origin(name=self.name, hash=content_hash(self.identity), projection=projection)

    def scaled(self, values: Values) -> Values:
        """Map values to the fixed scale, most of them into [-2, 2]."""
        scaled: Values = (values - np.float32(self.offset)) * np.float32(self.scale)
        return scaled


def _efficientnet(rest: str) -> Extractor[Picture]:
    _no_more("efficientnet-lite0", rest)
    network = efficientnet.load()
    identity = {"name": "efficientnet-lite0", "weights": efficientnet.WEIGHTS}

    def values(pictures: Picture) -> Values:
        found: Values = network(torch.from_numpy(pictures)).numpy()
        return found

    size = (efficientnet.SIZE, efficientnet.SIZE)
    # On ImageNet, one activation in a thousand exceeds 3.
    return Extractor("efficientnet-lite0", efficientnet.WIDTH, size, identity, 1.5, 4 / 3, values)


def _logmel(rest: str) -> Extractor[Samples]:
    _no_more("logmel", rest)

    def values(seconds: Samples) -> Values:
        found: Values = audio.log_mel(torch.from_numpy(seconds)).numpy()
        return found

    identity = {"name": "logmel", "version": 1}
    return Extractor("logmel", audio.BANDS, (audio.RATE,), identity, -7.0, 2 / 7, values)


def _onnx_image(rest: str, preset: str = "onnx") -> Extractor[Picture]:
    model = onnx_extractor.ImageModel(rest, preset)
    settings = model.settings
    return Extractor(model.name, model.width, model.size, model.identity, settings.offset, settings.scale, model)


def _onnx_sound(rest: str) -> Extractor[Samples]:
    model = onnx_extractor.SoundModel(rest)
    settings = model.settings
    rate = (settings.rate,)
    return Extractor(model.name, model.width, rate, model.identity, settings.offset, settings.scale, model)


def _no_more(name: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{name}: takes no settings, but {rest!r} was given")


IMAGE: dict[str, Callable[[str], Extractor[Picture]]] = {
    "efficientnet-lite0": _efficientnet,
    "onnx": _onnx_image,
    "inception": partial(_onnx_image, preset="inception"),
}
SOUND: dict[str, Callable[[str], Extractor[Samples]]] = {"logmel": _logmel, "onnx": _onnx_sound}


def image_extractor(name: str) -> Extractor[Picture] | None:
    """Open an extractor of pictures by name: `efficientnet-lite0`, `onnx:PATH?…`, `inception:PATH`, or `none`.

    Raises:
        UsageError: there is no such extractor, or it cannot be opened.
    """
    return _named(name, IMAGE, "--image")


def sound_extractor(name: str) -> Extractor[Samples] | None:
    """Open an extractor of sound by name: `logmel`, `onnx:PATH?…`, or `none`.

    Raises:
        UsageError: there is no such extractor, or it cannot be opened.
    """
    return _named(name, SOUND, "--audio")


def _named(name: str, table: dict[str, Callable[[str], Extractor[Input]]], option: str) -> Extractor[Input] | None:
    if name == "none":
        return None
    kind, _, rest = name.partition(":")
    if kind not in table:
        raise UsageError(f"{option}: there is no {kind!r}; use {', '.join(table)} or none")
    return table[kind](rest)
