"""Small models of every registered family, in their forms and with their options, for tests of models."""

from dataclasses import replace

import pytest
import torch

from reeltag.artifact.file import Artifact, Member, quantize_artifact
from reeltag.artifact.quantization.calibration import calibrate
from reeltag.artifact.quantization.coded import Encoder
from reeltag.artifact.quantization.encodings import CodedTensor
from reeltag.artifact.quantization.quantize import quantize_tensor
from reeltag.data.loader import Batch
from reeltag.data.schema import Feature, Schema
from reeltag.inference.predictor import Predictor
from reeltag.models.families import FAMILIES, parse_config
from reeltag.models.tagger import build_tagger

WIDTHS, CLASSES = (12, 4), 9
SCHEMA = Schema(
    features=tuple(Feature(name=f"f{width}", width=width) for width in WIDTHS), classes=CLASSES, max_frames=50
)
STEP = 0.02  # of small coded models
# Forms of a family to test; a family without an entry is tested with its defaults.
FORMS = {
    "attention": [{"width": 8, "heads": 2, "queries": 3}],
    "dbof": [{"pooling": p, "clusters": 16} for p in ("max", "mean", "soft", "soft+max", "gated")],
    "netfv": [{"clusters": 4}, {"clusters": 4, "centres": "coupled", "coupling": 0.5}],
    "netvlad": [{"clusters": 4}, {"clusters": 4, "centres": "none"}],
    "nextvlad": [{"clusters": 4, "groups": 4, "vlad_dropout": 0.0}],
    "rnn": [
        *({"cell": cell, "cells": 8} for cell in ("lstm", "gru", "gru-torch")),
        {"cell": "gru", "cells": 16, "paths": "dual"},
        {"cell": "lstm", "cells": 16, "paths": "dual", "shuffle": True},
    ],
}
ALL = [(family, form) for family in FAMILIES for form in FORMS.get(family, [{}])]
OPTIONS = {
    "relu6": {"hidden": 8, "activation": "relu6"},
    "norm": {"hidden": 8, "activation": "norm"},
    "no hidden layer, no gating": {"hidden": 0, "activation": "default", "gating": {"kind": "none"}},
    "gating with a bias": {"gating": {"norm": False}},
    "gating without the diagonal": {"gating": {"diagonal": False}},
    "squeeze and excitation": {"gating": {"kind": "se", "reduction": 2}},
    "logistic": {"head": {"kind": "logistic"}},
    "three experts, gates of low rank": {"head": {"experts": 3, "gate_rank": 2}},
    "probability gating": {"head": {"prob_gating": True}},
    "probability gating without the diagonal": {"head": {"prob_gating": True, "prob_gating_diagonal": False}},
    "probability gating by the hidden vector": {"head": {"prob_gating": True, "prob_gating_input": "hidden"}},
    "input norm": {"input_norm": True},
    "dropout": {"dropout": 0.3},
}


def small_tagger(family, form, seed=0, **options):
    small = FAMILIES[family].model_fields
    table = {"family": family, "hidden": min(8, small["hidden"].default), "bn_decay": 0.9, **form, **options}
    if table.get("activation") == "default":
        table["activation"] = small["activation"].default
    return build_tagger(parse_config(table, WIDTHS), WIDTHS, CLASSES, seed)


def videos(count=6, frames=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (count, frames, sum(WIDTHS)), generator=generator, dtype=torch.uint8)
    labels = torch.rand(count, CLASSES, generator=generator) < 0.3
    return codes, torch.full((count,), frames), labels


def stirred(tagger, seed=7):
    """Change every weight and statistic from its initial value, so that ignoring one changes the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tagger.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return tagger.eval()


def small_artifact(family, form, encoding="uniform-8", **options):
    """Build an artifact with one member; with the fixture `everything_is_large` its small weights are quantized too."""
    tagger = stirred(small_tagger(family, form, **options))
    member = Member("m", tagger.config, 1.0, tagger.state_dict())
    return in_encoding(Artifact(SCHEMA, None, (member,), {}), encoding)


def in_encoding(artifact, encoding):
    """Quantize an artifact; for `coded` it is calibrated on a few videos of random frames.

    Args:
        artifact: in float32.
        encoding: one of `ENCODINGS`, or `coded@STEP` as candidates of recipes are named.
    """
    name, _, step = encoding.partition("@")
    if name != "coded":
        return quantize_artifact(artifact, name)
    step = float(step or STEP)
    members = tuple(replace(member, state=coded_state(member, artifact.schema, step)) for member in artifact.members)
    return replace(artifact, members=members)


def coded_state(member, schema, step):
    """Encode a member's weights."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (8, 3, schema.width), generator=generator).to(getattr(torch, schema.dtype))
    batch = Batch(("",) * len(frames), frames, torch.full((len(frames),), frames.shape[1]), None)
    return Encoder(member.state, calibrate(member.build(schema), [batch], seed=0)).encode(step)


def stored_in(encoding, tensor):
    """Store a tensor in any encoding; codes of `coded` are rounded as they are, without calibration."""
    if encoding != "coded":
        return quantize_tensor(tensor, encoding)
    last = tensor.shape[-1] if tensor.ndim > 1 else 1
    steps = (tensor.abs().reshape(-1, last).amax(0) / 100).half().view(*[1] * (tensor.ndim - 1), last)
    return CodedTensor((tensor / steps).round().to(torch.int8), steps)


def in_mode(ensemble, mode):
    return Predictor(ensemble, ensemble.members, mode)


def name_of(value):
    return "-".join(map(str, value.values())) or "defaults" if isinstance(value, dict) else value


battery = pytest.mark.parametrize(("family", "form"), ALL, ids=name_of)
with_options = pytest.mark.parametrize("options", [{}, *OPTIONS.values()], ids=["plain", *OPTIONS])
