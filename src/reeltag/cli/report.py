"""The command `reeltag report`."""

from __future__ import annotations

import sys
from pathlib import Path

from reeltag.cli.output import Json, say


def report(run: Path, other: Path | None = None, /, *, out: Path | None = None, json: Json = False) -> None:
    """Write a report of a run, or a comparison of two runs, as one HTML page.

    The page needs no network and no other file. The run folder may have been moved, and needs no data.

    Example: reeltag report runs/audioset runs/audioset-small --out both.html

    Args:
        run: Folder of a finished run.
        other: Folder of a second run to compare with.
        out: A new file; by default RUN.html or RUN-OTHER.html in the current folder.
    """
    from reeltag.core.storage import is_locked, refuse_existing, write_bytes
    from reeltag.pipeline.report.page import render_comparison, render_run
    from reeltag.pipeline.report.results import read_run

    runs = [read_run(folder) for folder in (run, other) if folder is not None]
    for folder in (run, other):
        if folder is not None and is_locked(folder):
            print(f"{folder}: a process is working on this run; these are its last results", file=sys.stderr)
    path = out or Path("-".join(each.name for each in runs) + ".html")
    refuse_existing(path)
    page = render_run(*runs) if other is None else render_comparison(*runs)
    write_bytes(path, page.encode())
    say({"file": path}, [str(path)], json)
