"""The command `reeltag export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reeltag.cli.output import Json, say


def export(
    model: str,
    /,
    *,
    out: Path,
    format: Literal["onnx"] = "onnx",
    top: int | None = None,
    check: tuple[str, ...] = (),
    json: Json = False,
) -> None:
    """Write a model as ONNX: dequantising, every member in its 8 bits, and their mean in one file.

    It is compared with the model before it is kept. `reeltag.open_onnx` opens it, as do other engines.

    Example: reeltag export model.reeltag --format onnx --out model.onnx --check 'shards/*.tfrecord'

    Args:
        model: A .reeltag file, a folder that `share` wrote, or a URL.
        out: A new .onnx file.
        format: What to write.
        top: Give the so many most probable classes and their scores instead of all probabilities.
        check: Shards whose first 512 videos both must tag alike (differences up to 1e-4); random frames by default.
    """
    from reeltag.artifact.file import resolve_artifact
    from reeltag.core.text import megabytes
    from reeltag.inference.onnx_export import export_onnx

    size, difference = export_onnx(model, out, top=top, check=check)
    file = resolve_artifact(model)
    of = "videos of the shards" if check else "random frames; give --check shards to use real ones"
    before = file.stat().st_size
    text = [
        f"{out}: {megabytes(size)}, from {megabytes(before)}",
        f"probabilities differ by at most {difference:.1e} from the model's, on {of}",
    ]
    say({"file": out, "bytes": size, "bytes_before": before, "largest_difference": difference}, text, json)
