"""The command `reeltag average`."""

from __future__ import annotations

from pathlib import Path

from reeltag.cli.options import OneOrMore
from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError


def average(*models: OneOrMore, out: Path, json: Json = False) -> None:
    """Average the weights and batch-norm statistics of models with the same architecture.

    Example: reeltag average first.reeltag second.reeltag --out mean.reeltag

    Args:
        models: .reeltag files with one member each.
        out: A new .reeltag file.
    """
    from reeltag.artifact.file import average_artifacts, load_artifact, resolve_artifact, save_artifact
    from reeltag.core.storage import refuse_existing
    from reeltag.core.text import counted, megabytes

    refuse_existing(out)
    if twice := {model for model in models if models.count(model) > 1}:
        raise UsageError(f"{', '.join(sorted(twice))}: given more than once; give each model once")
    size = save_artifact(out, average_artifacts({model: load_artifact(resolve_artifact(model)) for model in models}))
    text = [f"{out}: {megabytes(size)}, the mean of {counted(len(models), 'model')}"]
    say({"file": out, "bytes": size, "models": len(models)}, text, json)
