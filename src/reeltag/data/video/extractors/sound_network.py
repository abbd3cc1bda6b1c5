"""Networks of sound from Google, ONNX or TFLite, with their log-mel patches or the samples as input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reeltag.core.errors import UsageError
from reeltag.data.pca import Values
from reeltag.data.video.decode import Samples
from reeltag.data.video.extractors import mel
from reeltag.data.video.extractors.onnx_graph import open_session, run_session
from reeltag.data.video.extractors.settings import tone
from reeltag.data.video.extractors.tflite import TfliteNetwork

SAMPLES = 15600  # of a patch: 96 windows of 400 samples, every 160


class SoundNetwork:
    """Network from seconds of sound [T, 16000] to [T, width] float32: the vector of each second's first patch.

    A network with an input [N, 96, 64], with or without a dimension of 1 for channels, gets log-mel patches. One with
    an input [samples] or [N, samples] gets the 15,600 samples of a patch, no more: of a whole second YAMNet makes two
    vectors, the second from half a second of sound and zeros that fill it up.

    Args:
        path: the file, `.tflite` or ONNX.
        width: number of values of the vector. The output that has them is used, wherever it stands.
        patches: the network's front end, from seconds [T, 16000] to patches [T, 96, 64].

    Raises:
        UsageError: the file cannot be opened, or the network has another input or no such output.
    """

    def __init__(self, path: Path, width: int, patches: Callable[[Tensor], Tensor]) -> None:
        self._patches = patches
        self._run, self._shape = _tflite(path, width) if path.suffix.lower() == ".tflite" else _onnx(path, width)
        self._reads_patches = [side for side in self._shape[1:] if side != 1] == [96, 64]
        if not self._reads_patches and len(self._shape) > 2:
            raise UsageError(f"{path}: reads {list(self._shape)}, not log-mel patches [N, 96, 64] or [samples]")
        silence, heard = both = self(np.concatenate([np.zeros((1, mel.RATE), np.float32), tone(mel.RATE)]))
        if not np.isfinite(both).all():
            raise UsageError(f"{path}: gives NaN or infinite values for silence or a tone; export it again")
        if np.array_equal(silence, heard):
            raise UsageError(f"{path}: gives the same {width:,} values for silence and a tone; export it again")

    def __call__(self, seconds: Samples) -> Values:
        """Return the vectors [T, width] of seconds of sound [T, 16000]."""
        x = seconds[:, :SAMPLES]
        if self._reads_patches:
            x = self._patches(torch.from_numpy(seconds)).numpy().reshape(len(seconds), *self._shape[1:])
        return np.concatenate([self._run(each) for each in self._calls(x)])

    def _calls(self, x: Any) -> list[Any]:
        """Return the inputs of the calls: without a batch dimension, or with a fixed one, one vector a call."""
        if len(self._shape) == 1:
            return list(x)
        return list(x[:, None]) if isinstance(self._shape[0], int) else [x]


def _tflite(path: Path, width: int) -> tuple[Callable[[Any], Values], tuple[Any, ...]]:
    """Return the function from inputs to vectors, and the shape of its input."""
    network = TfliteNetwork(path, samples=SAMPLES, width=width)
    if network.dtype != np.float32:
        raise UsageError(f"{path}: reads {np.dtype(network.dtype).name}, not float32; give a file with a float input")
    return lambda x: network(x)[None], network.shape


def _onnx(path: Path, width: int) -> tuple[Callable[[Any], Values], tuple[Any, ...]]:
    """Return the function from inputs to vectors, and the shape of its input."""
    session = open_session(path)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        kinds = ", ".join(f"{each.type} {each.shape}" for each in inputs)
        raise UsageError(f"{path}: reads {kinds}, not one float input")

    def run(x: Any) -> Values:
        found = run_session(path, session, {inputs[0].name: x})
        count = len(x) if x.ndim > 1 else 1
        vectors = [each for each in found if each.shape[-1:] == (width,) and each.size == count * width]
        if not vectors:
            shapes = ", ".join(str(list(each.shape)) for each in found)
            raise UsageError(f"{path}: gives {shapes} for {count} patches, and no vector of {width:,} values each")
        return np.asarray(vectors[0], np.float32).reshape(count, width)

    return run, tuple(inputs[0].shape)
