"""TFLite networks, run by LiteRT in one thread, and those of pictures as extractors, `PATH?key=value&…`."""

from __future__ import annotations

import warnings
from pathlib import Path
from threading import Lock, local
from typing import Any

import numpy as np

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import file_hash, require_regular
from reeltag.core.text import one_line
from reeltag.data.pca import Values
from reeltag.data.video.decode import Picture
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.settings import (
    FileSettings,
    Rgb,
    RgbScale,
    check_reference,
    parse_settings,
    probe_width,
    refuse_normalisation,
)

_OPENING = Lock()  # filters of warnings belong to all threads


class TfliteSettings(FileSettings):
    """Keys of a network of pictures, which reads (x / 255 - mean) / std; with uint8 input, the unchanged pixels."""

    mean: Rgb = (0.0, 0.0, 0.0)
    std: RgbScale = (1.0, 1.0, 1.0)


class TfliteNetwork:
    """TFLite network from one input to one vector.

    Numbers that the file stores as integers with a scale and a zero point are returned as what they stand for.

    Args:
        path: the file.
        samples: length of the input where the file leaves it open.
        width: number of values of the vector. It is an output or, in files that give scores only, the last vector of
            that width within the network. By default the vector is the only output.

    Attributes:
        shape: shape of the input, with its batch dimension if it has one.
        dtype: type of the input.

    Raises:
        UsageError: LiteRT is not installed, the file cannot be opened, or the network has another form.
    """

    def __init__(self, path: Path, *, samples: int | None = None, width: int | None = None) -> None:
        self.path, self._samples, self._inner = path, samples, width is not None
        try:
            self._content = require_regular(path).read_bytes()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
        self._threads = local()  # an interpreter serves one thread
        interpreter = self._interpreter()
        self._input = interpreter.get_input_details()[0]
        self.shape, self.dtype = tuple(self._input["shape"].tolist()), self._input["dtype"]
        self._output = self._vector(interpreter, width)

    def __call__(self, x: Any) -> Values:
        """Return the vector of one input, which has the shape and type of the network's."""
        interpreter = self._interpreter()
        try:
            interpreter.set_tensor(self._input["index"], x)
            interpreter.invoke()
            found = interpreter.get_tensor(self._output["index"])
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"{self.path}: LiteRT cannot compute it for input {list(x.shape)} ({one_line(error)})"
            ) from error
        scale, zero = self._output["quantization"]  # 0 and 0 for floats
        values: Values = found.astype(np.float32).ravel()
        return (values - np.float32(zero)) * np.float32(scale) if scale else values

    def _interpreter(self) -> Any:
        """Return the interpreter of this thread."""
        if not hasattr(self._threads, "interpreter"):
            self._threads.interpreter = self._open()
        return self._threads.interpreter

    def _open(self) -> Any:
        """Open the network with LiteRT, and run it once, since some shapes are known only then."""
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UsageError(f"LiteRT is not installed; `{install_command('litert')}`") from error
        try:
            with _OPENING, warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # that inner tensors take memory
                interpreter = Interpreter(
                    model_content=self._content, num_threads=1, experimental_preserve_all_tensors=self._inner
                )
            inputs = interpreter.get_input_details()
            if len(inputs) != 1:
                raise UsageError(f"{self.path}: has {len(inputs)} inputs; give a network with one")
            if self._samples and inputs[0]["shape_signature"].tolist() in ([-1], [1, -1], [-1, -1]):
                interpreter.resize_tensor_input(inputs[0]["index"], [1, self._samples][-len(inputs[0]["shape"]) :])
            interpreter.allocate_tensors()
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise UsageError(
                f"{self.path}: LiteRT cannot open it ({one_line(error)}); is it a .tflite file?"
            ) from error
        return interpreter

    def _vector(self, interpreter: Any, width: int | None) -> Any:
        """Return the details of the tensor that holds the vector."""
        outputs = interpreter.get_output_details()
        if width is None:
            if len(outputs) != 1 or not _is_vector(outputs[0], None):
                shapes = ", ".join(str(output["shape"].tolist()) for output in outputs)
                raise UsageError(f"{self.path}: its outputs are {shapes}; give a network with one vector as output")
            return outputs[0]
        named = [output for output in outputs if _is_vector(output, width)]
        inner = [tensor for tensor in interpreter.get_tensor_details() if _is_vector(tensor, width)]
        if not (named or inner):
            raise UsageError(f"{self.path}: has no vector of {width:,} values; is it the file of another network?")
        return named[0] if named else inner[-1]


def open_tflite(rest: str) -> Extractor[Picture]:
    """Open a TFLite network of pictures.

    Args:
        rest: PATH?key=value&…, with the keys of `TfliteSettings`.

    Raises:
        UsageError: the file is missing, its input or output is not that of such a network, or it gives NaN for a plain
            picture.
    """
    path, settings = parse_settings("tflite", rest, TfliteSettings)
    network = TfliteNetwork(path)
    batch, *size, channels = network.shape if len(network.shape) == 4 else (0, 0)
    if (batch, channels) != (1, 3) or network.dtype not in (np.float32, np.uint8):
        what = f"reads {np.dtype(network.dtype).name} {list(network.shape)}"
        raise UsageError(f"{path}: {what}, not pictures, float32 or uint8 [1, H, W, 3]")
    kept = settings.identity()
    if network.dtype == np.uint8:
        refuse_normalisation(path, settings)
        kept = {}
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)

    def values(pictures: Picture) -> Values:
        x = pictures if network.dtype == np.uint8 else (pictures.astype(np.float32) / 255 - mean) / std
        return np.stack([network(each[None]) for each in x])

    check_reference(path, settings.reference, values, "mean and std")
    identity = {"name": "tflite", "weights": file_hash(path), "settings": kept}
    grey = np.full((1, *size, 3), 128, np.uint8)
    width = probe_width(path, values, grey, "a plain grey picture")
    return Extractor(f"tflite:{path.name}", width, tuple(size), identity, settings.offset, settings.scale, values)


def _is_vector(tensor: Any, width: int | None) -> bool:
    """Return True for a vector of activations; biases have one dimension alone, and integers of 32 bits."""
    shape = tensor["shape"].tolist()
    return (
        len(shape) > 1
        and int(np.prod(shape)) == shape[-1]
        and width in (None, shape[-1])
        and tensor["dtype"] in (np.float32, np.int8, np.uint8)
    )
