"""A `.reeltag` file: the bytes as they are, or a content and tensors under checksums that hold."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fuzz.forge import Tensor, plain, put_together, take_apart
from reeltag.artifact.file import Artifact, Member, quantize_artifact, save_artifact
from reeltag.artifact.quantization.encodings import CodedTensor, HalfTensor, QuantizedTensor, State
from reeltag.core.errors import ArtifactError
from reeltag.data.schema import Feature, Schema
from reeltag.inference.predictor import load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SCHEMA = Schema(features=(Feature(name="a", width=4),), classes=3)
PATH = Path(tempfile.mkdtemp()) / "fuzzed.reeltag"


def model(*, codes: bool = False, **table: object) -> bytes:
    """A sound file; large tensors are in 8 bits, or with `codes` all as the encoding `coded` stores them."""
    config = parse_config({"hidden": 4, **table})
    state: State = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    if codes:
        state = {name: rounded(value) for name, value in state.items() if isinstance(value, torch.Tensor)}
    artifact = Artifact(SCHEMA, ("x", "y", "z"), (Member("m", config, 1.0, state),), {"recipe": "r"})
    save_artifact(PATH, quantize_artifact(artifact))
    return PATH.read_bytes()


def rounded(value: torch.Tensor) -> torch.Tensor | QuantizedTensor:
    """A matrix in codes, a vector in float16, a counter as it is."""
    if not value.is_floating_point():
        return value
    if value.ndim != 2:
        return HalfTensor(value.half())
    steps = torch.full((1, value.shape[1]), 0.1, dtype=torch.float16)
    return CodedTensor((value / steps).round().to(torch.int8), steps)


SOUND = model(family="netvlad", clusters=2)
TENSORS, CONTENT = take_apart(SOUND)
CODES_TENSORS, CODES_CONTENT = take_apart(model(family="netvlad", clusters=2, codes=True))
CODED = model(family="mean", hidden=5000)
CODED_TENSORS, CODED_CONTENT = take_apart(CODED)
STREAM = "m/hidden.weight"  # a tensor that is stored as one stream


def one_input(data: bytes) -> None:
    """Open what the bytes make.

    After a first byte of 0 the file, of 1 its content, of 2 a tensor, of 3 a stream, of 4 a tensor beside codes.
    """
    if data[:1] == b"\x01":
        file = put_together(TENSORS, data[1:].decode(errors="replace"))
    elif data[:1] in (b"\x02", b"\x04"):
        tensors, content = (TENSORS, CONTENT) if data[0] == 2 else (CODES_TENSORS, CODES_CONTENT)
        name = list(tensors)[data[1] % len(tensors)] if len(data) > 1 else "m/x"
        dtype = ["F32", "F16", "U8", "I64", "I8"][data[2] % 5] if len(data) > 2 else "F32"
        count = data[3] % 4 if len(data) > 3 else 0
        forged = Tensor(dtype, [int(byte) for byte in data[4 : 4 + count]], data[4 + count :])
        file = put_together({**tensors, name: forged}, plain(content))
    elif data[:1] == b"\x03":
        entry = CODED_CONTENT["coded"][STREAM] | {"lengths": [[len(data) - 1]]}
        altered = CODED_CONTENT | {"coded": CODED_CONTENT["coded"] | {STREAM: entry}}
        stream = data[1:].ljust(math.prod(entry["shape"]) // 1000, b"\0")
        file = put_together({**CODED_TENSORS, STREAM: Tensor("U8", [len(stream)], stream)}, plain(altered))
    else:
        file = data[1:]
    PATH.write_bytes(file)
    try:
        opened = load(PATH)
    except ArtifactError as error:
        assert str(PATH) in str(error)
        return
    frames = np.ones((2, opened.schema.width), opened.schema.dtype)
    assert opened.predict(frames).shape == (opened.schema.classes,)


def seeds() -> Iterator[bytes]:
    """Sound files, and what they are made of."""
    for family in ("mean", "netvlad", "dbof", "rnn", "attention"):
        small = {"dbof": {"clusters": 4}, "rnn": {"cells": 4}, "attention": {"width": 4, "heads": 2}}.get(family, {})
        file = model(family=family, **small)
        yield b"\x00" + file
        yield b"\x01" + plain(take_apart(file)[1]).encode()
        yield b"\x00" + model(family=family, codes=True, **small)
    tensor = TENSORS["m/head.bias"]
    yield b"\x02" + bytes([list(TENSORS).index("m/head.bias"), 0, 1, *tensor.shape]) + tensor.data
    for name, dtype in (("m/hidden.weight", 4), ("m/hidden.weight#steps", 1), ("m/hidden.bias", 1)):
        tensor = CODES_TENSORS[name]
        yield bytes([4, list(CODES_TENSORS).index(name), dtype, len(tensor.shape), *tensor.shape]) + tensor.data
    yield b"\x00" + CODED
    yield b"\x01" + plain(CODED_CONTENT).encode()
    yield b"\x03" + CODED_TENSORS[STREAM].data
