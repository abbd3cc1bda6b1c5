"""What a predictor shows of itself: in a terminal, and as a table in a notebook."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from reeltag.models.tagger import meta_tagger
from reeltag.core.storage import counted, megabytes
from reeltag.core.text import plain

if TYPE_CHECKING:
    from reeltag.artifact.file import Member
    from reeltag.inference.predictor import Predictor


def as_text(predictor: Predictor) -> str:
    """A line for each of what it reads, what it gives and its members."""
    lines = [f"Predictor of {_whole(predictor)}", f"  reads   {_reads(predictor)}", f"  gives   {_gives(predictor)}"]
    for name, family, parameters, weight in _rows(predictor):
        lines.append(f"  member  {name}: {family}, {parameters} parameters, weight {weight}")
    return "\n".join(lines)


def as_html(predictor: Predictor) -> str:
    """The same as a small table; what came from the file means nothing in HTML."""
    heads = "".join(f"<th>{head}</th>" for head in ("member", "family", "parameters", "weight"))
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in _rows(predictor))
    about = "<br>".join(map(escape, (_whole(predictor), f"reads {_reads(predictor)}", f"gives {_gives(predictor)}")))
    return f"<p>{about}</p><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _whole(predictor: Predictor) -> str:
    members = predictor.artifact.members
    parts = [counted(len(members), "member"), f"{sum(_parameters(predictor, each) for each in members):,} parameters"]
    if predictor.source is not None:
        parts.insert(0, f"{predictor.source}, {megabytes(predictor.source.stat().st_size)}")
    return ", ".join(parts)


def _reads(predictor: Predictor) -> str:
    schema = predictor.schema
    features = " + ".join(f"{plain(feature.name)} {feature.width}" for feature in schema.features)
    return f"[T, {schema.width}] {schema.dtype}: {features}; at most {counted(schema.max_frames, 'frame')}"


def _gives(predictor: Predictor) -> str:
    names = "" if predictor.artifact.label_names else ", without names"
    return f"[{predictor.schema.classes}] float32, a probability a class{names}"


def _rows(predictor: Predictor) -> list[tuple[str, str, str, str]]:
    """Name, family, parameters and weight of each member."""
    return [
        (plain(member.name), member.config.family, f"{_parameters(predictor, member):,}", f"{member.weight:.3f}")
        for member in predictor.artifact.members
    ]


def _parameters(predictor: Predictor, member: Member) -> int:
    tagger = meta_tagger(member.config, predictor.schema.widths, predictor.schema.classes)
    return sum(parameter.numel() for parameter in tagger.parameters())
