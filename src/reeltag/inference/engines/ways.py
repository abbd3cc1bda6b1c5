"""Ways to compute a member of a model, each an engine in one of its modes, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from reeltag.artifact.file import Artifact, Member, decoded_bytes
from reeltag.artifact.quantization.encodings import State, shape_of
from reeltag.artifact.quantization.linear import (
    dequantized_state,
    fast_state,
    int8_products_gain,
    is_large_matrix,
    quantized_state,
)
from reeltag.core.environment import BF16_FLAGS, cpu_flags, install_command
from reeltag.core.errors import UsageError
from reeltag.data.schema import Schema
from reeltag.inference.ensemble import Ensemble
from reeltag.inference.onnx_session import OnnxMode, start_session

Mode = Literal["exact", "bf16", "small", "fast"]
# The weights that a member computes with in PyTorch, by mode.
WEIGHTS: dict[Mode, Callable[[State], Mapping[str, Tensor]]] = {
    "exact": dequantized_state,
    "bf16": partial(dequantized_state, dtype=torch.bfloat16),
    "small": quantized_state,
    "fast": fast_state,
}
# A mode of PyTorch, or one of onnxruntime after "onnx ".
Way = Literal["exact", "bf16", "small", "fast", "onnx exact", "onnx small", "onnx fast"]
WAYS: tuple[Way, ...] = get_args(Way)
ONNX = "onnx "
LARGEST = 2_000_000_000  # bytes of weights; protobuf, and so an ONNX model, is limited to 2 GiB


class OnnxMember(nn.Module):
    """A member in onnxruntime, with its weights as they are stored, or in `fast` with those of products in 8 bits.

    Args:
        member: the member.
        schema: of the data that it reads.
        mode: of onnxruntime.

    Raises:
        UsageError: the family has no ONNX form, or onnx or onnxruntime is not installed.
        ArtifactError: onnxruntime cannot open the model.
    """

    def __init__(self, member: Member, schema: Schema, mode: OnnxMode) -> None:
        super().__init__()
        try:
            from reeltag.artifact.onnx.model import build_onnx
        except ModuleNotFoundError as error:
            raise UsageError(f"{error.name} is not installed; {install_command('onnx')}") from error
        model = build_onnx(Artifact(schema, None, (replace(member, weight=1.0),), {}), int8=mode == "fast")
        content = model.SerializeToString()
        del model  # so that the weights are in memory once less while the session is made
        self.session: Any = start_session(content, member.name, mode, torch.get_num_threads())

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Return probabilities [B, C] for frames [B, T, D] and lengths [B]."""
        try:
            (probabilities,) = self.session.run(None, {"frames": frames.numpy(), "lengths": lengths.numpy()})
        except Exception as error:  # its exceptions have no other common base
            if "allocate memory" in str(error) or "bad_alloc" in str(error):
                raise MemoryError(str(error)) from error
            raise RuntimeError(f"onnxruntime: {error}") from error
        return torch.from_numpy(probabilities)


def open_member(member: Member, schema: Schema, way: Way) -> nn.Module:
    """Build the module that computes a member: every engine turns frames [B, T, D] and lengths [B] into [B, C].

    PyTorch computes with as many threads as `torch.set_num_threads` sets at the call, onnxruntime as it sets now.

    Args:
        member: with its weights.
        schema: of the data that it reads.
        way: engine and mode.

    Raises:
        ArtifactError: the weights do not fit the architecture, or the engine cannot open the model.
        UsageError: the engine is not installed, or has no form of this family.
    """
    if way.startswith(ONNX):
        return OnnxMember(member, schema, way.removeprefix(ONNX)).eval()  # type: ignore[arg-type] # one of its modes
    tagger = member.build(schema, WEIGHTS[way])  # type: ignore[index] # a mode of PyTorch
    return Ensemble([tagger], [1.0], bf16=True).eval() if way == "bf16" else tagger


def candidates(member: Member) -> list[Way]:
    """Return the ways that may be the fastest for a member on this machine's CPU, `exact` first.

    bf16 that the CPU does not multiply, and 8-bit products that PyTorch has no kernel for, are none. Where onnxruntime
    is installed its 8-bit products were faster than PyTorch's in every measurement.
    """
    ways: list[Way] = ["exact"]
    if BF16_FLAGS & (cpu_flags() or set()):
        ways.append("bf16")
    if onnx_is_installed() and decoded_bytes(member.state) < LARGEST:
        ways.append("onnx exact")
        if any(is_large_matrix(shape_of(value)) for value in member.state.values()):
            ways.append("onnx fast")
    elif int8_products_gain():
        ways.append("fast")
    return ways


def is_installed(way: Way) -> bool:
    """Return True if the engine of a way is installed."""
    return not way.startswith(ONNX) or onnx_is_installed()


def onnx_is_installed() -> bool:
    """Return True if ONNX models can be built and computed."""
    return all(find_spec(package) is not None for package in ("onnx", "onnxruntime"))
