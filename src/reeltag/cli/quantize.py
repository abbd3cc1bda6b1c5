"""The command `reeltag quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reeltag.cli.options import Quiet
from reeltag.cli.output import Json, say

# The same names as `reeltag.artifact.quantization.sizes.ENCODINGS`, without float32.
Encoding = Literal["float16", "uniform-8", "kmeans-8", "quantile-8", "channel-8", "group-4", "coded"]


def quantize(
    model: str,
    /,
    *,
    out: Path,
    encoding: Encoding = "uniform-8",
    calibrate: tuple[str, ...] = (),
    max_loss: float | None = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Quantize the large weights of a model.

    Example: reeltag quantize runs/audioset/netvlad.reeltag --out small.reeltag --encoding group-4

    The encoding `coded` takes the fewest bytes. It needs labelled videos: on most of them it measures what an error of
    each weight costs, on the others the loss.

    Args:
        model: A float32 .reeltag file, such as `reeltag train` writes; quantized weights stay as they are.
        out: A new .reeltag file.
        encoding: Encoding of the weights.
        calibrate: For coded: labelled shards, such as the training data; paths, URLs or glob patterns.
        max_loss: For coded: largest loss of GAP, 0.0005 by default.
    """
    from reeltag.artifact.file import resolve_artifact
    from reeltag.artifact.quantization.sizes import MIN_ELEMENTS
    from reeltag.core.progress import default_progress
    from reeltag.core.text import megabytes
    from reeltag.inference.quantize_file import quantize_file

    progress = default_progress(quiet=quiet)
    file = resolve_artifact(model)
    size = quantize_file(file, out, encoding, calibrate=calibrate, max_loss=max_loss, progress=progress)
    before = file.stat().st_size
    unchanged = f"; no tensor has more than {MIN_ELEMENTS:,} elements, so all stay float32" if size == before else ""
    text = [f"{out}: {megabytes(size)}, from {megabytes(before)}{unchanged}"]
    say({"file": out, "bytes": size, "bytes_before": before}, text, json)
