"""The command `reeltag export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reeltag.cli.options import Calibrated
from reeltag.cli.output import Json, say


def export(
    model: str,
    /,
    *,
    out: Path,
    format: Literal["onnx"] = "onnx",
    top: int | None = None,
    check: tuple[str, ...] = (),
    thresholds: bool = False,
    calibrated: Calibrated = False,
    json: Json = False,
) -> None:
    """Export a model to ONNX: one file with every member, its 8-bit weights and the weighted mean.

    ONNX has no entropy coding, so the export is larger than the model's file, several times where its weights are
    `coded`, and may exceed the budget of the model's recipe.

    The export is compared with the model before it is written. `reeltag.open_onnx` and other engines load it.

    Example: reeltag export model.reeltag --format onnx --out model.onnx --check 'shards/*.tfrecord'

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        out: A new .onnx file.
        format: Format of the file.
        top: Output only this many of the most probable classes, with their scores, instead of all probabilities.
        check: Shards on whose first 512 videos the outputs are compared (tolerance 1e-4); random frames by default.
        thresholds: Add the output `tagged`, True for the classes that reach the thresholds in the file.
    """
    from reeltag.artifact.file import resolve_artifact, stream_artifact
    from reeltag.core.text import megabytes
    from reeltag.inference.onnx_export import export_onnx

    size, difference = export_onnx(model, out, top=top, check=check, calibrated=calibrated, thresholds=thresholds)
    file = resolve_artifact(model)
    inputs = "videos of the shards" if check else "random frames; use --check to compare on real ones"
    before, budget = file.stat().st_size, stream_artifact(file)[0].provenance.get("budget", size)
    beyond = f", beyond the budget of its recipe, {megabytes(budget)}" if size > budget else ""
    text = [
        f"{out}: {megabytes(size)}, from {megabytes(before)}{beyond}",
        f"probabilities differ by at most {difference:.1e} from the model's, on {inputs}",
    ]
    say({"file": out, "bytes": size, "bytes_before": before, "largest_difference": difference}, text, json)
