"""Write the timings and the report page of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reeltag.core.storage import write_bytes, write_json
from reeltag.pipeline.report.page import render_run
from reeltag.pipeline.report.results import TIMINGS, read_run
from reeltag.pipeline.run_folder import Outputs

PAGE = "report/report.html"


def write_timings(outputs: Outputs, folders: Mapping[str, Path]) -> None:
    """Gather the seconds of each stage from its marker.

    They are no output of a stage, because whatever a stage reads has to be the same in every run.
    """
    markers = {stage: outputs.marker(folder.name) for stage, folder in folders.items()}
    timings = [{"stage": stage, "seconds": marker["seconds"]} for stage, marker in markers.items() if marker]
    write_json(outputs.out / TIMINGS, timings)
    outputs.publish(outputs.out / TIMINGS, TIMINGS)


def write_page(outputs: Outputs) -> None:
    """Write the page of a run whose results and timings are written already."""
    write_bytes(outputs.out / PAGE, render_run(read_run(outputs.out)).encode())
    outputs.publish(outputs.out / PAGE, PAGE)
