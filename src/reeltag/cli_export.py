"""The command `reeltag export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reeltag.cli_output import Json, say
from reeltag.errors import UsageError

CHECKED = 512  # videos


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
    from itertools import islice

    from reeltag import artifact
    from reeltag.data.batches import stream_batches
    from reeltag.data.shards import read_all
    from reeltag.predict import BATCH_SIZE
    from reeltag.storage import find, megabytes, refuse_existing, remove_partials_of

    try:
        from reeltag.export import model as onnx_model
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; `pip install 'reeltag[onnx]'`") from error
    if out.suffix != f".{format}":
        raise UsageError(f"{out}: should end in .{format}")
    refuse_existing(out)
    remove_partials_of(out)
    shards = find(check)
    file = artifact.local_file(model)
    shipped = artifact.load(file)
    batches, of = onnx_model.generated_batches(shipped.schema), "random frames; give --check shards to use real ones"
    if shards:
        videos = islice(read_all(shards, shipped.schema), CHECKED)
        batches, of = stream_batches(videos, shipped.schema, BATCH_SIZE), "videos of the shards"
    size, difference = onnx_model.save(out, shipped, batches, top)
    before = file.stat().st_size
    text = [
        f"{out}: {megabytes(size)}, from {megabytes(before)}",
        f"probabilities differ by at most {difference:.1e} from the model's, on {of}",
    ]
    say({"file": out, "bytes": size, "bytes_before": before, "largest_difference": difference}, text, json)
