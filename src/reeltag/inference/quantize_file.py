"""Store the weights of a model file in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reeltag.artifact.file import load_artifact, quantize_artifact, save_artifact
from reeltag.artifact.quantization.quantize import stored_as
from reeltag.artifact.quantization.sizes import Encoding
from reeltag.core.errors import UsageError
from reeltag.core.storage import refuse_existing
from reeltag.inference.predictor import Predictor, resolve_model


def quantize_file(model: str | Path | Predictor, out: str | Path, encoding: Encoding = "uniform-8") -> int:
    """Store the large weights of a model in fewer bits, as `reeltag quantize` does.

    Args:
        model: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a loaded `Predictor`.
        out: a new file.
        encoding: of the large weights; weights that are quantized already keep theirs.

    Returns:
        Size of the new file in bytes.

    Raises:
        ArtifactError: the model is missing or damaged.
        UsageError: `out` exists, or all large weights are quantized already.
    """
    refuse_existing(Path(out))
    file = resolve_model(model)
    before = load_artifact(file)
    after = quantize_artifact(before, encoding)
    stored = [stored_as(member.state) for member in before.members]
    if [stored_as(member.state) for member in after.members] != stored:
        # Marks that the metrics in the header are of the file before.
        after = replace(after, provenance={**after.provenance, "quantized": encoding})
    elif already := sorted({*stored} - {"float32"}):
        raise UsageError(
            f"{file}: its large weights are stored in {' and '.join(already)} already, so nothing would change; give a "
            "float32 file: model.reeltag in stages/train.NAME-… of its run (stages/average.NAME-… where weights were "
            "averaged), or what `reeltag train` wrote; an ensemble takes the encodings of its recipe's [quantization]"
        )
    return save_artifact(Path(out), after)
