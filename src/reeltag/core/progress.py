"""Progress of long work: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

PLAIN_SECONDS = 10.0


@dataclass
class Task:
    """A long-running task.

    Attributes:
        name: description of the work.
        total: units of work in all.
        unit: noun in the plural; bytes are displayed in MB.
        done: units done, those of an earlier, interrupted run included.
        note: text to display beside it, such as the loss.
    """

    name: str
    total: int
    unit: str
    done: int = 0
    note: str = ""
    waited: float = 0.0
    _begin: float = field(default_factory=time.perf_counter)
    _at_begin: int = 0

    def resume_at(self, done: int) -> None:
        """Set the units that an interrupted run has finished, which do not count towards the speed."""
        self.done = self._at_begin = done

    def advance(self, amount: int, *, waited: float = 0.0, note: str = "") -> None:
        """Report work done.

        Args:
            amount: units.
            waited: seconds of it spent waiting for data.
            note: replaces the note, unless empty.
        """
        self.done += amount
        self.waited += waited
        self.note = note or self.note

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        rate = (self.done - self._at_begin) / seconds
        if self.unit == "bytes":
            parts = [f"{self.name}: {self.done / 1e6:,.1f}/{self.total / 1e6:,.1f} MB", f"{rate / 1e6:,.1f} MB/s"]
        else:
            parts = [f"{self.name}: {self.done:,}/{self.total:,} {self.unit}", f"{rate:,.0f}/s"]
        if rate > 0 and self.done < self.total:
            parts.append(f"{format_duration((self.total - self.done) / rate)} left")
        if self.waited:
            parts.append(f"data-wait {self.waited / seconds:.0%}")
        parts.append(_memory())
        return ", ".join([*parts, self.note] if self.note else parts)


class Progress:
    """Progress that displays nothing; base class of those that do."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Display a task; call its `advance` inside the block."""
        yield Task(name, total, unit)

    def say(self, line: str) -> None:
        """Print one line to stderr."""

    def labelled(self, label: str) -> Progress:
        """Return a progress for work that runs in parallel elsewhere, whose lines start with a label."""
        return self


class PlainProgress(Progress):
    """Progress as plain lines on stderr: every ten seconds, and at the end of a task."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Display a task; call its `advance` inside the block."""
        task = _PlainTask(name, total, unit, say=self.say)
        yield task
        self.say(f"  {task}")

    def say(self, line: str) -> None:
        """Print one line to stderr."""
        print(line, file=sys.stderr, flush=True)

    def labelled(self, label: str) -> Progress:
        """Return a progress for work that runs in parallel elsewhere, whose lines start with a label."""
        return LabelledProgress(label)


class LabelledProgress(PlainProgress):
    """Plain lines with a label, for work that runs in parallel.

    Args:
        label: printed before each line.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def say(self, line: str) -> None:
        """Print one line to stderr."""
        super().say(f"  {self.label}: {line.strip()}")


@dataclass
class _PlainTask(Task):
    say: Callable[[str], None] = field(kw_only=True)
    _shown: float = field(default_factory=time.perf_counter)

    def advance(self, amount: int, *, waited: float = 0.0, note: str = "") -> None:
        super().advance(amount, waited=waited, note=note)
        if time.perf_counter() - self._shown > PLAIN_SECONDS:
            self._shown = time.perf_counter()
            self.say(f"  {self}")


class LiveProgress(PlainProgress):
    """A live bar on a terminal; its last state stays as one line."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Display a task; call its `advance` inside the block."""
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        task = Task(name, total, unit)

        def render() -> Table:
            row = Table.grid(padding=(0, 1))
            row.add_row("  ", ProgressBar(total=max(task.total, 1), completed=task.done, width=24), str(task))
            return row

        with Live(get_renderable=render, console=Console(stderr=True), refresh_per_second=4, transient=True):
            yield task
        self.say(f"  {task}")


def default_progress(*, quiet: bool = False) -> Progress:
    """Return a live bar on a terminal, plain lines elsewhere, and no output if `quiet`."""
    return Progress() if quiet else LiveProgress() if sys.stderr.isatty() else PlainProgress()


def format_duration(seconds: float) -> str:
    """Format seconds as M:SS, or H:MM:SS from one hour on."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _memory() -> str:
    """Format the peak memory of this process and, if it uses one, of its GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    parts = [f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"]
    torch = sys.modules.get("torch")  # without torch there is nothing on a GPU
    if torch is not None and torch.cuda.is_initialized():
        parts.append(f"GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return ", ".join(parts)
