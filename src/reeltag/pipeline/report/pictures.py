"""Pictures of the videos among a run's mistakes, where the video files are."""

from __future__ import annotations

import base64
from contextlib import closing
from pathlib import Path

import numpy as np

from reeltag.core.errors import UsageError, VideoError
from reeltag.data.video.engine import Engine, process_files, suggested_workers
from reeltag.data.video.thumbnails import thumbnails
from reeltag.inference.timeline import segment_spans
from reeltag.pipeline.report.page import class_order
from reeltag.pipeline.report.results import Mistake, Run

PICTURES = 400  # in a page; about 5 MB


def mistake_pictures(run: Run, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Make a picture of each of at most 400 videos among the mistakes of the worst classes.

    A picture is of the second in the middle of the stretch where the class is most probable.

    Args:
        run: the run.
        folder: holds the video files, by the ids of the videos.

    Returns:
        JPEG by id, as an address of data; and by id the reason why a file gave none.

    Raises:
        UsageError: none of the videos is in the folder.
    """
    wanted: dict[str, Mistake] = {}
    for number in class_order(run):
        each = run.judged["classes"][number]
        for mistake in (*each["false_positives"], *each["missed"]):
            if len(wanted) < PICTURES and mistake["id"] not in wanted and _file(folder, mistake["id"]) is not None:
                wanted[mistake["id"]] = mistake
    if not wanted:
        raise UsageError(f"{folder}: has no file that is named as a test video; give the folder of `reeltag extract`")

    def picture(mistake: Mistake, engine: Engine) -> bytes | None:
        path, second = _file(folder, mistake["id"]), _second(mistake)
        assert path is not None
        return thumbnails(path, [second], engine).get(second)

    found, left_out = dict[str, str](), dict[str, str]()
    mistakes = list(wanted.values())
    with closing(process_files(mistakes, suggested_workers(len(mistakes)), picture)) as results:
        for mistake, made in results:
            if isinstance(made, bytes):
                found[mistake["id"]] = f"data:image/jpeg;base64,{base64.b64encode(made).decode()}"
            else:
                left_out[mistake["id"]] = str(made) if isinstance(made, VideoError) else "has no picture at this second"
    return found, left_out


def _second(mistake: Mistake) -> int:
    """Return the frame, which is a second, in the middle of the stretch with the highest probability."""
    if not mistake["strip"]:
        return 0
    begin, end = segment_spans(mistake["frames"])[int(np.argmax(mistake["strip"]))]
    return (begin + end) // 2


def _file(folder: Path, name: str) -> Path | None:
    """Return the file of a video in the folder; None if it is not there, or the name leads out of the folder."""
    path = folder / name
    return path if path.is_file() and path.resolve().is_relative_to(folder.resolve()) else None
