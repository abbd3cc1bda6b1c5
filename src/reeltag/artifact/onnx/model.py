"""An artifact as one ONNX model: preprocessing, every member with its weights as they are stored, and their mean."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
from onnx import TensorProto, helper

from reeltag.artifact.file import Artifact, Member
from reeltag.artifact.onnx import recurrent as recurrent  # registers the forms of its modules
from reeltag.artifact.onnx.graph import OPSET, Graph, Value, integers
from reeltag.artifact.onnx.layers import dequantized, gate, head, hidden, normed
from reeltag.artifact.onnx.poolings import OnnxFrames, pool
from reeltag.artifact.onnx.weights import Weights
from reeltag.artifact.tagging_rule import Calibration, class_thresholds, require_calibration
from reeltag.core.errors import UsageError
from reeltag.core.version import __version__
from reeltag.data.schema import Schema
from reeltag.models.tagger import meta_tagger


def build_onnx(
    artifact: Artifact,
    top: int | None = None,
    *,
    calibrated: bool = False,
    thresholds: bool = False,
    int8: bool = False,
) -> onnx.ModelProto:
    """Build the ONNX model of an artifact.

    Its inputs are `frames` [B, T, D] in the schema's dtype and `lengths` [B] int64; B and T are free. Its output is
    `probabilities` [B, C] float32, or `classes` [B, top] int64 and `scores` [B, top] float32, the highest first. With
    thresholds the last output is `tagged` [B, C] or [B, top] bool, True for what reaches its threshold.

    Args:
        artifact: the model.
        top: output only this many most probable classes; all probabilities by default.
        calibrated: apply the calibration of the artifact.
        thresholds: also compare with the thresholds of the artifact.
        int8: store the large factors of products in evenly spaced 8 bits, for engines with 8-bit kernels; by default
            all weights are as in the artifact.

    Raises:
        UsageError: `top` is not from 1 to C, a family has no ONNX form, or the artifact has no calibration or no
            thresholds.
    """
    schema, graph = artifact.schema, Graph()
    if top is not None and not 1 <= top <= schema.classes:
        raise UsageError(f"top: {top} must be from 1 to {schema.classes}, the number of classes")
    codes = TensorProto.UINT8 if schema.dtype == "uint8" else TensorProto.FLOAT
    frames = graph.input("frames", codes, ["B", "T", schema.width])
    lengths = graph.input("lengths", TensorProto.INT64, ["B"])
    real = _frames(schema, frames, lengths)
    used = [member for member in artifact.members if member.weight > 0]
    parts = [_tag(member, schema, real, graph, int8) * member.weight for member in used]
    probabilities = graph.add("Sum", *parts) if len(parts) > 1 else parts[0]
    if calibrated:
        probabilities = _calibrated(probabilities, require_calibration(artifact))
    least = graph.value(class_thresholds(artifact, calibrated=calibrated)) if thresholds else None
    if top is None:
        shown, width = probabilities, schema.classes
        graph.output("probabilities", probabilities, TensorProto.FLOAT, ["B", width])
    else:
        (shown, classes), width = graph.add_several(2, "TopK", probabilities, integers(top)), top
        graph.output("classes", classes, TensorProto.INT64, ["B", width])
        graph.output("scores", shown, TensorProto.FLOAT, ["B", width])
        least = least and graph.add("Gather", least, classes)
    if least is not None:
        graph.output("tagged", graph.add("GreaterOrEqual", shown, least), TensorProto.BOOL, ["B", width])
    model = graph.model
    model.graph.name, model.producer_name, model.producer_version = "reeltag", "reeltag", __version__
    model.opset_import.append(helper.make_opsetid("", OPSET))
    helper.set_model_props(model, _properties(artifact, calibrated))
    return model


def _frames(schema: Schema, frames: Value, lengths: Value) -> OnnxFrames:
    """Preprocess the inputs; frames beyond the schema's limit are cut, as in `Predictor.predict`."""
    graph, lengths = frames.graph, lengths.at_most(schema.max_frames)
    frames = frames.slice(1, 0, schema.max_frames)
    count = graph.add("Shape", frames, start=1, end=2).squeeze(0)
    positions = graph.add("Range", np.array(0), count, np.array(1))
    mask_BT1 = graph.add("Less", positions, lengths.unsqueeze(1)).cast(TensorProto.FLOAT).unsqueeze(2)
    return OnnxFrames(dequantized(frames, mask_BT1, schema.dtype == "uint8"), mask_BT1, lengths)


def _tag(member: Member, schema: Schema, frames: OnnxFrames, graph: Graph, int8: bool) -> Value:
    """Return the probabilities [B, C] of a member."""
    tagger = meta_tagger(member.config, schema.widths, schema.classes)
    weights = Weights(graph, member.state, member.name, int8=int8)
    if tagger.input_norm is not None:
        frames = OnnxFrames(normed(frames.x, weights.of("input_norm", "norm")), frames.mask, frames.lengths)
    vector = pool(tagger.pooling, frames, weights.of("pooling"))
    if tagger.hidden is not None:
        vector = hidden(tagger.hidden, vector, weights.of("hidden"))
    return head(tagger.head, gate(tagger.gate, vector, weights.of("gate")), weights.of("head"))


def _calibrated(probabilities: Value, calibration: Calibration) -> Value:
    """Return σ(scale · logit(p) + offset) of probabilities [B, C]."""
    graph = probabilities.graph
    logits = graph.add("Log", probabilities) - graph.add("Log", graph.value(1.0) - probabilities)
    return (logits * calibration.scale + calibration.offset).sigmoid()


def _properties(artifact: Artifact, calibrated: bool) -> dict[str, str]:
    """Return the metadata of the ONNX file, each as JSON.

    They are schema, label names, members and provenance, and where the artifact has them its thresholds, for the
    probabilities in the file, and whether these are calibrated.
    """
    known = {
        "schema": artifact.schema.model_dump(mode="json"),
        "label_names": artifact.label_names,
        "members": [{"name": member.name, "weight": member.weight} for member in artifact.members],
        "provenance": dict(artifact.provenance),
    }
    if artifact.thresholds is not None:
        values = class_thresholds(artifact, calibrated=calibrated).tolist()
        listed = [value if value < math.inf else None for value in values]
        known["thresholds"] = {**artifact.thresholds.about, "values": listed}
    if calibrated:
        known["calibration"] = dict(require_calibration(artifact).about)
    return {f"reeltag.{key}": json.dumps(value, ensure_ascii=False) for key, value in known.items()}
