"""Encoders in torch: any function from a batch of prepared pictures to vectors, and the models of timm by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.data.pca import Values
from reeltag.data.video.decode import Picture
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.settings import FileSettings, check_reference, parse_settings
from reeltag.data.video.extractors.vision import unit_scale

BLACK = (224, 224)  # height and width of the black picture that stands for missing ones; `prepare` takes any


def torch_extractor(
    name: str, function: Callable[[Tensor], Tensor], prepare: Callable[[Picture], Any], identity: dict[str, Any]
) -> Extractor[Picture]:
    """Make an extractor of a function in torch; its fixed scale is 1.

    Args:
        name: name of the extractor.
        function: from a batch [N, …] of what `prepare` returns to vectors [N, width]. A module is set to evaluation
            and gets its input on its own device.
        prepare: from one picture, [height, width, 3] uint8 RGB of any size, upright, with square pixels, to a tensor or
            an array, whose shape is always the same.
        identity: JSON of all that decides the values.

    Raises:
        UsageError: the function fails for a black picture, or returns something else than a finite vector for each.
    """
    device = torch.device("cpu")
    if isinstance(function, torch.nn.Module):
        function.eval()
        device = next((each.device for each in function.parameters()), device)

    def values(prepared: npt.NDArray[Any]) -> Values:
        with torch.inference_mode():
            found = function(torch.from_numpy(prepared).to(device))
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(prepared):
            what = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UsageError(f"{name}: returns {what} for {len(prepared)} pictures, not a vector each, [N, width]")
        vectors: Values = found.float().cpu().numpy()
        return vectors

    def checked(picture: Picture) -> npt.NDArray[Any]:
        prepared = np.asarray(prepare(picture))
        if prepared.shape != shape:
            sides = " x ".join(map(str, picture.shape[:2]))
            what = f"a picture of {sides} is prepared to {list(prepared.shape)}, and a black one to {list(shape)}"
            raise UsageError(f"{name}: {what}; prepare all to one shape")
        return prepared

    try:
        black_picture = np.asarray(prepare(np.zeros((*BLACK, 3), np.uint8)))
        shape = black_picture.shape
        black = values(np.stack([black_picture, black_picture]))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"{name}: fails for black pictures of {BLACK[0]} x {BLACK[1]} ({error})") from error
    if not np.isfinite(black).all():
        raise UsageError(f"{name}: gives NaN or infinite values for a black picture; check its weights")
    return Extractor(name, black.shape[1], BLACK, identity, 0.0, 1.0, values, prepare=checked)


def weights_hash(module: torch.nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers: their names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {list(array.shape)}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class TimmSettings(FileSettings):
    """Keys of a timm model; without `scale` it is the one of unit vectors of its width."""

    weights: Path | None = Field(None, description="file of its weights; by default timm fetches the published ones")


def open_timm(rest: str) -> Extractor[Picture]:
    """Open a timm model without its classifier, with timm's own preprocessing; its vectors are divided by their norm.

    Args:
        rest: NAME?key=value&…, with a name of `timm.list_models` and the keys of `TimmSettings`.

    Raises:
        UsageError: timm is not installed, has no such model, or cannot get its weights.
    """
    try:
        import timm
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"timm is not installed; `{install_command('timm')}`") from error
    path, settings = parse_settings("timm", rest, TimmSettings)
    model = str(path)
    overlay = {"file": str(settings.weights)} if settings.weights else None
    if settings.weights is not None and not settings.weights.is_file():
        raise UsageError(f"timm:{model}: there is no file {settings.weights}; see ?weights=")
    try:
        network = timm.create_model(model, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        config = timm.data.resolve_data_config({}, model=network)
        transform = timm.data.create_transform(**config, is_training=False)
    except Exception as error:  # of timm, of torch, and of what fetches the weights
        said = " ".join(str(error).split())
        raise UsageError(
            f"timm:{model}: timm cannot open it ({said}); see timm.list_models(pretrained=True)"
        ) from error
    identity = {
        "name": "timm",
        "model": model,
        "weights": weights_hash(network),
        "preprocessing": {key: str(value) for key, value in sorted(config.items())},
    }
    network.eval()
    made = torch_extractor(
        f"timm:{model}",
        lambda pictures: functional.normalize(network(pictures), dim=1),
        lambda picture: transform(Image.fromarray(picture)),
        identity,
    )
    check_reference(path, settings.reference, lambda pictures: _values_of(made, pictures), "weights")
    scale = settings.scale if "scale" in settings.model_fields_set else unit_scale(made.width)
    return made.rescaled(settings.offset, scale)


def _values_of(extractor: Extractor[Picture], pictures: Picture) -> Values:
    assert extractor.prepare is not None
    return extractor.values(np.stack([extractor.prepare(picture) for picture in pictures]))
