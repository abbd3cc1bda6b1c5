"""The command `reeltag combine`."""

from __future__ import annotations

from pathlib import Path

from reeltag.cli.options import OneOrMore
from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError


def combine(*models: OneOrMore, out: Path, weights: str | None = None, json: Json = False) -> None:
    """Combine models into one file that tags by the weighted mean of their probabilities.

    Example: reeltag combine first.reeltag second.reeltag --weights 0.7,0.3 --out ensemble.reeltag

    Args:
        models: .reeltag files of the same data.
        out: A new .reeltag file.
        weights: Weights of the models, in their order, separated by commas; they sum to 1. Equal by default.
    """
    from reeltag.artifact.file import combine_artifacts, load_artifact, resolve_artifact, save_artifact
    from reeltag.core.storage import refuse_existing
    from reeltag.core.text import counted, megabytes

    refuse_existing(out)
    if twice := {model for model in models if models.count(model) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))}: given more than once; give each model once")
    shares = None if weights is None else _parsed(weights)
    combined = combine_artifacts({model: load_artifact(resolve_artifact(model)) for model in models}, shares)
    size = save_artifact(out, combined)
    members = [{"name": member.name, "weight": member.weight} for member in combined.members]
    text = [f"{out}: {megabytes(size)}, {counted(len(members), 'member')}"]
    text += [f"  {member.weight:.4f}  {member.name}" for member in combined.members]
    say({"file": out, "bytes": size, "members": members}, text, json)


def _parsed(weights: str) -> list[float]:
    try:
        return [float(weight) for weight in weights.split(",")]
    except ValueError as error:
        raise UsageError(f"--weights {weights}: are not numbers separated by commas, such as 0.5,0.3,0.2") from error
