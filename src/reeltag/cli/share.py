"""The command `reeltag share`."""

from __future__ import annotations

from pathlib import Path

from reeltag.cli.output import Json, say


def share(model: str, /, *, out: Path, licence: str | None = None, json: Json = False) -> None:
    """Write a model as a folder for the Hugging Face Hub, with a model card.

    `reeltag.from_pretrained` opens the folder; `predict`, `evaluate` and `inspect` take it like a file.

    Example: reeltag share runs/audioset/model.reeltag --out audioset-tagger --licence apache-2.0

    Args:
        model: A .reeltag file, its URL, or a name.
        out: A new folder.
        licence: Licence of the model, as an SPDX or Hub identifier; by default that of a model that comes with reeltag,
            and for others the card states none.
    """
    from reeltag.artifact.file import resolve_artifact
    from reeltag.artifact.hub import share_artifact
    from reeltag.artifact.hub_download import CARD, CONFIG, SHARED_FILE
    from reeltag.core.text import megabytes

    file = resolve_artifact(model)
    share_artifact(file, out, licence)
    size, names = file.stat().st_size, [SHARED_FILE, CONFIG, CARD]
    text = [f"{out}: {megabytes(size)} in {names[0]}, with {names[1]} and {names[2]}"]
    say({"folder": out, "bytes": size, "files": names}, text, json)
