"""A `.reeltag` file: the bytes as they are, or a content and tensors under checksums that hold."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fuzz.forge import Tensor, plain, put_together, take_apart
from reeltag.artifact.file import Artifact, Member, quantize_artifact, save_artifact
from reeltag.core.errors import ArtifactError
from reeltag.data.schema import Feature, Schema
from reeltag.inference.predictor import load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SCHEMA = Schema(features=(Feature(name="a", width=4),), classes=3)
PATH = Path(tempfile.mkdtemp()) / "fuzzed.reeltag"


def model(**table: object) -> bytes:
    """A sound file; large tensors are in 8 bits."""
    config = parse_config({"hidden": 4, **table})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    artifact = Artifact(SCHEMA, ("x", "y", "z"), (Member("m", config, 1.0, state),), {"recipe": "r"})
    save_artifact(PATH, quantize_artifact(artifact))
    return PATH.read_bytes()


SOUND = model(family="netvlad", clusters=2)
TENSORS, CONTENT = take_apart(SOUND)
CODED = model(family="mean", hidden=5000)
CODED_TENSORS, CODED_CONTENT = take_apart(CODED)
STREAM = "m/hidden.weight"  # a tensor that is stored as one stream


def one_input(data: bytes) -> None:
    """Open what the bytes make: after a first byte of 0 the file, of 1 its content, of 2 a tensor, of 3 a stream."""
    if data[:1] == b"\x01":
        file = put_together(TENSORS, data[1:].decode(errors="replace"))
    elif data[:1] == b"\x02":
        name = list(TENSORS)[data[1] % len(TENSORS)] if len(data) > 1 else "m/x"
        dtype = ["F32", "F16", "U8", "I64"][data[2] % 4] if len(data) > 2 else "F32"
        forged = Tensor(dtype, [int(byte) for byte in data[3:6]], data[6:])
        file = put_together({**TENSORS, name: forged}, plain(CONTENT))
    elif data[:1] == b"\x03":
        entry = CODED_CONTENT["coded"][STREAM] | {"lengths": [[len(data) - 1]]}
        content = CODED_CONTENT | {"coded": CODED_CONTENT["coded"] | {STREAM: entry}}
        stream = data[1:].ljust(math.prod(entry["shape"]) // 1000, b"\0")
        file = put_together({**CODED_TENSORS, STREAM: Tensor("U8", [len(stream)], stream)}, plain(content))
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
    tensor = TENSORS["m/head.bias"]
    yield b"\x02" + bytes([list(TENSORS).index("m/head.bias"), 0, *tensor.shape]) + tensor.data
    yield b"\x00" + CODED
    yield b"\x01" + plain(CODED_CONTENT).encode()
    yield b"\x03" + CODED_TENSORS[STREAM].data
