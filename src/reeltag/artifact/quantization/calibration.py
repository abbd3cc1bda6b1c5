"""What an error of each weight costs, measured on training videos.

For a product y = xW, the Fisher information of W is approximated by A ⊗ G, the second moments of its inputs and those
of the gradients of the log-likelihood at its outputs, with labels sampled from the model's own probabilities (K-FAC,
Martens and Grosse 2015; for weights that frames share, Grosse and Martens 2016).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from reeltag.artifact.quantization.quantize import is_large
from reeltag.core.errors import UsageError
from reeltag.data.loader import Batch
from reeltag.models.frames import Frames
from reeltag.models.layers import InputNorm
from reeltag.models.rnn import CuDNNLayer, PublishedGRU
from reeltag.models.tagger import Tagger
from reeltag.models.unrolled import UnrolledLayer

FULL, BLOCK = 4096, 1024  # up to FULL units have one matrix of moments; more have blocks, so that it fits memory


@dataclass
class Moments:
    """Second moments of one side of a product.

    Attributes:
        sums: by index of their first unit, sums over rows [N, N]; units of different blocks count as independent.
        rows: number of rows of each block.
    """

    sums: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, int] = field(default_factory=dict)

    def add(self, x_ND: Tensor, begin: int = 0) -> None:
        """Add rows [N, D] of the units from `begin` on."""
        for part in torch.split(x_ND, x_ND.shape[1] if x_ND.shape[1] <= FULL else BLOCK, 1):
            if begin not in self.sums:
                self.sums[begin] = part.new_zeros(part.shape[1], part.shape[1])
                self.rows[begin] = 0
            self.sums[begin].addmm_(part.T, part)
            self.rows[begin] += len(part)
            begin += part.shape[1]

    def per_row(self) -> list[Tensor]:
        """Return the mean over rows of each block, in order."""
        return [total / self.rows[begin] for begin, total in sorted(self.sums.items())]

    def per(self, videos: int) -> list[Tensor]:
        """Return the sum over rows of each block for one of so many videos, in order."""
        return [total / videos for _, total in sorted(self.sums.items())]


@dataclass
class Calibration:
    """Statistics of a tagger's large weights.

    Attributes:
        inputs: by name of a weight in products, moments of the inputs.
        outputs: likewise, moments of the gradients at the outputs.
        outputs_first: names of weights [H, D] rather than [D, H].
        squares: by name of any parameter, sum of its squared gradients over videos [].
        columns: by name of any other large tensor, the same for each index of its last dimension.
        videos: number of videos.
    """

    inputs: dict[str, Moments] = field(default_factory=dict)
    outputs: dict[str, Moments] = field(default_factory=dict)
    outputs_first: set[str] = field(default_factory=set)
    squares: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, Tensor] = field(default_factory=dict)
    videos: int = 0

    def add_gradient(self, name: str, gradient: Tensor) -> None:
        """Add the gradient of a batch; its videos are independent, so their squares add up."""
        self.squares[name] = self.squares.get(name, 0.0) + torch.linalg.vector_norm(gradient).square()
        if name not in self.inputs and is_large(gradient):
            columns = gradient.shape[-1] if gradient.ndim > 1 else 1
            by_column = torch.linalg.vector_norm(gradient.reshape(-1, columns), dim=0).square()
            self.columns[name] = self.columns.get(name, 0.0) + by_column


def calibrate(tagger: Tagger, batches: Iterable[Batch], seed: int) -> Calibration:
    """Measure what errors of a tagger's large weights cost.

    Args:
        tagger: in evaluation mode; afterwards its recurrent layers are unrolled.
        batches: of training videos.
        seed: of the labels that are sampled from the model's probabilities.

    Raises:
        UsageError: there are no videos, or the statistics are not finite.
    """
    for name, module in list(tagger.named_modules()):
        if isinstance(module, InputNorm):
            module.register_forward_hook(lambda _module, _inputs, frames: _plain(frames))
        if isinstance(module, CuDNNLayer | PublishedGRU):
            tagger.set_submodule(name, UnrolledLayer(module))
    named = {name.replace(".layer.", "."): each.requires_grad_() for name, each in tagger.named_parameters()}
    found, generator = Calibration(), torch.Generator().manual_seed(seed)
    watch = _Watch({name: weight for name, weight in named.items() if is_large(weight)}, found)
    for batch in batches:
        with watch:
            probabilities = tagger(batch.frames, batch.lengths)
        if not bool(torch.isfinite(probabilities).all()):
            raise UsageError(f"the tags of {batch.ids[0]!r}, or of a video after it, are not finite; check the data")
        labels = torch.bernoulli(probabilities.detach(), generator=generator)
        F.binary_cross_entropy(probabilities, labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        for name, weight in named.items():
            if weight.grad is not None:
                found.add_gradient(name, weight.grad)
            weight.grad = None
        found.videos += len(batch)
    if not found.videos:
        raise UsageError("no videos to calibrate with; give labelled or unlabelled shards of the training data")
    _check_finite(found)
    return found


def _check_finite(found: Calibration) -> None:
    sums = {name: list(each.sums.values()) for side in (found.inputs, found.outputs) for name, each in side.items()}
    for name, tensors in {**sums, **{name: [each] for name, each in found.squares.items()}}.items():
        if not all(bool(torch.isfinite(each).all()) for each in tensors):
            raise UsageError(
                f"{name}: its inputs or gradients are not finite on the calibration videos; check the data"
            )


def _plain(frames: Frames) -> Frames:
    """Return the same frames with scale 1 and shift 0, so that products have the inputs that the weights see."""
    ones, zeros = torch.ones_like(frames.scale), torch.zeros_like(frames.shift)
    return replace(frames, values=frames.x, scale=ones, shift=zeros)


@dataclass(frozen=True)
class _View:
    """Weight as it enters a product: some of its rows, scaled.

    Attributes:
        tensor: that the product sees; it is kept so that its id stays its own.
        name: of the parameter.
        begin: first row.
        row_scale: [D], factor of each row.
        column_scale: [H], factor of each column.
    """

    tensor: Tensor
    name: str
    begin: int = 0
    row_scale: Tensor | float = 1.0
    column_scale: Tensor | float = 1.0


class _Watch(TorchFunctionMode):
    """Mode in which products add their inputs and the gradients at their outputs to a calibration.

    Args:
        weights: by name.
        found: receives the moments.
    """

    def __init__(self, weights: Mapping[str, Tensor], found: Calibration) -> None:
        super().__init__()
        self.found = found
        self.roots = {id(weight): _View(weight, name) for name, weight in weights.items()}
        self.views: dict[int, _View] = {}

    def __enter__(self) -> _Watch:
        self.views = dict(self.roots)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and record it if it multiplies by a weight."""
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in ("matmul", "__matmul__"):
            return self._product(args[0], args[1], result)
        if name == "addmm":
            return self._product(args[1], args[2], result)
        if name == "linear":
            if id(args[1]) in self.views:
                self.found.outputs_first.add(self.views[id(args[1])].name)
            return self._product(args[0], args[1], result)
        if name in ("mul", "__mul__"):
            for weight, scale in (args, args[::-1]):
                self._scaled(weight, scale, result)
        if name == "__getitem__" and id(args[0]) in self.views and isinstance(args[1], slice):
            view = self.views[id(args[0])]
            begin = args[1].indices(len(args[0]))[0]
            self.views[id(result)] = replace(view, tensor=result, begin=view.begin + begin)
        return result

    def _scaled(self, weight: Any, scale: Any, result: Tensor) -> None:
        view = self.views.get(id(weight))
        if view is None or not isinstance(scale, Tensor):
            return
        if scale.ndim == 1:
            self.views[id(result)] = replace(view, tensor=result, column_scale=view.column_scale * scale.detach())
        elif scale.ndim == 2 and scale.shape[1] == 1:
            self.views[id(result)] = replace(view, tensor=result, row_scale=view.row_scale * scale[:, 0].detach())

    def _product(self, x: Tensor, weight: Tensor, result: Tensor) -> Tensor:
        view = self.views.get(id(weight))
        if view is None or x.ndim == 1:
            return result
        inputs = self.found.inputs.setdefault(view.name, Moments())
        outputs = self.found.outputs.setdefault(view.name, Moments())
        inputs.add(x.detach().flatten(0, -2) * view.row_scale, view.begin)
        result.register_hook(  # type: ignore[no-untyped-call]
            lambda gradient: outputs.add(gradient.flatten(0, -2) * view.column_scale)
        )
        return result
