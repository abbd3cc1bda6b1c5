"""TFLite networks, run by LiteRT in one thread, and those of pictures as extractors, `PATH?key=value&…`."""

from __future__ import annotations

import warnings
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from reeltag.core.errors import UsageError
from reeltag.core.storage import file_hash, require_regular
from reeltag.data.pca import Values
from reeltag.data.video.decode import Picture
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.extractors.onnx_graph import Rgb
from reeltag.data.video.extractors.settings import FileSettings, check_reference, parse_settings


class TfliteSettings(FileSettings):
    """Keys of a network of pictures, which reads (x / 255 - mean) / std; with uint8 input, the unchanged pixels."""

    mean: Rgb = (0.0, 0.0, 0.0)
    std: Rgb = (1.0, 1.0, 1.0)


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
        self.path = path
        self._lock = Lock()  # between the input and the output an interpreter serves one caller
        self._interpreter = _open(path, inner=width is not None)
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1:
            raise UsageError(f"{path}: has {len(inputs)} inputs; give a network with one")
        self._input = inputs[0]
        self.dtype = self._input["dtype"]
        try:
            if samples is not None and self._input["shape_signature"].tolist() in ([-1], [1, -1], [-1, -1]):
                self._interpreter.resize_tensor_input(self._input["index"], [1, samples][-len(self._input["shape"]) :])
            self._interpreter.allocate_tensors()
            self._interpreter.invoke()  # some shapes are known only then
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{path}: LiteRT cannot compute it ({error})") from error
        self.shape = tuple(self._interpreter.get_input_details()[0]["shape"].tolist())
        self._output = self._vector(width)

    def __call__(self, x: Any) -> Values:
        """Return the vector of one input, which has the shape and type of the network's."""
        try:
            with self._lock:
                self._interpreter.set_tensor(self._input["index"], x)
                self._interpreter.invoke()
                found = self._interpreter.get_tensor(self._output["index"])
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"{self.path}: LiteRT cannot compute it for input {list(x.shape)} ({error})") from error
        scale, zero = self._output["quantization"]  # 0 and 0 for floats
        values: Values = found.astype(np.float32).ravel()
        return (values - np.float32(zero)) * np.float32(scale) if scale else values

    def _vector(self, width: int | None) -> Any:
        """Return the details of the tensor that holds the vector."""
        outputs = self._interpreter.get_output_details()
        if width is None:
            if len(outputs) != 1 or not _is_vector(outputs[0], None):
                shapes = ", ".join(str(output["shape"].tolist()) for output in outputs)
                raise UsageError(f"{self.path}: its outputs are {shapes}; give a network with one vector as output")
            return outputs[0]
        named = [output for output in outputs if _is_vector(output, width)]
        inner = [tensor for tensor in self._interpreter.get_tensor_details() if _is_vector(tensor, width)]
        if not (named or inner):
            raise UsageError(f"{self.path}: has no vector of {width:,} values; is it the file of another network?")
        return named[0] if named else inner[-1]


def open_tflite(rest: str) -> Extractor[Picture]:
    """Open a TFLite network of pictures.

    Args:
        rest: PATH?key=value&…, with the keys of `TfliteSettings`.

    Raises:
        UsageError: the file is missing, or its input or output is not that of such a network.
    """
    path, settings = parse_settings("tflite", rest, TfliteSettings)
    network = TfliteNetwork(path)
    batch, *size, channels = network.shape if len(network.shape) == 4 else (0, 0)
    if (batch, channels) != (1, 3) or network.dtype not in (np.float32, np.uint8):
        what = f"reads {np.dtype(network.dtype).name} {list(network.shape)}"
        raise UsageError(f"{path}: {what}, not pictures, float32 or uint8 [1, H, W, 3]")
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)

    def values(pictures: Picture) -> Values:
        x = pictures if network.dtype == np.uint8 else (pictures.astype(np.float32) / 255 - mean) / std
        return np.stack([network(each[None]) for each in x])

    check_reference(path, settings.reference, values, "mean and std")
    identity = {"name": "tflite", "weights": file_hash(path), "settings": settings.identity()}
    width = values(np.zeros((1, *size, 3), np.uint8)).shape[1]
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


def _open(path: Path, *, inner: bool) -> Any:
    """Open a file with LiteRT; with `inner`, tensors within the network can be read too."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise UsageError("LiteRT is not installed; `pip install 'reeltag[litert]'`") from error
    try:
        content = require_regular(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that inner tensors take memory
            return Interpreter(model_content=content, num_threads=1, experimental_preserve_all_tensors=inner)
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"{path}: LiteRT cannot open it ({error}); is it a .tflite file?") from error
