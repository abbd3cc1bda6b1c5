"""The command `reeltag models list`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cyclopts import App

from reeltag.cli.output import Json, say

if TYPE_CHECKING:
    from reeltag.artifact.shipped import ShippedModel

models = App(name="models", help="List the trained models that come with reeltag.")


@models.command(name="list")
def list_models(*, json: Json = False) -> None:
    """List the trained models that come with reeltag; every command takes their names. See docs/pretrained.md.

    Example: reeltag models list
    """
    from reeltag.artifact.shipped import MODELS

    found = {name: _described(name, model) for name, model in MODELS.items()}
    say({"models": found}, [line for name, each in found.items() for line in _lines(name, each)], json)


def _described(name: str, model: ShippedModel) -> dict[str, Any]:
    """Return what is known of a model, from its file and beside it, as JSON."""
    from reeltag.artifact.file import stream_artifact
    from reeltag.artifact.shipped import path_of

    file = path_of(name)
    schema = stream_artifact(file)[0].schema
    return {
        "about": model.about,
        "reads": {feature.name: feature.width for feature in schema.features},
        "max_frames": schema.max_frames,
        "classes": schema.classes,
        "bytes": file.stat().st_size,
        "test": dict(model.test),
        "licence": model.licence,
        "credits": list(model.credits),
        "features": list(model.features),
        "file": file,
        "sha256": model.sha256,
    }


def _lines(name: str, about: dict[str, Any]) -> list[str]:
    from reeltag.core.text import counted, megabytes

    reads = " + ".join(f"{feature} {width}" for feature, width in about["reads"].items())
    measured = f"test GAP {about['test']['gap']:.5f}, mAP {about['test']['map']:.5f}"
    return [
        f"{name}: {about['about']}",
        f"  reads     {reads}, at most {counted(about['max_frames'], 'second')}",
        f"  file      {megabytes(about['bytes'])}, {about['classes']:,} classes, {measured}",
        f"  licence   weights {about['licence']}; {'; '.join(about['credits'])}",
        *(f"  features  {each}" for each in about["features"]),
    ]
