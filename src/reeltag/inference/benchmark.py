"""A model in every way to load it, side by side: time, memory, and how far its probabilities are from exact."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from reeltag.artifact.file import load_artifact
from reeltag.core.distributed.process_pool import Needs, spawned
from reeltag.core.environment import onnx_runtime
from reeltag.core.errors import ReeltagError, UsageError
from reeltag.core.progress import Progress
from reeltag.data.schema import Schema
from reeltag.inference.onnx_export import generated_batches, save_onnx
from reeltag.inference.onnx_session import OnnxMode, open_onnx
from reeltag.inference.predictor import WEIGHTS, load

SECONDS, FEWEST, MOST = 1.0, 3, 50  # of measuring one number: how long, and how many calls
Probabilities = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class BenchmarkRow:
    """What one way takes.

    Attributes:
        way: `exact`, `bf16`, `small`, `fast`, or one of these after `onnx `.
        milliseconds: a video, by the number of videos of a call.
        ratios: to `exact`.
        resident: bytes of memory that the loaded model takes; None where the system does not tell.
        difference: the largest |Δp| from `exact`.
        failed: why nothing was measured; empty otherwise.
    """

    way: str
    milliseconds: dict[int, float]
    ratios: dict[int, float]
    resident: int | None
    difference: float | None
    failed: str = ""


def benchmark_model(file: Path, batch_sizes: Sequence[int], progress: Progress) -> list[BenchmarkRow]:
    """Measure a model on this machine's processors, each way in a process of its own, one after the other.

    Args:
        file: a `.reeltag` file.
        batch_sizes: videos of a call; all have as many generated frames as the schema allows.
        progress: told of each way.

    Raises:
        ArtifactError: the file is damaged.
        UsageError: a batch size is below 1, or none is given.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError("batch_size: give one number or more, each 1 or more")
    ways = [*WEIGHTS, *(f"onnx {mode}" for mode in get_args(OnnxMode))]
    rows: list[BenchmarkRow] = []
    exact: tuple[dict[int, float], Probabilities] | None = None
    with tempfile.TemporaryDirectory() as folder, progress.task("benchmark", len(ways), "ways") as task:
        onnx_file, why = _exported(file, Path(folder, "model.onnx"))
        for way in ways:
            if way.startswith("onnx ") and why:
                rows.append(BenchmarkRow(way, {}, {}, None, None, why))
            else:
                with spawned(["cpu"]) as pool:
                    where = onnx_file if way.startswith("onnx ") else file
                    times, resident, found = pool.submit(Needs(), measure, way, file, where, list(batch_sizes)).result()
                exact = exact or (times, found)
                ratios = {size: times[size] / exact[0][size] for size in times}
                difference = max(float(np.abs(a - b).max()) for a, b in zip(found, exact[1], strict=True))
                rows.append(
                    BenchmarkRow(way, {size: 1000 * each for size, each in times.items()}, ratios, resident, difference)
                )
            task.advance(1, note=way)
    return rows


def _exported(file: Path, target: Path) -> tuple[Path, str]:
    """The model as ONNX, or why there is none."""
    shipped = load_artifact(file)
    try:
        save_onnx(target, shipped, generated_batches(shipped.schema, videos=2))
    except ReeltagError as error:
        return target, str(error).replace(f"{target}: ", "")
    return target, ""


def measure(
    way: str, file: Path, where: Path, batch_sizes: Sequence[int]
) -> tuple[dict[int, float], int | None, Probabilities]:
    """Load a model in one way and time it, in a process that does nothing else.

    Args:
        way: as in `Row`.
        file: the `.reeltag` file.
        where: what is loaded: it, or its ONNX file.
        batch_sizes: videos of a call.

    Returns:
        Seconds a video by batch size, bytes of memory that loading took, and the probabilities of each batch [B, C].
    """
    schema = load_artifact(file).schema
    if way.startswith("onnx "):
        onnx_runtime("onnx")  # whose code is not what is measured
    before = _resident()
    call = _opened(way, where)
    after = _resident()
    times, found = {}, []
    for size in batch_sizes:
        frames, lengths = generated(schema, size)
        found.append(call(frames, lengths))
        times[size] = _seconds(lambda frames=frames, lengths=lengths: call(frames, lengths)) / size  # type: ignore[misc]
    return times, None if before is None or after is None else max(0, after - before), found


def _opened(way: str, where: Path) -> Callable[[npt.NDArray[Any], npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
    if not way.startswith("onnx "):
        return load(where, way, "cpu").predict  # type: ignore[arg-type] # one of WEIGHTS
    session = open_onnx(where, way.removeprefix("onnx "), torch.get_num_threads())  # type: ignore[arg-type]

    def call(frames: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        (probabilities,) = session.run(None, {"frames": frames, "lengths": lengths})
        return np.asarray(probabilities)

    return call


def frames_of(schema: Schema) -> int:
    """Frames of each video that is measured on: as many as one may have."""
    return schema.example_frames if schema.level == "frame" else 1


def generated(schema: Schema, videos: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Random frames [B, T, D] of whole videos, as the schema has them, and their lengths [B]."""
    rng = np.random.default_rng(0)
    shape = (videos, frames_of(schema), schema.width)
    frames = rng.integers(0, 256, shape, np.uint8) if schema.dtype == "uint8" else rng.normal(size=shape)
    return frames.astype(schema.dtype), np.full(videos, shape[1])


def _seconds(call: Callable[[], Any]) -> float:
    """The median of a call's times; one call has warmed up before."""
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < SECONDS and len(times) < MOST):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return median(times)


def _resident() -> int | None:
    """Bytes of this process in memory, where Linux tells."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) * 1024
