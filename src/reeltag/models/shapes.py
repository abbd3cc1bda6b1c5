"""Shapes of a tagger's tensors, from its configuration alone: sizes and budgets are checked without importing torch.

`tests/models/test_shapes.py` compares them with the tensors of the modules, for every family and option.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import singledispatch

from reeltag.models.config import GatingConfig, HeadConfig, TaggerConfig, shares
from reeltag.models.families import (
    AttentionConfig,
    DBoFConfig,
    MeanConfig,
    NetFVConfig,
    NetVLADConfig,
    NeXtVLADConfig,
    RNNConfig,
    groups_of,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorShapes:
    """Shapes of the tensors in the state dict of a module.

    Attributes:
        parameters: of the trained float32 tensors.
        statistics: of the other float32 tensors, the running means and variances of batch norms.
        counters: number of int64 scalars; each batch norm counts its training steps.
    """

    parameters: tuple[Shape, ...] = ()
    statistics: tuple[Shape, ...] = ()
    counters: int = 0

    def __add__(self, other: TensorShapes) -> TensorShapes:
        return TensorShapes(
            self.parameters + other.parameters, self.statistics + other.statistics, self.counters + other.counters
        )


@dataclass(frozen=True)
class PoolingShapes:
    """Shapes of a pooling's tensors, and the width of the vector that it returns."""

    tensors: TensorShapes
    outputs: int


def tagger_shapes(config: TaggerConfig, widths: Sequence[int], classes: int) -> TensorShapes:
    """Return the shapes of a tagger's tensors.

    Args:
        config: one family's configuration.
        widths: D_f of each feature.
        classes: C.
    """
    pooling = pooling_shapes(config, widths)
    tensors, width = pooling.tensors, pooling.outputs
    if config.input_norm:
        tensors += _batch_norm(sum(widths))
    if config.hidden:
        tensors += _parameters((width, config.hidden))
        tensors += _parameters((config.hidden,)) if config.activation == "bias" else _batch_norm(config.hidden)
        width = config.hidden
    return tensors + _gate(width, config.gating) + _head(width, classes, config.head)


@singledispatch
def pooling_shapes(config: TaggerConfig, widths: Sequence[int]) -> PoolingShapes:
    """Return the shapes of a pooling's tensors.

    The pooling of a family without a rule below is built on the meta device, for which torch is imported.

    Args:
        config: one family's configuration.
        widths: D_f of each feature.
    """
    from reeltag.models.tagger import meta_pooling

    pooling = meta_pooling(config, widths)
    parameters = [tuple(each.shape) for each in pooling.parameters()]
    buffers = [each for name, each in pooling.state_dict().items() if name in dict(pooling.named_buffers())]
    statistics = [tuple(each.shape) for each in buffers if each.is_floating_point()]
    tensors = TensorShapes(tuple(parameters), tuple(statistics), len(buffers) - len(statistics))
    return PoolingShapes(tensors, pooling.outputs)


@pooling_shapes.register
def _attention(config: AttentionConfig, widths: Sequence[int]) -> PoolingShapes:
    width = config.width
    layer_norms, queries = [(width,)] * 4, (config.queries, width)
    tensors = _linear(sum(widths), width) + _linear(width, width) + _linear(width, 4 * width)
    tensors += _linear(2 * width, width) + _parameters(*layer_norms, queries, (width, width), (width, width))
    return PoolingShapes(tensors, config.queries * width)


@pooling_shapes.register
def _dbof(config: DBoFConfig, widths: Sequence[int]) -> PoolingShapes:
    if config.pooling in ("max", "mean"):
        return PoolingShapes(_clusters(sum(widths), config.clusters), config.clusters)
    clusters = shares(config.clusters, len(widths), 8)
    tensors = _sum(_clusters(features, k) for features, k in zip(widths, clusters, strict=True))
    if config.pooling == "gated":
        tensors += _parameters((clusters[0], widths[0]), (widths[0], clusters[0])) + _batch_norm(clusters[0])
    return PoolingShapes(tensors, sum(clusters) * (1 + (config.pooling == "soft+max")))


@pooling_shapes.register
def _mean(config: MeanConfig, widths: Sequence[int]) -> PoolingShapes:
    return PoolingShapes(TensorShapes(), sum(widths))


