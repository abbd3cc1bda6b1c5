"""The promises of docs/reliability.md: each test of one does a little in the suite, and all of it in `make stress`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


@dataclass(frozen=True)
class Promise:
    """Record of what a promise test does and finds.

    Attributes:
        in_full: whether this is `make stress`.
    """

    in_full: bool

    def amount(self, few: int, all_: int) -> int:
        """Return the number of cases to try."""
        return all_ if self.in_full else few

    def found(self, row: int, figures: str) -> None:
        """Write the figures of a promise into the page; called last, when all of it held.

        Args:
            row: its number in the page.
            figures: what was tried and what came of it.
        """
        if not self.in_full:
            return
        page, cell = PAGE.read_text(), f"{figures} | {date.today()}"
        changed, rows = re.subn(rf"^(\| {row} \| [^|]*) \|.*\|$", rf"\1 | {cell} |", page, flags=re.MULTILINE)
        assert rows == 1, f"{PAGE.name} has {rows} rows {row}"
        PAGE.write_text(changed)


def peak_memory() -> int:
    """Most bytes of memory that this process had; `ru_maxrss` would begin with those of the process that started it."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
