"""ONNX models as extractors, `PATH?key=value&…`: the graph defines its input, the keys define the preprocessing."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field

from reeltag.core.environment import GPU_PROVIDER, onnx_providers, onnx_runtime
from reeltag.core.errors import UsageError
from reeltag.core.storage import content_hash, file_hash, require_regular
from reeltag.core.text import one_line
from reeltag.data.pca import Values
from reeltag.data.video.decode import Picture, Samples
from reeltag.data.video.extractors import mel
from reeltag.data.video.extractors.settings import (
    FileSettings,
    Rgb,
    RgbScale,
    check_reference,
    parse_settings,
    probe_width,
    refuse_normalisation,
    tone,
)

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

logger = logging.getLogger(__name__)
_WEIGHTS = re.compile(r"[._]data(_\d+)?")  # endings of the files that Optimum and PyTorch write beside a graph
_FLOAT, _BYTE = "tensor(float)", "tensor(uint8)"


class _Settings(FileSettings):
    output: str | None = Field(None, description="name of the output that holds the values; the first by default")


class ImageSettings(_Settings):
    """Keys of an image model, which reads (x / 255 - mean) / std; with uint8 input, the unchanged pixels."""

    size: int | None = Field(
        None, gt=0, le=4096, description="side of a picture, for graphs whose input size is dynamic"
    )
    mean: Rgb = (0.0, 0.0, 0.0)
    std: RgbScale = (1.0, 1.0, 1.0)


class SoundSettings(_Settings):
    """Keys of a sound model."""

    rate: int = Field(mel.RATE, ge=1000, le=192_000, description="samples a second")


class _Model:
    """ONNX graph with one input, run in one thread."""

    def __init__(self, path: Path, settings: _Settings, preset: str) -> None:
        self.path = path
        self._session = open_session(path)
        if len(self._session.get_inputs()) != 1:
            raise UsageError(f"{path}: has {len(self._session.get_inputs())} inputs; give a graph with one")
        self.input = self._session.get_inputs()[0]
        names = [output.name for output in self._session.get_outputs()]
        self._output = settings.output or names[0]
        if self._output not in names:
            raise UsageError(f"{path}: has no output {self._output!r}, but {', '.join(names)}; see ?output=")
        self.name = f"{preset}:{path.name}"
        kept = settings.identity() | {"output": self._output}
        # The path is left out: a moved file is the same extractor.
        self.identity: dict[str, Any] = {"name": preset, "weights": graph_hash(path), "settings": kept}

    def run(self, inputs: Any) -> Values:
        """Run the graph on one input and return the output as float32."""
        (found,) = run_session(self.path, self._session, {self.input.name: inputs}, [self._output])
        return np.asarray(found, np.float32)

    def vectors(self, found: Values, count: int) -> Values:
        """Reshape the output for `count` inputs to [count, width].

        Raises:
            UsageError: the output is not one vector for each input.
        """
        if found.ndim < 2 or len(found) != count or sum(side > 1 for side in found.shape[1:]) > 1:
            what = f"output {self._output!r} is {list(found.shape)} for {count} inputs"
            raise UsageError(f"{self.path}: {what}, not one vector each; name another with ?output=")
        return found.reshape(count, -1)


class ImageModel(_Model):
    """Image model, from pictures [T, H, W, 3] uint8 to values [T, width] float32.

    Args:
        rest: PATH?key=value&…, with the keys of `ImageSettings`.
        preset: `onnx`, or `inception` for YouTube-8M's network, whose normalisation and size are known.

    Raises:
        UsageError: the file is missing, its input or output is not that of an image model, or it gives NaN for a plain
            picture.
    """

    def __init__(self, rest: str, preset: str = "onnx") -> None:
        defaults = {"size": 299, "mean": (128 / 255,) * 3, "std": (128 / 255,) * 3} if preset == "inception" else {}
        path, self.settings = parse_settings(preset, rest, ImageSettings, defaults)
        super().__init__(path, self.settings, preset)
        self._preset = preset
        shape = self.input.shape
        if len(shape) != 4 or 3 not in (shape[1], shape[3]) or self.input.type not in (_FLOAT, _BYTE):
            what = f"input {self.input.name!r} is {self.input.type} {shape}"
            raise UsageError(f"{path}: {what}, not float or uint8 [N, 3, H, W] or [N, H, W, 3]")
        self._channels_first = shape[1] == 3
        self._one_by_one = isinstance(shape[0], int)
        sides = shape[2:] if self._channels_first else shape[1:3]
        self.size = self._sides(sides)
        if preset == "onnx" and self.input.type == _BYTE:
            refuse_normalisation(path, self.settings)
        implied = {"size"} if all(isinstance(side, int) for side in sides) else set()
        implied |= {"mean", "std"} if self.input.type == _BYTE else set()
        kept = {key: value for key, value in self.identity["settings"].items() if key not in implied}
        self.identity = {**self.identity, "settings": kept}  # what the graph decides is no other extractor if given
        grey = np.full((1, *self.size, 3), 128, np.uint8)
        self.width = probe_width(path, self, grey, "a plain grey picture")
        if preset == "inception" and self.width != 2048:
            raise UsageError(f"{path}: gives {self.width} values; Inception-v3's pool has 2048, see ?output=")
        check_reference(path, self.settings.reference, self, "mean, std, size and output")

    def _sides(self, sides: list[Any]) -> tuple[int, int]:
        wanted = self.settings.size
        height, width = (side if isinstance(side, int) else wanted for side in sides)
        if height is None or width is None:
            raise UsageError(f"{self.path}: its pictures are {sides}; give the side with ?size=")
        if wanted is not None and (height, width) != (wanted, wanted):
            fixed = [side for side in sides if isinstance(side, int)]
            what = f"its graph is made for pictures of {' x '.join(map(str, sides))}, not of {wanted} x {wanted}"
            step = "leave out ?size=" if len(fixed) == 2 else f"give ?size={fixed[0]}"
            if self._preset == "inception":
                step = "export it again, with the pictures of Inception-v3"
            raise UsageError(f"{self.path}: {what}; {step}")
        return height, width

    def __call__(self, pictures: Picture) -> Values:
        """Return the values [T, width] of pictures [T, H, W, 3]."""
        x: Any = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)) if self._channels_first else pictures
        if self.input.type == _FLOAT:
            shape = (3, 1, 1) if self._channels_first else (3,)
            mean, std = (np.array(each, np.float32).reshape(shape) for each in (self.settings.mean, self.settings.std))
            # In place, and in the order of the network's memory: a fifth of the time of (x / 255 - mean) / std.
            x = x.astype(np.float32)
            x /= 255
            x -= mean
            x /= std
        if self._one_by_one:
            return np.concatenate([self.vectors(self.run(x[i : i + 1]), 1) for i in range(len(x))])
        return self.vectors(self.run(x), len(x))


class SoundModel(_Model):
    """Sound model, from seconds [T, rate] float32 to values [T, width] float32.

    The shape of its input decides how it is fed. [samples]: the waveform of one second, and the rows of the output are
    averaged (YAMNet). [N, samples]: a batch of waveforms. [N, 96, 64], optionally with a channel dimension of 1: a
    batch of VGGish's log-mel patches.

    Args:
        rest: PATH?key=value&…, with the keys of `SoundSettings`.

    Raises:
        UsageError: the file is missing, its input or output is not that of a sound model, or it gives NaN for a tone.
    """

    def __init__(self, rest: str) -> None:
        path, self.settings = parse_settings("onnx", rest, SoundSettings)
        super().__init__(path, self.settings, "onnx")
        shape = self.input.shape
        self._patches = len(shape) in (3, 4) and [side for side in shape[1:] if side != 1] == [96, 64]
        if self.input.type != _FLOAT or not (len(shape) in (1, 2) or self._patches):
            what = f"input {self.input.name!r} is {self.input.type} {shape}"
            raise UsageError(f"{path}: {what}, not float [samples], [N, samples] or VGGish's patches [N, 96, 64]")
        if self._patches and self.settings.rate != mel.RATE:
            raise UsageError(f"{path}: VGGish's patches are of {mel.RATE:,} samples a second; leave out ?rate=")
        self.width = probe_width(path, self, tone(self.settings.rate), "a tone")
        check_reference(path, self.settings.reference, self, "rate and output")

    def __call__(self, seconds: Samples) -> Values:
        """Return the values [T, width] of seconds of sound [T, rate]."""
        if len(self.input.shape) == 1:
            rows = [self.run(second) for second in seconds]
            return np.stack([row.reshape(-1, row.shape[-1]).mean(0) for row in rows])
        x = seconds
        if self._patches:
            x = mel.vggish_patches(torch.from_numpy(seconds)).numpy()
            x = x.reshape(len(x), *self.input.shape[1:])
        if isinstance(self.input.shape[0], int):
            return np.concatenate([self.vectors(self.run(x[i : i + 1]), 1) for i in range(len(x))])
        return self.vectors(self.run(x), len(x))


def graph_hash(path: Path) -> str:
    """Return a hash of a graph and of the weights that a large graph has in files beside it."""
    beside = [file for file in path.parent.iterdir() if file.name.startswith(path.name)]
    weights = sorted(file for file in beside if _WEIGHTS.fullmatch(file.name[len(path.name) :]))
    return content_hash([file_hash(path), *map(file_hash, weights)]) if weights else file_hash(path)


def open_session(path: Path) -> InferenceSession:
    """Open an ONNX graph: on an NVIDIA GPU where onnxruntime can use it, which is logged, else in one thread.

    Raises:
        UsageError: onnxruntime is not installed, or the file cannot be read or is no graph that it knows.
    """
    onnxruntime = onnx_runtime("video")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # more threads may add in another order
    providers = onnx_providers(onnxruntime)
    try:
        session: InferenceSession = onnxruntime.InferenceSession(
            str(require_regular(path)), options, providers=providers
        )
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # onnxruntime's exceptions share no other base class
        raise UsageError(f"{path}: onnxruntime cannot open it ({error})") from error
    if session.get_providers()[0] == GPU_PROVIDER:
        logger.warning("%s: on %s, whose values differ from the CPU's in the last digits", path, GPU_PROVIDER)
    elif len(providers) > 1:
        logger.warning("%s: on the CPU, since onnxruntime's %s cannot start here", path, GPU_PROVIDER)
    return session


def run_session(
    path: Path, session: InferenceSession, inputs: Mapping[str, Any], outputs: Sequence[str] | None = None
) -> list[Any]:
    """Compute outputs of a graph, by default all.

    Args:
        path: its file, for messages.
        session: the graph.
        inputs: arrays by name.
        outputs: names of the outputs.

    Raises:
        UsageError: it cannot be computed for these inputs.
    """
    try:
        found: list[Any] = session.run(outputs, inputs)
    except Exception as error:  # onnxruntime's exceptions share no other base class
        shapes = ", ".join(str(list(each.shape)) for each in inputs.values())
        what = f"cannot be computed for input {shapes} ({one_line(error)})"
        raise UsageError(f"{path}: {what}; check its settings, or export it again") from error
    return found
