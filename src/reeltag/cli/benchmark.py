"""The command `reeltag benchmark`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reeltag.cli.output import Json, say

if TYPE_CHECKING:
    from reeltag.inference.benchmark import BenchmarkRow


def benchmark(
    model: str,
    /,
    *,
    batch_size: Annotated[tuple[int, ...], Parameter(consume_multiple=False)] = (1, 64),
    json: Json = False,
) -> None:
    """Measure time, memory and deviation from exact of a model in every mode, and show what `auto` chooses.

    Each mode runs in a process of its own on the CPUs of this machine, on generated videos of the maximum length.
    docs/onnx.md describes the modes.

    Example: reeltag benchmark model.reeltag --batch-size 1 --batch-size 16

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        batch_size: Videos per call; repeat for several, 1 and 64 by default.
    """
    from reeltag.artifact.file import resolve_artifact, stream_artifact
    from reeltag.core.progress import default_progress
    from reeltag.core.text import counted
    from reeltag.inference.benchmark import benchmark_model, frames_of

    file = resolve_artifact(model)
    rows, (head, _) = benchmark_model(file, batch_size, default_progress()), stream_artifact(file)
    frames, example = frames_of(head.schema), head.schema.example
    text = [f"on generated {example}s of {counted(frames, 'frame')} each"]
    say({"frames": frames, "modes": [asdict(row) for row in rows]}, [*text, *_lines(rows, batch_size)], json)


def _lines(rows: list[BenchmarkRow], sizes: tuple[int, ...]) -> list[str]:
    """Format the measurements as a table."""
    heads = "".join(f"{f'ms/video, batch {size}':>20}  ratio" for size in sizes)
    lines = [f"{'':<10}{heads}{'memory':>12}  largest |Δp|"]
    for row in rows:
        if row.failed:
            lines.append(f"{row.mode:<10}  not measured: {row.failed}")
            continue
        times = "".join(f"{row.milliseconds[size]:20.3f}  {row.ratios[size]:5.2f}" for size in sizes)
        memory = "" if row.resident is None else f"{row.resident / 1e6:,.1f} MB"
        lines.append(f"{row.mode:<10}{times}{memory:>12}  {row.difference:.1e}")
        if row.computed is not None:
            chosen = "; ".join(f"{member} in {way}" for member, way in row.computed["ways"].items())
            lines.append(f"auto, batch {max(sizes)}: {chosen} ({row.computed['why']})")
    return lines
