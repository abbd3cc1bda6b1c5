"""Profile the steps of a model's training by operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from reeltag.core.progress import Progress, Task
from reeltag.core.storage import atomic_path
from reeltag.pipeline.executor import Job
from reeltag.pipeline.stages.files import load_manifest
from reeltag.pipeline.stages.training import ModelTraining
from reeltag.training.schedule import training_phase

WARM_UP, MEASURED = 3, 10  # steps
ROWS = 20


def profile_training(training: ModelTraining, inputs: Mapping[str, Path], file: Path) -> str:
    """Profile the first steps of a training in this process, after a warm-up; the trained weights are discarded.

    Args:
        training: of a model.
        inputs: folders of the training's input stages, by name.
        file: of the trace, in the format of Chrome's tracing and Perfetto.

    Returns:
        A table of the operations that take most time.

    Raises:
        UsageError: the file cannot be written.
    """
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    profiled = schedule(wait=0, warmup=WARM_UP, active=MEASURED, repeat=1)
    with TemporaryDirectory() as folder, profile(activities=activities, schedule=profiled) as profiler:
        job = Job(Path(folder), inputs, _Stepping(profiler))
        own, manifest = training.architecture.resolve(job), load_manifest(job, "train")
        phase = training_phase(training.settings(own), len(training.videos(manifest)))
        steps = range(WARM_UP + MEASURED)
        training.run_phase(job, own, manifest, replace(phase, steps=steps), name="profile")
    with atomic_path(file) as temporary:
        profiler.export_chrome_trace(str(temporary))
    table: str = profiler.key_averages().table(f"self_{'device' if gpu else 'cpu'}_time_total", row_limit=ROWS)
    return table


class _Stepping(Progress):
    """Progress that reports each step to the profiler."""

    def __init__(self, profiler: profile) -> None:
        self.profiler = profiler

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        yield _ProfiledTask(name, total, unit, profiler=self.profiler)


@dataclass
class _ProfiledTask(Task):
    profiler: profile = field(kw_only=True)

    def advance(self, amount: int, *, waited: float = 0.0, note: str = "") -> None:
        super().advance(amount, waited=waited, note=note)
        self.profiler.step()
