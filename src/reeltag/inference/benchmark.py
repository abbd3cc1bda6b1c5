"""Compare the modes of a model: time, memory, and the deviation of its probabilities from mode `exact`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from reeltag.artifact.file import load_artifact
from reeltag.core.distributed.process_pool import Resources, open_process_pool
from reeltag.core.environment import onnx_runtime
from reeltag.core.errors import ReeltagError, UsageError
from reeltag.core.progress import Progress
from reeltag.data.schema import Schema
from reeltag.inference.engines.choice import Choice, choose
from reeltag.inference.engines.ways import ONNX, WAYS
from reeltag.inference.onnx_export import generated_batches, save_onnx
from reeltag.inference.onnx_session import open_onnx
from reeltag.inference.predictor import load

SECONDS, FEWEST, MOST = 1.0, 3, 50  # seconds of measurement per number; fewest and most calls
Probabilities = list[npt.NDArray[np.float32]]


@dataclass(frozen=True)
class BenchmarkRow:
    """Measurements of one mode.

    Attributes:
        mode: `exact`, `bf16`, `small`, `fast`, one of these after `onnx `, or `auto`.
        milliseconds: per video, by batch size.
        ratios: of the times to those of `exact`, by batch size.
        resident: bytes of memory of the loaded model; None if the system does not report it.
        difference: largest |Δp| from `exact`.
        computed: of `auto`, what was chosen for the largest batch.
        failed: the reason if nothing was measured; empty otherwise.
    """

    mode: str
    milliseconds: dict[int, float]
    ratios: dict[int, float]
    resident: int | None
    difference: float | None
    computed: dict[str, Any] | None = None
    failed: str = ""


def benchmark_model(file: Path, batch_sizes: Sequence[int], progress: Progress) -> list[BenchmarkRow]:
    """Measure a model on this machine's CPUs, each mode in a process of its own, one after the other.

    Args:
        file: a `.reeltag` file.
        batch_sizes: videos per call; all have as many generated frames as the schema allows.
        progress: reports each mode.

    Raises:
        ArtifactError: the file is damaged.
        UsageError: a batch size is below 1, or there is none.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError("batch_size: give one number or more, each 1 or more")
    modes = [*WAYS, "auto"]
    rows: list[BenchmarkRow] = []
    exact: tuple[dict[int, float], Probabilities] | None = None
    with tempfile.TemporaryDirectory() as folder, progress.task("benchmark", len(modes), "modes") as task:
        onnx_file, failure = _exported(file, Path(folder, "model.onnx"))
        for mode in modes:
            if mode.startswith(ONNX) and failure:
                rows.append(BenchmarkRow(mode, {}, {}, None, None, failed=failure))
            else:
                choice = _chosen(file, max(batch_sizes)) if mode == "auto" else None
                with open_process_pool(["cpu"]) as pool:
                    path = onnx_file if mode.startswith(ONNX) else file
                    future = pool.submit(Resources(), measure, choice or mode, file, path, list(batch_sizes))
                    times, resident, probabilities = future.result()
                exact = exact or (times, probabilities)
                ratios = {size: times[size] / exact[0][size] for size in times}
                difference = max(float(np.abs(a - b).max()) for a, b in zip(probabilities, exact[1], strict=True))
                milliseconds = {size: 1000 * each for size, each in times.items()}
                computed = None if choice is None else choice.dump()
                rows.append(BenchmarkRow(mode, milliseconds, ratios, resident, difference, computed))
            task.advance(1, note=mode)
    return rows


def _chosen(file: Path, videos: int) -> Choice:
    """Return the choice of mode `auto`, of a process whose memory is not counted."""
    with open_process_pool(["cpu"]) as pool:
        return cast(Choice, pool.submit(Resources(), choose, file, "cpu", videos).result())


def _exported(file: Path, target: Path) -> tuple[Path, str]:
    """Export the model as ONNX; return the path, and the reason if that fails."""
    artifact = load_artifact(file)
    try:
        save_onnx(target, artifact, generated_batches(artifact.schema, videos=2))
    except ReeltagError as error:
        return target, str(error).replace(f"{target}: ", "")
    return target, ""


def measure(
    mode: str | Choice, file: Path, path: Path, batch_sizes: Sequence[int]
) -> tuple[dict[int, float], int | None, Probabilities]:
    """Load a model in one mode and time it, in a process that does nothing else.

    Args:
        mode: as in `BenchmarkRow`, or what `auto` chose.
        file: the `.reeltag` file.
        path: of the file to load: the `.reeltag` file or its ONNX export.
        batch_sizes: videos per call.

    Returns:
        Seconds per video by batch size, bytes of memory that loading took, and the probabilities of each batch [B, C].
    """
    schema = load_artifact(file).schema
    ways = mode.ways.values() if isinstance(mode, Choice) else [mode]
    if any(way.startswith(ONNX) for way in ways):
        onnx_runtime("onnx")  # so that the memory of its code is not counted
    before = _resident()
    call = _open(mode, path)
    after = _resident()
    times, results = {}, []
    for size in batch_sizes:
        frames, lengths = generated(schema, size)
        results.append(call(frames, lengths))
        times[size] = _seconds(lambda frames=frames, lengths=lengths: call(frames, lengths)) / size  # type: ignore[misc]
    return times, None if before is None or after is None else max(0, after - before), results


def _open(
    mode: str | Choice, path: Path
) -> Callable[[npt.NDArray[Any], npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
    if isinstance(mode, Choice) or not mode.startswith(ONNX):
        return load(path, mode, "cpu").predict  # type: ignore[arg-type] # one of PyTorch's modes
    session = open_onnx(path, mode.removeprefix(ONNX), torch.get_num_threads())  # type: ignore[arg-type]

    def call(frames: npt.NDArray[Any], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        (probabilities,) = session.run(None, {"frames": frames, "lengths": lengths})
        return np.asarray(probabilities)

    return call


def frames_of(schema: Schema) -> int:
    """Return the number of frames of each generated video: the most that the schema allows."""
    return schema.example_frames if schema.level == "frame" else 1


def generated(schema: Schema, videos: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Return random frames [B, T, D] of full-length videos in the schema's dtype, and their lengths [B]."""
    rng = np.random.default_rng(0)
    shape = (videos, frames_of(schema), schema.width)
    frames = rng.integers(0, 256, shape, np.uint8) if schema.dtype == "uint8" else rng.normal(size=shape)
    return frames.astype(schema.dtype), np.full(videos, shape[1])


def _seconds(call: Callable[[], Any]) -> float:
    """Return the median duration of a call; the caller has run it once before."""
    times: list[float] = []
    while len(times) < FEWEST or (sum(times) < SECONDS and len(times) < MOST):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return median(times)


def _resident() -> int | None:
    """Return the resident memory of this process in bytes, or None on systems other than Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = status.read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) * 1024
