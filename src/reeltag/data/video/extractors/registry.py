"""Registry of feature extractors, which turn pictures or seconds of sound into vectors.

To add one, write a function from the text after its name (`NAME:TEXT`) to an `Extractor`, and enter it in `IMAGE` or
`SOUND` below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from reeltag.core.errors import UsageError
from reeltag.data.pca import Values
from reeltag.data.video.decode import Picture, Samples
from reeltag.data.video.extractors import efficientnet, mel, onnx_graph
from reeltag.data.video.extractors.extractor import Extractor, Input


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
        found: Values = mel.log_mel(torch.from_numpy(seconds)).numpy()
        return found

    identity = {"name": "logmel", "version": 1}
    return Extractor("logmel", mel.BANDS, (mel.RATE,), identity, -7.0, 2 / 7, values)


def _onnx_image(rest: str, preset: str = "onnx") -> Extractor[Picture]:
    model = onnx_graph.ImageModel(rest, preset)
    settings = model.settings
    return Extractor(model.name, model.width, model.size, model.identity, settings.offset, settings.scale, model)


def _onnx_sound(rest: str) -> Extractor[Samples]:
    model = onnx_graph.SoundModel(rest)
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