@pooling_shapes.register
def _netfv(config: NetFVConfig, widths: Sequence[int]) -> PoolingShapes:
    sizes = list(zip(widths, shares(config.clusters, len(widths), 2), strict=True))
    tensors = _sum(_clusters(*size) + _parameters(*[size] * (1 + (config.centres == "free"))) for size in sizes)
    return PoolingShapes(tensors, sum(2 * features * k for features, k in sizes))


@pooling_shapes.register
def _netvlad(config: NetVLADConfig, widths: Sequence[int]) -> PoolingShapes:
    sizes = list(zip(widths, shares(config.clusters, len(widths), 2), strict=True))
    tensors = _sum(_clusters(*size) + _parameters(*[size] * (config.centres == "free")) for size in sizes)
    return PoolingShapes(tensors, sum(features * k for features, k in sizes))


@pooling_shapes.register
def _nextvlad(config: NeXtVLADConfig, widths: Sequence[int]) -> PoolingShapes:
    tensors, outputs = TensorShapes(), 0
    clusters, groups_by_feature = shares(config.clusters, len(widths), 2), groups_of(config.groups, len(widths))
    for features, k, groups in zip(widths, clusters, groups_by_feature, strict=True):
        wide = config.expansion * features
        pooled = wide // groups * k
        tensors += _linear(features, wide) + _linear(wide, groups) + _clusters(wide, groups * k)
        tensors += _parameters((wide // groups, k)) + _batch_norm(pooled)
        outputs += pooled
    return PoolingShapes(tensors, outputs)


@pooling_shapes.register
def _rnn(config: RNNConfig, widths: Sequence[int]) -> PoolingShapes:
    dual = config.paths == "dual"
    inputs = list(widths) if dual else [sum(widths)]
    cells = shares(config.cells, len(inputs), 8)
    tensors = TensorShapes()
    for features, hidden in zip(inputs, cells, strict=True):
        if dual:
            tensors += _batch_norm(features) + _parameters((features, features)) + _batch_norm(features)
        for read, own in ((features, hidden // 2), (features, hidden // 2), (hidden, hidden)):
            tensors += _recurrent(config.cell, read, own)
    return PoolingShapes(tensors, sum(cells))


def _recurrent(cell: str, inputs: int, cells: int) -> TensorShapes:
    """Return the shapes of one direction of a recurrent layer."""
    if cell == "gru":
        return _parameters((inputs + cells, 2 * cells), (2 * cells,), (inputs + cells, cells), (cells,))
    gates = cells * (4 if cell == "lstm" else 3)
    return _parameters((gates, inputs), (gates, cells), (gates,), (gates,))


def _gate(width: int, config: GatingConfig) -> TensorShapes:
    if config.kind == "context":
        return _parameters((width, width)) + (_batch_norm(width) if config.norm else _parameters((width,)))
    if config.kind == "se":
        bottleneck = max(1, width // config.reduction)
        return _parameters((width, bottleneck), (bottleneck, width)) + _batch_norm(bottleneck)
    return TensorShapes()


def _head(width: int, classes: int, config: HeadConfig) -> TensorShapes:
    if config.kind == "logistic":
        return _parameters((width, classes), (classes,))
    rank, experts = config.gate_rank, classes * config.experts
    tensors = _parameters((rank or width, experts + classes), (width, experts), (experts,))
    if rank:
        tensors += _parameters((width, rank))
    if config.prob_gating:
        inputs = width if config.prob_gating_input == "hidden" else classes
        tensors += _parameters((inputs, classes)) + _batch_norm(classes)
    return tensors


def _parameters(*shapes: Shape) -> TensorShapes:
    return TensorShapes(parameters=shapes)


def _linear(inputs: int, outputs: int) -> TensorShapes:
    return _parameters((outputs, inputs), (outputs,))


def _batch_norm(features: int) -> TensorShapes:
    return TensorShapes(((features,),) * 2, ((features,),) * 2, 1)


def _clusters(features: int, clusters: int) -> TensorShapes:
    """Return the shapes of a projection of frames to clusters, with its batch norm."""
    return _parameters((features, clusters)) + _batch_norm(clusters)


def _sum(parts: Iterable[TensorShapes]) -> TensorShapes:
    return sum(parts, TensorShapes())
