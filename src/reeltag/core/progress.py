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
    """One piece of long work.

    Attributes:
        name: what is being done.
        total: units of work in all.
        unit: what is counted, in the plural; bytes are shown in MB.
        done: units done, those of an earlier, interrupted run included.
        note: anything to show beside it, such as the loss.
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
        """Say how much an interrupted run had done, so that it does not count towards the rate."""
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
    """Shows nothing; the base of what shows something."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Announce a piece of long work; advance it inside the block."""
        yield Task(name, total, unit)

    def say(self, line: str) -> None:
        """Print one line for people."""

    def labelled(self, label: str) -> Progress:
        """What shows the same of work that is done side by side, elsewhere, with a label before each line."""
        return self


class PlainProgress(Progress):
    """One line on stderr at the end of a task and every ten seconds before."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Announce a piece of long work; advance it inside the block."""
        task = _PlainTask(name, total, unit, say=self.say)
        yield task
        self.say(f"  {task}")

    def say(self, line: str) -> None:
        """Print one line for people."""
        print(line, file=sys.stderr, flush=True)

    def labelled(self, label: str) -> Progress:
        """What shows the same of work that is done side by side, elsewhere, with a label before each line."""
        return LabelledProgress(label)


class LabelledProgress(PlainProgress):
    """Plain lines that say whose they are, for work that is done side by side.

    Args:
        label: stands before each line.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def say(self, line: str) -> None:
        """Print one line for people."""
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
    """A bar that is drawn in place; its last state stays as one line."""

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        """Announce a piece of long work; advance it inside the block."""
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
    """Live on a terminal, plain lines elsewhere; nothing where it is to be quiet."""
    return Progress() if quiet else LiveProgress() if sys.stderr.isatty() else PlainProgress()


def format_duration(seconds: float) -> str:
    """Minutes and seconds, behind hours where there are some."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _memory() -> str:
    """The most memory that this process had so far, and of its GPU where it computes on one."""
    unit = 1 if sys.platform == "darwin" else 1024
    parts = [f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB"]
    torch = sys.modules.get("torch")  # where nobody imported it, nothing is on a GPU
    if torch is not None and torch.cuda.is_initialized():
        parts.append(f"GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")
    return ", ".join(parts)
