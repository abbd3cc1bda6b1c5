"""The command `reeltag import-tf`."""

from __future__ import annotations

from pathlib import Path

from reeltag.cli.options import Overrides, load_schema
from reeltag.cli.output import Json, say


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
