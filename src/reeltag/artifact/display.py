"""Describe a model for a terminal and for a notebook."""

from __future__ import annotations

from html import escape
from pathlib import Path

from reeltag.artifact.file import Artifact, Member
from reeltag.core.text import counted, megabytes, one_line
from reeltag.models.tagger import meta_tagger


def as_text(artifact: Artifact, source: Path | None = None) -> str:
    """Describe a model as lines of text: its input, its output, and each member.

    Args:
        artifact: the model; weights are not needed.
        source: the file that the model was loaded from.
    """
    lines = [
        f"Predictor of {_summary(artifact, source)}",
        f"  reads   {_reads(artifact)}",
        f"  gives   {_gives(artifact)}",
    ]
    for name, family, parameters, weight in _rows(artifact):
        lines.append(f"  member  {name}: {family}, {parameters} parameters, weight {weight}")
    return "\n".join(lines)


def as_html(artifact: Artifact, source: Path | None = None) -> str:
    """Describe a model as a small HTML table; all text from the file is escaped.

    Args:
        artifact: the model; weights are not needed.
        source: the file that the model was loaded from.
    """
    heads = "".join(f"<th>{head}</th>" for head in ("member", "family", "parameters", "weight"))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in _rows(artifact))
    parts = _summary(artifact, source), f"reads {_reads(artifact)}", f"gives {_gives(artifact)}"
    about = "<br>".join(map(escape, parts))
    return f"<p>{about}</p><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _summary(artifact: Artifact, source: Path | None) -> str:
    members = artifact.members
    parts = [counted(len(members), "member"), f"{sum(_parameters(artifact, each) for each in members):,} parameters"]
    if source is not None:
        parts.insert(0, f"{source}, {megabytes(source.stat().st_size)}")
    return ", ".join(parts)


def _reads(artifact: Artifact) -> str:
    schema = artifact.schema
    features = " + ".join(f"{one_line(feature.name)} {feature.width}" for feature in schema.features)
    return f"[T, {schema.width}] {schema.dtype}: {features}; at most {counted(schema.max_frames, 'frame')}"


def _gives(artifact: Artifact) -> str:
    names = "" if artifact.label_names else ", without names"
    return f"[{artifact.schema.classes}] float32, one probability per class{names}"


def _rows(artifact: Artifact) -> list[tuple[str, str, str, str]]:
    """Return name, family, parameters and weight of each member."""
    return [
        (one_line(member.name), member.config.family, f"{_parameters(artifact, member):,}", f"{member.weight:.3f}")
        for member in artifact.members
    ]


def _parameters(artifact: Artifact, member: Member) -> int:
    tagger = meta_tagger(member.config, artifact.schema.widths, artifact.schema.classes)
    return sum(parameter.numel() for parameter in tagger.parameters())
