"""The command `reeltag tag`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter

from reeltag.cli.options import Calibrated, Mode, Quiet, Thresholds
from reeltag.cli.output import Json, say
from reeltag.core.errors import UsageError


def tag(
    model: str,
    /,
    *videos: str,
    model_option: Annotated[str | None, Parameter(name="--model", show=False)] = None,
    top: int = 5,
    thresholds: Thresholds = False,
    calibrated: Calibrated = False,
    timeline: bool = False,
    csv: Path | None = None,
    html: Path | None = None,
    image: str | None = None,
    audio: str | None = None,
    mode: Mode = "auto",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Tag video files with a model that was trained on the shards of `reeltag extract`.

    Unreadable files are reported and skipped; the exit code is 0 if at least one file was tagged. See docs/tagging.md.

    Example: reeltag tag model.reeltag beach.mp4 --timeline

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        videos: Folders, files or glob patterns.
        model_option: The model, where it is not the first argument.
        top: Number of tags per video; with --thresholds the largest number.
        timeline: Also show scores over time, for at most 40 segments of a video.
        csv: A new CSV file with a row per tag, and with --timeline also a row per tag and segment.
        html: A new HTML file: a page with tags, timelines and thumbnails that needs no network; implies --timeline.
        image: Encoder of the feature rgb, needed only if it reads a file: its name and path, such as clip:PATH.
        audio: Encoder of the feature audio, likewise, such as yamnet:PATH.
    """
    if model_option is not None:
        model, videos = model_option, (model, *videos)
    _check(model, videos, top)
    from reeltag.core.progress import default_progress
    from reeltag.core.remote_files import is_url
    from reeltag.core.storage import refuse_existing, write_bytes
    from reeltag.core.text import counted
    from reeltag.data.video.dataset import find_videos
    from reeltag.inference.predictor import load
    from reeltag.inference.video.tag_formats import as_csv, as_html, as_lines
    from reeltag.inference.video.tagger import open_tagger, tag_files

    for file in filter(None, (csv, html)):
        refuse_existing(file)
    data = find_videos(videos, None)
    name = Path(urlsplit(model).path if is_url(model) else model).name
    tagger = open_tagger(load(model, mode, calibrated=calibrated), name, image, audio, thresholds=thresholds)
    wanted = {"timeline": timeline or html is not None, "pictures": html is not None}
    results, left_out = tag_files(tagger, data.items, top, default_progress(quiet=quiet), **wanted)
    left_out = {**data.left_out, **left_out}
    faults = [f"{id_}: {reason}" for id_, reason in left_out.items()]
    if not results:
        raise UsageError("\n  ".join(["no video could be tagged", *faults]))
    if csv is not None:
        write_bytes(csv, as_csv(results).encode())
    if html is not None:
        write_bytes(html, as_html(name, results, left_out).encode())
    result = {"videos": [each.tagged | {"remarks": each.remarks} for each in results], "left_out": left_out}
    result["computed"] = tagger.predictor.choice.dump()
    say(result, [line for each in results for line in as_lines(each.tagged)], json)
    for line in [f"{each.tagged['id']}: {'; '.join(each.remarks)}" for each in results if each.remarks]:
        print(line, file=sys.stderr)
    for remark in data.remarks:
        print(remark, file=sys.stderr)
    if faults:
        print("\n  ".join([f"{counted(len(faults), 'file')} left out:", *faults]), file=sys.stderr)


def _check(model: str, videos: Sequence[str], top: int) -> None:
    """Refuse a command without videos, or with an impossible number of tags."""
    if not videos:
        raise UsageError(f"no videos; give them after the model, as in `reeltag tag model.reeltag {model}`")
    if top < 1:
        raise UsageError(f"--top: {top} is not a valid number of tags; give 1 or more")
