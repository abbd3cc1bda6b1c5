"""Names of the encodings, and the most bytes that tensors take in them, from shapes alone and without importing torch.

A file takes fewer where entropy coding saves some, which depends on the codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from reeltag.models.shapes import TensorShapes

Encoding = Literal["float32", "float16", "uniform-8", "kmeans-8", "quantile-8", "channel-8", "group-4", "coded"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
# Those that follow from the weights alone; `coded` needs calibration videos.
DATA_FREE: tuple[Encoding, ...] = tuple(encoding for encoding in ENCODINGS if encoding != "coded")

# Tensors of at most this many elements (batch norm, biases) stay float32.
MIN_ELEMENTS = 17_000
LEVELS = 256  # values of a codebook
GROUP = 64  # elements that share a scale in 4 bits
MAX_LOSS = 0.0005  # of GAP, by which `coded` and "auto" choose how coarse weights are; a default
CALIBRATION = 20_000  # videos, at most, that show what errors of weights cost; a default
CODED_LEFT = 0.3  # of the codes' bytes at a loss of 0.0005 GAP, measured on AudioSet; see docs/bytes.md
# The least that entropy coding leaves of a large tensor's bytes: a quarter of a bit a weight of `coded`; trained
# weights in other encodings keep more than half.
LEAST_LEFT: dict[Encoding, float] = {"float32": 1.0, "coded": 1 / 32}


def is_quantized(shape: Sequence[int]) -> bool:
    """Return True if a float tensor of this shape is large enough to be quantized."""
    return math.prod(shape) > MIN_ELEMENTS


def encoded_bytes(shape: Sequence[int], encoding: Encoding) -> int:
    """Return the bytes of a large tensor in an encoding, before entropy coding."""
    elements = math.prod(shape)
    if encoding == "float32":
        return 4 * elements
    if encoding == "float16":
        return 2 * elements
    if encoding == "coded":  # at most, since the codes are compressed
        return elements + 4 * max(shape)
    if encoding == "channel-8":
        return elements + 8 * channel_count(shape)
    if encoding == "group-4":
        groups = -(-elements // GROUP)
        return groups * (GROUP // 2 + 4) + 8 * len(shape)
    return elements + 4 * LEVELS


def tagger_bytes(shapes: TensorShapes, encoding: Encoding) -> int:
    """Return the most bytes of a tagger's tensors, of which the large ones are stored in an encoding."""
    floats = (*shapes.parameters, *shapes.statistics)
    return 8 * shapes.counters + sum(
        encoded_bytes(shape, encoding if is_quantized(shape) else "float32") for shape in floats
    )


def expected_coded_bytes(size: int) -> int:
    """Estimate what entropy coding leaves of `coded` tensors of so many bytes."""
    return int(size * CODED_LEFT)


def least_bytes(shapes: Iterable[Sequence[int]], encoding: Encoding) -> int:
    """Return the fewest bytes that float tensors can take after entropy coding, the large ones in an encoding.

    Small ones stay float32; beside `coded` weights they are float16, of which entropy coding leaves half.
    """
    left, small = LEAST_LEFT.get(encoding, 0.5), 1 if encoding == "coded" else 4
    return sum(
        int(left * encoded_bytes(shape, encoding)) if is_quantized(shape) else small * math.prod(shape)
        for shape in shapes
    )


def channel_count(shape: Sequence[int]) -> int:
    """Return the length of the last dimension; a vector is one channel."""
    return shape[-1] if len(shape) > 1 else 1
