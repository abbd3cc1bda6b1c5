"""A model as a folder in the layout of the Hugging Face Hub: the file, its header as JSON, and a model card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from reeltag.artifact.file import Artifact, artifact_header, load_artifact, stored_bytes
from reeltag.artifact.hub_download import CARD, CONFIG, SHARED_FILE
from reeltag.artifact.quantization.quantize import stored_as
from reeltag.artifact.shipped import MODELS, name_of
from reeltag.core.errors import UsageError
from reeltag.core.storage import atomic_folder, refuse_nonempty, write_bytes, write_json
from reeltag.core.text import NAME_SEPARATOR, counted, escaped, megabytes, one_line

LISTED_CLASSES = 10
EXAMPLE_FRAMES = 30


def share_artifact(file: Path, folder: Path, licence: str | None = None) -> None:
    """Write a folder for the Hugging Face Hub, atomically.

    Args:
        file: a .reeltag file; it is copied to `model.safetensors`.
        folder: new or empty.
        licence: identifier of the Hub or SPDX; by default that of a model that comes with reeltag, and for others the
            card says that none was stated.

    Raises:
        UsageError: the folder is not empty, or the licence is not an identifier.
        ArtifactError: the file is missing or damaged.
    """
    refuse_nonempty(folder)
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9.+-]+", licence):
        raise UsageError(f"licence: {licence!r} is not an identifier; give one such as Apache-2.0 or cc-by-4.0")
    if licence is None and (name := name_of(file)) is not None:
        licence = MODELS[name].licence
    artifact = load_artifact(file)
    with atomic_folder(folder) as temporary:
        shutil.copyfile(file, temporary / SHARED_FILE)
        write_json(temporary / CONFIG, {"library_name": "reeltag", **artifact_header(artifact)})
        write_bytes(temporary / CARD, model_card(artifact, file.stat().st_size, stored_bytes(file), licence).encode())


_CARD = Template("""\
---
$metadata
---

# $name

A video tagger: $members in one file of $size, made with reeltag $version. It reads features of a video, not the video
itself, and returns a probability for each of $classes classes. Several classes may apply to one video.

## Use

```python
import numpy as np
import reeltag

tagger = reeltag.from_pretrained(".")  # this folder, or its name on the Hub, user/name
frames = np.zeros(($frames, $width), dtype=np.$dtype)  # replace with the features of a video
print(tagger.tags(frames))  # [(name, probability), …]
print(tagger.predict(frames).shape)  # one probability per class
```

```sh
reeltag inspect .
reeltag predict . 'shards/*.tfrecord' --out tags.jsonl
```

`model.safetensors` is the unchanged .reeltag file: tensors and a JSON header, each with a checksum, and no code.
`config.json` repeats the header.

## Data

$data

## Measured

$measured

## Members

| member | family | stored as | weight | size |
|---|---|---|---|---|
$table

## Licence

$licence

## Intended use and limits

$limits
""")


def model_card(artifact: Artifact, size: int, sizes: Mapping[str, int], licence: str | None = None) -> str:
    """Return the model card: Markdown with YAML metadata, filled from the artifact's header.

    Args:
        artifact: the model.
        size: bytes of its file.
        sizes: bytes of each member's tensors in the file.
        licence: identifier of the Hub or SPDX.
    """
    schema, provenance = artifact.schema, artifact.provenance
    return _CARD.substitute(
        metadata=_metadata(artifact, licence),
        name=escaped(_name(artifact)),
        members=counted(len(artifact.members), "member"),
        size=megabytes(size),
        version=escaped(_mapping(provenance, "versions").get("reeltag", "")),
        classes=f"{schema.classes:,}",
        frames=1 if schema.level == "video" else min(EXAMPLE_FRAMES, schema.example_frames),
        width=schema.width,
        dtype=schema.dtype,
        data="\n".join(f"- {line}" for line in _data(artifact)),
        measured=_measured(provenance),
        table="\n".join(_rows(artifact, sizes)),
        licence=escaped(licence) if licence else "The authors have not stated a licence.",
        limits="\n".join(f"- {line}" for line in _limits(artifact)),
    )


def _metadata(artifact: Artifact, licence: str | None) -> str:
    """Return the card's YAML. Values are JSON, which is YAML too, so that no name can end its value."""
    name = one_line(_name(artifact))
    families = dict.fromkeys(member.config.family for member in artifact.members)
    content: dict[str, Any] = {"library_name": "reeltag", "pipeline_tag": "video-classification"}
    if licence is not None:
        content["license"] = licence.lower()  # as the Hub writes them
    content["tags"] = ["reeltag", "video-tagging", "multi-label-classification", *families]
    if holdout := _holdout(artifact.provenance):
        result = {
            "task": {"type": "video-classification", "name": "Video tagging"},
            "dataset": {"type": name, "name": f"hold-out videos of {name}"},
            "metrics": [{"type": "gap", "name": "hold-out GAP@20", "value": round(holdout["file"], 5)}],
        }
        content["model-index"] = [{"name": name, "results": [result]}]
    return "\n".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())


