"""The command `reeltag inspect`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from reeltag.cli.output import Json, say
from reeltag.core.text import one_line, toml

if TYPE_CHECKING:
    from reeltag.artifact.file import Artifact, Member

WIDTH = 100  # characters of a line
_NO_BREAK = "\N{NO-BREAK SPACE}"


def inspect(model: str, /, *, json: Json = False) -> None:
    """Show the members, weights, sizes, data schema and provenance of a model.

    Sizes are those in the file; entropy coding makes most tensors smaller without changing them.
    Of each `coded` tensor it also shows the bits that a weight takes in the file, and the share of codes that are 0.
    Only settings that differ from the defaults are shown; --json prints all of them.

    Example: reeltag inspect model.reeltag

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
    """
    from reeltag.artifact.file import artifact_header, decoded_bytes, load_artifact, resolve_artifact, tensor_bytes
    from reeltag.core.text import counted, megabytes

    file = resolve_artifact(model)
    artifact, size, sizes = load_artifact(file), file.stat().st_size, tensor_bytes(file)
    rates = {member.name: _rates(member, sizes[member.name]) for member in artifact.members}
    decoded = {member.name: decoded_bytes(member.state) for member in artifact.members}
    before = f"{megabytes(sum(decoded.values()))} before entropy coding"
    lines = [f"{model}: {megabytes(size)}, {counted(len(artifact.members), 'member')}, {before}", *_data(artifact)]
    for member in artifact.members:
        stored = sum(sizes[member.name].values())
        lines += [*_member(member, stored, decoded[member.name]), *_table(rates[member.name])]
    for rule in artifact.rules:
        lines += _wrapped(
            f"{rule.KEY:<11} ", [f"{one_line(key)} {', '.join(_values(each))}" for key, each in rule.about.items()]
        )
    if artifact.provenance:
        lines.append("provenance")
        width = max(map(len, map(one_line, artifact.provenance)))
        for key, value in artifact.provenance.items():
            lines += _wrapped(f"  {one_line(key):<{width}}  ", _values(value))
    coded = {name: {tensor: rate._asdict() for tensor, rate in each.items()} for name, each in rates.items() if each}
    say(artifact_header(artifact) | {"bytes": size, "decoded_bytes": decoded, "coded": coded}, lines, json)


class _Rate(NamedTuple):
    """Rate of a coded tensor.

    Attributes:
        weights: number of elements.
        bits: of a weight in the file, on average, with the steps.
        zeros: share of codes that are 0.
    """

    weights: int
    bits: float
    zeros: float


def _rates(member: Member, sizes: Mapping[str, int]) -> dict[str, _Rate]:
    """Return the rates of a member's coded tensors, and after them that of all together; empty if there are none."""
    from reeltag.artifact.quantization.encodings import CodedTensor

    coded = {name: value.codes for name, value in member.state.items() if isinstance(value, CodedTensor)}
    counts = {name: (codes.numel(), sizes[name], int((codes == 0).sum())) for name, codes in coded.items()}
    totals = {"all": tuple(map(sum, zip(*counts.values(), strict=True)))} if counts else {}
    return {
        name: _Rate(weights, 8 * stored / weights, zeros / weights)
        for name, (weights, stored, zeros) in {**counts, **totals}.items()
    }


def _table(rates: Mapping[str, _Rate]) -> list[str]:
    """Format the rates of coded tensors, a line for each."""
    width = max(map(len, rates), default=0)
    rows = [
        f"          {one_line(name):<{width}} {each.weights:13,}  {each.bits:11.2f}  {each.zeros:7.1%}"
        for name, each in rates.items()
    ]
    return [f"          {'tensor':<{width}} {'weights':>13}  bits/weight  0 codes", *rows] if rows else []


def _data(artifact: Artifact) -> list[str]:
    """Format the input of the members and the number of classes."""
    schema = artifact.schema
    features = " + ".join(f"{one_line(feature.name)} {feature.width}" for feature in schema.features)
    origins = [
        f"{one_line(each.name)} by {one_line(each.extractor.name)}"
        f"{' and a PCA' if each.name in artifact.projections else ''}"
        for each in schema.features
        if each.extractor is not None
    ]
    return [
        f"reads     {schema.level} level, {features}, {schema.dtype}, at most {schema.max_frames} frames",
        *([f"extracted {', '.join(origins)}"] if origins else []),
        *([f"tags      segments of {schema.segments} frames"] if schema.segments is not None else []),
        f"classes   {schema.classes}{'' if artifact.label_names else ', no names'}",
    ]


def _member(member: Member, stored: int, decoded: int) -> list[str]:
    """Format a member: name, size and weight, then the settings that differ from the defaults."""
    from reeltag.artifact.quantization.quantize import stored_as
    from reeltag.core.text import megabytes
    from reeltag.recipe.tables import leaves

    size = megabytes(stored) + (f" of {megabytes(decoded)}" if decoded != stored else "")
    settings = member.config.model_dump(mode="json", exclude_defaults=True) | {"family": member.config.family}
    return [
        f"member    {one_line(member.name)}: {size}, {stored_as(member.state)}, weight {member.weight:.4f}",
        *_wrapped(" " * 10, [f"{key} = {toml(value)}" for key, value in leaves(settings)]),
    ]


def _values(value: Any) -> list[str]:
    """Split a value of the provenance, which is any JSON, into parts between which a line may break."""
    from reeltag.recipe.tables import leaves

    if isinstance(value, Mapping):
        return [f"{one_line(key)} {', '.join(_values(each))}" for key, each in leaves(value)]
    if isinstance(value, list):
        return [one_line(each) for each in value] or ["none"]
    return [f"{value:.6g}" if isinstance(value, float) else one_line(value)]


def _wrapped(head: str, parts: Sequence[str]) -> list[str]:
    """Join parts with commas and wrap them, with a head before the first line."""
    wrapper = textwrap.TextWrapper(WIDTH, head, " " * len(head), break_on_hyphens=False, break_long_words=False)
    kept = [part.replace(" ", _NO_BREAK) for part in parts]
    return [line.replace(_NO_BREAK, " ") for line in wrapper.wrap(", ".join(kept))] or [head.rstrip()]
