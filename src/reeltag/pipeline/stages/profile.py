"""Where the time of a model's training goes, step by step and operation by operation."""

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
from reeltag.pipeline.stages.training import Training
from reeltag.training.schedule import training_phase

WARM_UP, MEASURED = 3, 10  # steps
ROWS = 20


def profile_training(training: Training, inputs: Mapping[str, Path], file: Path) -> str:
    """Profile the first steps of a training in this process, after some that warm up; of the training nothing is kept.

    Args:
        training: of a model.
        inputs: folders of the stages that it stands on, by name.
        file: for the trace, in the format of Chrome's tracing and Perfetto.

    Returns:
        A table of the operations that take most time.

    Raises:
        UsageError: the file cannot be written.
    """
    gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    steps = schedule(wait=0, warmup=WARM_UP, active=MEASURED, repeat=1)
    with TemporaryDirectory() as folder, profile(activities=activities, schedule=steps) as profiler:
        job = Job(Path(folder), inputs, _Stepping(profiler))
        settings = training.settings(training.source.resolve(job))
        phase = training_phase(settings, len(training.videos(load_manifest(job, "train"))))
        training.run(job, replace(phase, steps=range(WARM_UP + MEASURED)), name="profile")
    with atomic_path(file) as temporary:
        profiler.export_chrome_trace(str(temporary))
    table: str = profiler.key_averages().table(f"self_{'device' if gpu else 'cpu'}_time_total", row_limit=ROWS)
    return table


class _Stepping(Progress):
    """Tells the profiler of each step."""

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