def _data(artifact: Artifact) -> list[str]:
    schema, provenance = artifact.schema, artifact.provenance
    features = " + ".join(f"{escaped(feature.name)} {feature.width}" for feature in schema.features)
    frames = f", at most {schema.max_frames} frames" if schema.level == "frame" else ""
    lines = [f"Reads: {schema.level}-level features, {features}, {schema.dtype}{frames}."]
    if schema.segments is not None:
        lines.append(f"Tags: segments of {schema.segments} frames.")
    names = NAME_SEPARATOR.join(map(escaped, (artifact.label_names or ())[:LISTED_CLASSES]))
    more = f"{NAME_SEPARATOR}…" if schema.classes > LISTED_CLASSES else ""
    lines.append(f"Classes: {schema.classes:,}" + (f" ({names}{more})." if names else ", without names."))
    for rule in artifact.rules:
        chosen = ", ".join(f"{key} {value}" for key, value in rule.about.items() if key in ("goal", "scope", "videos"))
        lines.append(f"{rule.KEY.capitalize()}: {escaped(chosen)}; applied on request.")
    if "recipe" in provenance:
        lines.append(f"Recipe: {escaped(provenance['recipe'])}.")
    if "average_of" in provenance:
        lines.append(f"The mean of the weights of {counted(len(provenance['average_of']), 'model')}.")
    if "imported" in provenance:
        lines.append(f"Imported from a TensorFlow checkpoint, {escaped(Path(str(provenance['imported'])).name)}.")
    if data := _mapping(provenance, "data"):
        shards = ", ".join(map(escaped, data["shards"])) or "generated shards"
        lines.append(f"Trained on {counted(data['videos'], 'video')} of {shards}.")
    else:
        lines.append("The file does not say on which videos it was trained.")
    return lines


def _measured(provenance: Mapping[str, Any]) -> str:
    holdout = _holdout(provenance)
    if not holdout:
        return "The file holds no measurements."
    rows = {"this file": "file", "its members with equal weights": "equal_weights", "class prior": "prior"}
    return "\n".join(
        [
            "| | hold-out GAP@20 |",
            "|---|---|",
            *(f"| {title} | {holdout[key]:.5f} |" for title, key in rows.items() if key in holdout),
            "",
            f"On {counted(holdout['videos'], 'hold-out video')}, which were not used to choose members, encodings and "
            "weights.\nThe class prior predicts only how frequent each class is in training.",
        ]
    )


def _rows(artifact: Artifact, sizes: Mapping[str, int]) -> list[str]:
    return [
        f"| {escaped(member.name)} | {member.config.family} | {stored_as(member.state)} | {member.weight:.5f} "
        f"| {megabytes(sizes[member.name])} |"
        for member in artifact.members
    ]


def _limits(artifact: Artifact) -> list[str]:
    lines = [
        "Intended for ranking tags of videos whose features come from the same extractor, in the same encoding, as\n"
        "  the training data. The extractor is not part of this model: it does not read pixels or sound.",
        "A tag with few training videos is seldom predicted, and a tag without any is never predicted.",
        "The tags repeat errors and bias of the training labels. Check them before a decision about people depends\n"
        "  on them.",
    ]
    if not _holdout(artifact.provenance):
        lines.append("Measure it on labelled videos of your own first: `reeltag evaluate . 'shards/*.tfrecord'`.")
    return lines


def _name(artifact: Artifact) -> str:
    return str(artifact.provenance.get("recipe") or artifact.members[0].name)


def _holdout(provenance: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the hold-out GAP measured on this very file, or nothing if it was changed since or never measured."""
    holdout = _mapping(provenance, "holdout_gap")
    return holdout if {"file", "prior", "videos"} <= set(holdout) and "quantized" not in provenance else {}


def _mapping(provenance: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = provenance.get(key)
    return value if isinstance(value, Mapping) else {}
