"""A shipped model as one ONNX file: preprocessing, every member with its weights as they are stored, and their mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from reeltag import __version__
from reeltag.artifact.file import Artifact, Member
from reeltag.data.loader import Batch
from reeltag.data.schema import Schema
from reeltag.core.errors import ArtifactError, BudgetError, UsageError
from reeltag.artifact.onnx import recurrent as recurrent  # registers its forms
from reeltag.artifact.onnx.families import Frames, pool
from reeltag.artifact.onnx.graph import OPSET, Graph, Value, integers
from reeltag.artifact.onnx.layers import dequantized, gate, head, hidden, normed
from reeltag.inference.onnx import open_onnx
from reeltag.artifact.onnx.weights import Weights
from reeltag.models.tagger import meta_tagger
from reeltag.inference.predictor import Predictor, predict
from reeltag.core.storage import atomic_path, megabytes

LARGEST = 2**31 - 1  # bytes that a protobuf may have
ROOM = 1 << 24  # for all that is no weight
TOLERANCE = 1e-4


def build(shipped: Artifact, top: int | None = None) -> onnx.ModelProto:
    """The model as ONNX.

    Its inputs are `frames` [B, T, D] in the schema's dtype and `lengths` [B] int64; B and T are free. Its output is
    `probabilities` [B, C] float32, or `classes` [B, top] int64 and `scores` [B, top] float32, the highest first.

    Args:
        shipped: what a `.reeltag` file holds.
        top: give the most probable classes only.

    Raises:
        UsageError: `top` is no number of classes, or a family has no ONNX form.
    """
    schema, graph = shipped.schema, Graph()
    if top is not None and not 1 <= top <= schema.classes:
        raise UsageError(f"top: {top} must be from 1 to {schema.classes}, the number of classes")
    codes = TensorProto.UINT8 if schema.dtype == "uint8" else TensorProto.FLOAT
    frames = graph.input("frames", codes, ["B", "T", schema.width])
    lengths = graph.input("lengths", TensorProto.INT64, ["B"])
    real = _frames(schema, frames, lengths)
    used = [member for member in shipped.members if member.weight > 0]
    parts = [_tag(member, schema, real, graph) * member.weight for member in used]
    probabilities = graph.add("Sum", *parts) if len(parts) > 1 else parts[0]
    if top is None:
        graph.output("probabilities", probabilities, TensorProto.FLOAT, ["B", schema.classes])
    else:
        scores, classes = graph.add_several(2, "TopK", probabilities, integers(top))
        graph.output("classes", classes, TensorProto.INT64, ["B", top])
        graph.output("scores", scores, TensorProto.FLOAT, ["B", top])
    model = graph.model
    model.graph.name, model.producer_name, model.producer_version = "reeltag", "reeltag", __version__
    model.opset_import.append(helper.make_opsetid("", OPSET))
    helper.set_model_props(model, _properties(shipped))
    return model


def _frames(schema: Schema, frames: Value, lengths: Value) -> Frames:
    """Frames beyond the schema's limit are cut, as everywhere."""
    graph, lengths = frames.graph, lengths.at_most(schema.max_frames)
    frames = frames.slice(1, 0, schema.max_frames)
    count = graph.add("Shape", frames, start=1, end=2).squeeze(0)
    places = graph.add("Range", np.array(0), count, np.array(1))
    mask_BT1 = graph.add("Less", places, lengths.unsqueeze(1)).cast(TensorProto.FLOAT).unsqueeze(2)
    return Frames(dequantized(frames, mask_BT1, schema.dtype == "uint8"), mask_BT1, lengths)


def _tag(member: Member, schema: Schema, frames: Frames, graph: Graph) -> Value:
    """Probabilities [B, C] that a member gives."""
    tagger = meta_tagger(member.config, schema.widths, schema.classes)
    weights = Weights(graph, member.state, member.name)
    if tagger.input_norm is not None:
        frames = Frames(normed(frames.x, weights.of("input_norm", "norm")), frames.mask, frames.lengths)
    vector = pool(tagger.pooling, frames, weights.of("pooling"))
    if tagger.hidden is not None:
        vector = hidden(tagger.hidden, vector, weights.of("hidden"))
    return head(tagger.head, gate(tagger.gate, vector, weights.of("gate")), weights.of("head"))


def _properties(shipped: Artifact) -> dict[str, str]:
    """What a user of the file alone has to know, as JSON."""
    known = {
        "schema": shipped.schema.model_dump(mode="json"),
        "label_names": shipped.label_names,
        "members": [{"name": member.name, "weight": member.weight} for member in shipped.members],
        "provenance": dict(shipped.provenance),
    }
    return {f"reeltag.{key}": json.dumps(value, ensure_ascii=False) for key, value in known.items()}


def save(path: Path, shipped: Artifact, batches: Iterable[Batch], top: int | None = None) -> tuple[int, float]:
    """Write the ONNX file, once it was seen to give what the artefact gives; whole or not at all.

    Args:
        path: where.
        shipped: what a `.reeltag` file holds.
        batches: videos on which both are compared.
        top: give the most probable classes only.

    Returns:
        The file's size in bytes, and the largest difference of a probability.

    Raises:
        BudgetError: the file would exceed the budget that the artefact was packed for.
        ArtifactError: the probabilities differ by more than 1e-4.
        UsageError: `top` is no number of classes, a family has no ONNX form, or onnx or onnxruntime is missing.
    """
    model = build(shipped, top)
    size, budget = _size(model), min(shipped.provenance.get("budget", LARGEST), LARGEST)
    if size > budget:
        raise BudgetError(f"{path}: would have {megabytes(size)}, {megabytes(size - budget)} over {megabytes(budget)}")
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))
        del model
        difference = largest_difference(temporary, shipped, batches, top)
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"{path}: not kept, since its probabilities differ by {difference:.1e} from the model's, which is more "
                f"than {TOLERANCE:.0e}; please report this with the versions that `reeltag doctor` prints"
            )
    return size, difference


def _size(model: onnx.ModelProto) -> int:
    """Bytes of the file; of one beyond the largest, those of its weights, since protobuf counts no further."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    return model.ByteSize() if weights < LARGEST - ROOM else weights + ROOM


def generated_batches(schema: Schema, videos: int = 64) -> Iterator[Batch]:
    """Videos of random frames and lengths, for where no others are at hand."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, schema.max_frames + 1, videos)
    lengths[0] = schema.max_frames
    for some in np.array_split(lengths, max(1, videos // 16)):
        shape = (len(some), int(some.max()), schema.width)
        frames = rng.integers(0, 256, shape, np.uint8) if schema.dtype == "uint8" else rng.normal(size=shape)
        tensor = torch.from_numpy(frames.astype(schema.dtype))
        yield Batch(("",) * len(some), tensor, torch.from_numpy(some), None)


def largest_difference(path: Path, shipped: Artifact, batches: Iterable[Batch], top: int | None) -> float:
    """The largest difference between what the two files say, |Δp|; with `top`, of the classes that ONNX names."""
    session, ours = open_onnx(path), Predictor(shipped, shipped.members, device="cpu")
    largest = 0.0
    for batch, expected in ((batch, predict(ours.model, [batch])) for batch in batches):
        (probabilities,) = (part.probabilities.numpy() for part in expected)
        found = session.run(None, {"frames": batch.frames.numpy(), "lengths": batch.lengths.numpy()})
        if top is not None:
            probabilities, found = np.take_along_axis(probabilities, found[0], 1), found[1:]
        largest = float(np.maximum(largest, np.abs(found[0] - probabilities).max()))  # NaN stays NaN
    return largest
