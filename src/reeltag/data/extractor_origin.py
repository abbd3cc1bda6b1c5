"""Check the extractor of shards' features by the manifest that `reeltag extract` writes beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from reeltag.core.errors import UsageError
from reeltag.core.storage import DataFile, read_json
from reeltag.data.schema import Origin, Schema

MANIFEST = "manifest.json"


def refuse_other_origin(schema: Schema, shards: Iterable[DataFile]) -> None:
    """Check that shards hold features of the extractors that a schema names, as far as both are known.

    Args:
        schema: of the model's input.
        shards: the files; remote ones are not checked.

    Raises:
        UsageError: a manifest names another extractor, or cannot be read.
    """
    ours = {feature.name: feature.extractor for feature in schema.features}
    for folder in sorted({shard.parent for shard in shards if isinstance(shard, Path)}):
        for name, theirs in _origins(folder / MANIFEST).items():
            wanted = ours.get(name)
            if wanted is not None and (theirs.hash, theirs.projection) != (wanted.hash, wanted.projection):
                made = f"{theirs.name}{describe_difference(theirs, wanted)}"
                what = f"{name!r} of these shards is from {made}, but the model expects it from {wanted.name}"
                raise UsageError(f"{folder}: {what}; extract the videos as those of the model were")


def describe_difference(found: Origin, wanted: Origin) -> str:
    """Describe how an extractor differs from the wanted one; empty if their names already differ."""
    if found.hash == wanted.hash:
        return " through another PCA"
    return " with other weights or settings" if found.name == wanted.name else ""


def _origins(manifest: Path) -> dict[str, Origin]:
    """Read a manifest's extractors by feature; empty if there is no manifest or it is of another kind."""
    content = read_json(manifest) if manifest.is_file() else None
    if not isinstance(content, dict) or "extractors" not in content:
        return {}
    try:
        schema = Schema.model_validate(content.get("schema"))
    except ValidationError as error:
        raise UsageError(f"{manifest}: its schema cannot be read; extract the videos again") from error
    return {feature.name: feature.extractor for feature in schema.features if feature.extractor is not None}
