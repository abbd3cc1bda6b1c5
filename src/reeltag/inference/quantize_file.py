"""Store the weights of a model file in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reeltag.artifact.file import load_artifact, quantize_artifact, save_artifact
from reeltag.artifact.quantization.quantize import Encoding, stored_as
from reeltag.core.errors import UsageError
from reeltag.core.storage import refuse_existing
from reeltag.inference.predictor import Predictor, resolve_model


def quantize_file(model: str | Path | Predictor, out: str | Path, encoding: Encoding = "uniform-8") -> int:
    """Store the large weights of a model in fewer bits, as `reeltag quantize` does; returns the new file's bytes.

    Args:
        model: a `.reeltag` file, a folder that `share` wrote, a URL, or what `load` gave.
        out: a new file.
        encoding: how to store them; those that are quantised already stay.

    Raises:
        ArtifactError: the model is missing or damaged.
        UsageError: `out` exists, or all large weights are quantised already.
    """
    refuse_existing(Path(out))
    file = resolve_model(model)
    before = load_artifact(file)
    small = quantize_artifact(before, encoding)
    stored = [stored_as(member.state) for member in before.members]
    if [stored_as(member.state) for member in small.members] != stored:
        # Whatever was measured was measured before.
        small = replace(small, provenance={**small.provenance, "quantized": encoding})
    elif already := sorted({*stored} - {"float32"}):
        raise UsageError(
            f"{file}: its large weights are stored in {' and '.join(already)} already, so nothing would change; give a "
            "float32 file: model.reeltag in stages/train.NAME-… of its run (stages/average.NAME-… where weights were "
            "averaged), or what `reeltag train` wrote; an ensemble takes the encodings of its recipe's [quantization]"
        )
    return save_artifact(Path(out), small)
