"""The commands that convert models: `reeltag quantize`, `average` and `import-tf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from reeltag.cli.data import Overrides, load_schema
from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError

# As in quantize.py, which would import torch.
Encoding = Literal["float16", "uniform-8", "kmeans-8", "quantile-8", "channel-8", "group-4"]


def quantize(model: Path, /, *, out: Path, encoding: Encoding = "uniform-8", json: Json = False) -> None:
    """Quantize the large weights of a model.

    Example: reeltag quantize runs/audioset/netvlad.reeltag --out small.reeltag --encoding group-4

    Args:
        model: A float32 .reeltag file, such as `reeltag train` writes; quantized weights stay as they are.
        out: A new .reeltag file.
        encoding: Encoding of the weights.
    """
    from reeltag.artifact.quantization.sizes import MIN_ELEMENTS
    from reeltag.core.text import megabytes
    from reeltag.inference.quantize_file import quantize_file

    size = quantize_file(model, out, encoding)
    was = model.stat().st_size
    same = f"; no tensor has more than {MIN_ELEMENTS:,} elements, so all stay float32" if size == was else ""
    text = [f"{out}: {megabytes(size)}, from {megabytes(was)}{same}"]
    say({"file": out, "bytes": size, "bytes_before": was}, text, json)


def average(*models: Annotated[Path, Parameter(required=True)], out: Path, json: Json = False) -> None:
    """Average the weights and batch-norm statistics of models with the same architecture.

    Example: reeltag average first.reeltag second.reeltag --out mean.reeltag

    Args:
        models: .reeltag files with one member each.
        out: A new .reeltag file.
    """
    from reeltag.artifact.file import average_artifacts, load_artifact, save_artifact
    from reeltag.core.storage import refuse_existing
    from reeltag.core.text import counted, megabytes

    refuse_existing(out)
    if twice := {str(model) for model in models if models.count(model) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))}: is given twice; the mean takes each model once")
    size = save_artifact(out, average_artifacts({str(model): load_artifact(model) for model in models}))
    text = [f"{out}: {megabytes(size)}, the mean of {counted(len(models), 'model')}"]
    say({"file": out, "bytes": size, "models": len(models)}, text, json)


def import_tf(
    checkpoint: Path,
    /,
    *,
    out: Path,
    schema: str = "yt8m-frame",
    set_: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Convert a TensorFlow checkpoint of the paper's authors, plain or quantized, to a .reeltag file.

    The architecture is inferred from names and shapes of the variables; --set supplies what cannot be inferred.
    A recipe can use the file as an ensemble member, in its table [imported].

    Example: reeltag import-tf trained_models/NetVLAD/inference_model --out netvlad.reeltag

    Args:
        checkpoint: Prefix of the .index and .data files, one of them, or the folder of a single checkpoint.
        out: A new .reeltag file.
        schema: A preset (yt8m-frame, yt8m-video), or a recipe with a data.schema.
    """
    from reeltag.artifact.file import Artifact, save_artifact
    from reeltag.artifact.tensorflow.convert import import_checkpoint
    from reeltag.core.environment import versions
    from reeltag.core.storage import refuse_existing
    from reeltag.core.text import megabytes
    from reeltag.recipe.load import tagger_config

    refuse_existing(out)
    data = load_schema(schema)
    member = import_checkpoint(
        checkpoint, data, out.stem, lambda table: tagger_config(str(checkpoint), table, set_, data.widths)
    )
    provenance = {"imported": str(checkpoint), "versions": versions()}
    size = save_artifact(out, Artifact(data, None, (member,), provenance))
    text = [f"{out}: {megabytes(size)}", member.config.model_dump_json()]
    say({"file": out, "bytes": size, "config": member.config.model_dump(mode="json")}, text, json)
