"""Registry of feature extractors, which turn pictures or seconds of sound into vectors.

To add one, write a function from the text after its name (`NAME:TEXT`) to an `Extractor`, and enter it in `IMAGE` or
`SOUND` below, with a row in docs/encoders.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor

from reeltag.core.errors import UsageError
from reeltag.core.text import did_you_mean
from reeltag.data.pca import Values
from reeltag.data.video.decode import Picture, Samples
from reeltag.data.video.extractors import efficientnet, mel, onnx_graph
from reeltag.data.video.extractors.extractor import Extractor, Input
from reeltag.data.video.extractors.settings import parse_scale
from reeltag.data.video.extractors.tflite import open_tflite
from reeltag.data.video.extractors.torch_model import open_timm, torch_extractor, weights_hash
from reeltag.data.video.extractors.vggish import open_vggish
from reeltag.data.video.extractors.vision import open_vision
from reeltag.data.video.extractors.whisper import open_whisper
from reeltag.data.video.extractors.yamnet import open_yamnet


@dataclass(frozen=True)
class Entry(Generic[Input]):
    """Extractor of the registry: how it is opened, and what messages and docs/encoders.md say of it.

    Attributes:
        open: function from the text after the name and its colon to the extractor.
        argument: form of that text, such as `PATH`; empty if the name stands alone.
        reads: size of its pictures, or length and rate of its sound, for people.
        width: number of values a second, for people.
        licence: licence of the published weights.
        source: where to get its file: an address, a command, or the library that fetches it.
    """

    open: Callable[[str], Extractor[Input]]
    argument: str
    reads: str
    width: str
    licence: str
    source: str


def _efficientnet(rest: str) -> Extractor[Picture]:
    # On ImageNet, one activation in a thousand exceeds 3.
    settings = parse_scale("efficientnet-lite0", rest, 1.5, 4 / 3)
    network = efficientnet.load()
    identity = {"name": "efficientnet-lite0", "weights": efficientnet.WEIGHTS}

    def values(pictures: Picture) -> Values:
        found: Values = network(torch.from_numpy(pictures)).numpy()
        return found

    size = (efficientnet.SIZE, efficientnet.SIZE)
    return Extractor(
        "efficientnet-lite0",
        efficientnet.WIDTH,
        size,
        identity,
        settings.offset,
        settings.scale,
        values,
        calibrated=not rest,
    )


def _logmel(rest: str) -> Extractor[Samples]:
    settings = parse_scale("logmel", rest, -7.0, 2 / 7)

    def values(seconds: Samples) -> Values:
        found: Values = mel.log_mel(torch.from_numpy(seconds)).numpy()
        return found

    identity = {"name": "logmel", "version": 1}
    return Extractor(
        "logmel", mel.BANDS, (mel.RATE,), identity, settings.offset, settings.scale, values, calibrated=not rest
    )


def _onnx_image(rest: str, preset: str = "onnx") -> Extractor[Picture]:
    model = onnx_graph.ImageModel(rest, preset)
    settings = model.settings
    return Extractor(model.name, model.width, model.size, model.identity, settings.offset, settings.scale, model)


def _onnx_sound(rest: str) -> Extractor[Samples]:
    model = onnx_graph.SoundModel(rest)
    settings = model.settings
    rate = (settings.rate,)
    return Extractor(model.name, model.width, rate, model.identity, settings.offset, settings.scale, model)


_OWN = "a graph of your own, exported to ONNX"
IMAGE: dict[str, Entry[Picture]] = {
    "efficientnet-lite0": Entry(
        _efficientnet, "", "224 × 224, squashed", "1280", "Apache-2.0", "pip install 'reeltag[video]'"
    ),
    "onnx": Entry(_onnx_image, "PATH?key=value&…", "of the graph's size, squashed", "any", "its own", _OWN),
    "inception": Entry(
        partial(_onnx_image, preset="inception"),
        "PATH",
        "299 × 299, squashed",
        "2048",
        "Apache-2.0",
        "Inception-v3 of 2015 (inception-2015-12-05.tgz), exported to ONNX",
    ),
    "clip": Entry(
        partial(open_vision, family="clip"),
        "PATH",
        "mostly 224 × 224, cut out of the middle",
        "512 to 1024",
        "MIT (OpenAI's)",
        "optimum-cli export onnx --model openai/clip-vit-base-patch32 --task feature-extraction clip/",
    ),
    "siglip": Entry(
        partial(open_vision, family="siglip"),
        "PATH",
        "mostly 224 × 224, squashed",
        "768 to 1152",
        "Apache-2.0",
        "optimum-cli export onnx --model google/siglip-base-patch16-224 --task feature-extraction siglip/",
    ),
    "dinov2": Entry(
        partial(open_vision, family="dinov2"),
        "PATH",
        "224 × 224, cut out of the middle",
        "384 to 1536",
        "Apache-2.0",
        "optimum-cli export onnx --model facebook/dinov2-small --task feature-extraction dinov2/",
    ),
    "timm": Entry(
        open_timm,
        "NAME",
        "as timm prepares them for the model",
        "the model's",
        "the model's",
        "timm fetches the weights (pip install 'reeltag[timm]')",
    ),
    "tflite": Entry(
        open_tflite,
        "PATH?key=value&…",
        "of the network's size, squashed",
        "any",
        "its own",
        "a TFLite network of your own; for its runtime pip install 'reeltag[litert]'",
    ),
}
SOUND: Mapping[str, Entry[Samples]] = {
    "logmel": Entry(_logmel, "", "16 kHz", "128", "part of reeltag", "part of reeltag"),
    "onnx": Entry(_onnx_sound, "PATH?key=value&…", "samples or log-mel patches", "any", "its own", _OWN),
    "whisper": Entry(
        open_whisper,
        "PATH",
        "windows of 30 seconds, 16 kHz",
        "384 (tiny) to 1280 (large)",
        "MIT",
        "optimum-cli export onnx --model openai/whisper-tiny --task automatic-speech-recognition whisper-tiny/",
    ),
    "yamnet": Entry(
        open_yamnet,
        "PATH",
        "the first 0.975 of each second, 16 kHz",
        "1024",
        "Apache-2.0",
        "TFLite from https://www.kaggle.com/models/google/yamnet (for its runtime pip install 'reeltag[litert]'), "
        "or exported to ONNX with tf2onnx",
    ),
    "vggish": Entry(
        open_vggish,
        "PATH,PCA",
        "the first 0.975 of each second, 16 kHz",
        "128",
        "Apache-2.0",
        "vggish_model.ckpt, exported to ONNX, and vggish_pca_params.npz, both from "
        "https://github.com/tensorflow/models/tree/master/research/audioset/vggish",
    ),
}


_BUILT_IN = frozenset(IMAGE)


def register_encoder(
    name: str, function: Callable[[Tensor], Tensor], prepare: Callable[[Picture], Any], *, version: str = ""
) -> Extractor[Picture]:
    """Register an encoder of pictures in torch, which `--image NAME` then names within this process.

    Every process that extracts with it, or tags with a model of its features, must register it.

    Args:
        name: of letters, digits, `.`, `_` and `-`.
        function: from a batch [N, …] of what `prepare` returns to vectors [N, D], as an `nn.Module` does.
        prepare: from one picture, an array [height, width, 3] of uint8 RGB, upright, with square pixels and of any
            size, to a tensor or an array that always has the same shape.
        version: what tells this encoder from others of the name, beside the weights of a module; models refuse the
            features of another version.

    Returns:
        The encoder, as `reeltag.data.video.features.Pipeline` takes it.

    Raises:
        UsageError: the name is not free, nothing tells two versions of the function apart, or it returns no vectors.
    """
    if not re.fullmatch(r"[\w.-]+", name) or name == "none" or name in _BUILT_IN:
        raise UsageError(f"encoder {name!r}: is no name that is free; choose another, of letters and digits")
    has_weights = isinstance(function, torch.nn.Module) and bool(function.state_dict())
    if not version and not has_weights:
        raise UsageError(f"encoder {name!r}: has no weights to tell it by; give its version")
    weights = weights_hash(function) if isinstance(function, torch.nn.Module) else None
    identity = {"name": name, "weights": weights, "version": version}
    extractor = torch_extractor(name, function, prepare, identity)

    def opened(rest: str) -> Extractor[Picture]:
        settings = parse_scale(name, rest, extractor.offset, extractor.scale)
        return extractor.rescaled(settings.offset, settings.scale)

    IMAGE[name] = Entry(
        opened, "", "as it prepares them", str(extractor.width), "its own", "registered in this process"
    )
    return extractor


def image_extractor(name: str) -> Extractor[Picture] | None:
    """Open an extractor of pictures by a name of `IMAGE`, such as `onnx:PATH?…`, or `none`.

    Raises:
        UsageError: there is no such extractor, or it cannot be opened.
    """
    return _named(name, IMAGE, "--image")


def sound_extractor(name: str) -> Extractor[Samples] | None:
    """Open an extractor of sound by a name of `SOUND`, such as `logmel`, or `none`.

    Raises:
        UsageError: there is no such extractor, or it cannot be opened.
    """
    return _named(name, SOUND, "--audio")


def _named(name: str, table: Mapping[str, Entry[Input]], option: str) -> Extractor[Input] | None:
    if name == "none":
        return None
    kind = name.partition("?")[0].partition(":")[0]
    rest = name[len(kind) :].removeprefix(":")
    if kind not in table:
        raise UsageError(f"{option}: {_unknown(name, kind, table)}")
    return table[kind].open(rest)


def _unknown(name: str, kind: str, table: Mapping[str, Entry[Any]]) -> str:
    """Return what is wrong with a name that a table does not have, and what was probably meant."""
    if kind in {**IMAGE, **SOUND}:
        return f"{kind!r} reads sound; give it to --audio" if kind in SOUND else f"{kind!r} reads pictures; see --image"
    file = Path(name.partition("?")[0])
    ending = file.suffix[1:].lower()
    if kind and name.partition("?")[0] == kind and (ending in ("onnx", "tflite") or file.exists()):
        what = f"{str(file)!r} is a {'folder' if file.is_dir() else 'file'}"
        readers = [each for each, entry in table.items() if entry.argument.startswith("PATH")]
        meant = [each for each in readers if each not in ("onnx", "tflite") and each in file.name.lower()]
        meant += [ending] if ending in readers else []
        if not meant:
            return f"{what}; give NAME:PATH, with one of {', '.join(readers)}"
        text = table[meant[0]].argument.partition("?")[0].replace("PATH", name)
        return f"{what}; name its encoder, such as {meant[0]}:{text}"
    return f"there is no {kind!r}; {did_you_mean(kind, table) or 'use ' + ', '.join(table) + ' or none'}"
