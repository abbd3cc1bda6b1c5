"""Read the schema and the extractors of shards from the manifest that reeltag writes beside those it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reeltag.core.errors import UsageError
from reeltag.core.storage import DataFile, read_json
from reeltag.data.schema import Feature, Origin, Schema

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Published:
    """Features in 8 bits that others published: the network and the PCA are known, but not our hash of them.

    Attributes:
        width: number of values a second.
        feature: name that `reeltag extract` gives such a feature.
        encoder: name of the encoder that makes them.
        pca: SHA-256 of the file of their PCA.
        file: name of this file.
    """

    width: int
    feature: str
    encoder: str
    pca: str
    file: str


PUBLISHED_SCALE = (0.0, 1.0)  # offset and scale of the codes
# By name: AudioSet's, which its schema reads.
PUBLISHED: Mapping[str, Published] = {
    "audio_embedding": Published(
        width=128,
        feature="audio",
        encoder="vggish",
        pca="4d878af3e306defbfb37095365aa7e5a6cecb86bad13e859e626151c4e6a8b9d",
        file="vggish_pca_params.npz",
    )
}


def published(feature: Feature, schema: Schema) -> Published | None:
    """Return what is known of a feature that others published; None of any other."""
    known = PUBLISHED.get(feature.name) if feature.extractor is None else None
    fits = known is not None and known.width == feature.width and schema.dtype == "uint8"
    return known if fits else None


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
        found = _schema_of(folder / MANIFEST)
        for name, theirs in _origins(found).items():
            wanted = ours.get(name)
            if wanted is not None and theirs.decoding != wanted.decoding:
                whose = "these shards" if theirs.decoding < wanted.decoding else "the model"
                what = f"{name!r} of {whose} were extracted by an earlier reeltag, which decoded files otherwise"
                step = "extract all videos again with this one, and train on them"
                raise UsageError(f"{folder}: the features {what}; {step}")
            if wanted is not None and found is not None and found.precision != schema.precision:
                what = f"{name!r} of these shards is {found.precision}, but the model reads {schema.precision}"
                raise UsageError(f"{folder}: {what}; extract the videos with --storage {schema.precision}")
            if wanted is not None and _produced(theirs) != _produced(wanted):
                made = f"{theirs.name}{describe_difference(theirs, wanted)}"
                what = f"{name!r} of these shards is from {made}, but the model expects it from {wanted.name}"
                raise UsageError(f"{folder}: {what}; extract the videos as those of the model were")


def describe_other_input(schema: Schema, wanted: Schema) -> str:
    """Describe why frames of a schema mean something else than those of another; empty if they mean the same.

    Extractors are compared as far as both are known. Published features are the same under the name that `reeltag
    extract` gives them, from the same encoder on its own scale.
    """
    for key in ("level", "dtype"):
        if (ours := getattr(schema, key)) != (theirs := getattr(wanted, key)):
            return f"{key} {ours} and not {theirs}"
    pairs = list(zip(schema.features, wanted.features, strict=False))
    same = [
        (one.name, one.width) == (two.name, two.width)
        or _extracted_as_published(one, schema, two)
        or _extracted_as_published(two, wanted, one)
        for one, two in pairs
    ]
    if not all(same) or len(schema.features) != len(wanted.features):
        ours, theirs = (", ".join(f"{each.name} {each.width}" for each in one.features) for one in (schema, wanted))
        return f"the features {ours} and not {theirs}"
    for feature, other in pairs:
        one, two = feature.extractor, other.extractor
        if one and two and (_produced(one), one.decoding) != (_produced(two), two.decoding):
            how = describe_difference(one, two) if _produced(one) != _produced(two) else " of another reeltag"
            return f"{feature.name!r} from {one.name}{how} and not from {two.name}"
    return ""


def _extracted_as_published(feature: Feature, schema: Schema, other: Feature) -> bool:
    """Return True if another feature is a published one as `reeltag extract` makes it."""
    known, origin = published(feature, schema), other.extractor
    if known is None or origin is None or (other.name, other.width) != (known.feature, known.width):
        return False
    made = origin.name.partition(":")[0], origin.projection, origin.scale
    return made == (known.encoder, None, PUBLISHED_SCALE)


def _produced(origin: Origin) -> tuple[Any, ...]:
    """Return all that decides the values."""
    return origin.hash, origin.projection, origin.scale


def describe_difference(found: Origin, wanted: Origin) -> str:
    """Describe how an extractor differs from the wanted one; empty if their names already differ."""
    if found.hash == wanted.hash:
        return " through another PCA" if found.projection != wanted.projection else " on another scale"
    return " with other weights or settings" if found.name == wanted.name else ""


def schema_beside(shards: Iterable[DataFile]) -> tuple[Schema, Path] | None:
    """Return the schema of the manifest beside local shards, and the manifest's path; None if there is none.

    Raises:
        UsageError: the shards lie beside manifests of several schemas, or a manifest cannot be read.
    """
    found: dict[Schema, Path] = {}
    for folder in sorted({shard.parent for shard in shards if isinstance(shard, Path)}):
        if (schema := _schema_of(folder / MANIFEST)) is not None:
            found.setdefault(schema, folder / MANIFEST)
    if len(found) > 1:
        one, other, *_ = found.values()
        raise UsageError(f"{one} and {other} have different schemas; verify these shards apart, or give --schema")
    return next(iter(found.items()), None)


def _schema_of(manifest: Path) -> Schema | None:
    """Read a manifest's schema; None if there is no manifest or it is of another kind."""
    content = read_json(manifest) if manifest.is_file() else None
    if not isinstance(content, dict) or not content.keys() >= {"format", "schema", "shards"}:
        return None
    try:
        return Schema.model_validate(content["schema"])
    except ValidationError as error:
        raise UsageError(f"{manifest}: its schema cannot be read; make the shards again") from error


def _origins(schema: Schema | None) -> dict[str, Origin]:
    """Return a schema's extractors by feature; empty if it names none."""
    return {each.name: each.extractor for each in schema.features if each.extractor is not None} if schema else {}
