"""The command `reeltag report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError

if TYPE_CHECKING:
    from reeltag.pipeline.report.results import Run


def report(
    run: Path,
    other: Path | None = None,
    /,
    *,
    out: Path | None = None,
    videos: Path | None = None,
    json: Json = False,
) -> None:
    """Write a report of a run, or a comparison of two runs, as one HTML page.

    The page needs no network and no other file. The run folder may have been moved, and needs no data.

    Example: reeltag report runs/audioset runs/audioset-small --out both.html

    Args:
        run: Folder of a finished run.
        other: Folder of a second run to compare with.
        out: A new file; by default RUN.html or RUN-OTHER.html in the current folder.
        videos: Folder of the video files that the ids of the test set name: adds pictures to the mistakes of the worst
            classes of one run.
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
    if other is not None and videos is not None:
        raise UsageError("--videos: adds pictures to the mistakes of one run; leave it or the second run out")
    page = render_run(runs[0], _pictures(runs[0], videos)) if other is None else render_comparison(*runs)
    write_bytes(path, page.encode())
    say({"file": path}, [str(path)], json)


def _pictures(run: Run, videos: Path | None) -> dict[str, str]:
    """Return pictures for the page, and list on standard error the files that gave none."""
    from reeltag.core.text import counted, first_lines
    from reeltag.pipeline.report.pictures import mistake_pictures

    if videos is None:
        return {}
    pictures, left_out = mistake_pictures(run, videos)
    if left_out:
        print(f"{videos}: no picture of {counted(len(left_out), 'video')}", file=sys.stderr)
        for line in first_lines([f"  {name}: {reason}" for name, reason in left_out.items()]):
            print(line, file=sys.stderr)
    return pictures
