"""Format the tags of video files: lines for a terminal, CSV, and an HTML page that works offline."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from io import StringIO
from string import Template

from reeltag.core.progress import format_duration
from reeltag.core.text import counted, one_line
from reeltag.inference.timeline import Tagged, Timeline, tag_spans
from reeltag.inference.video.tagger import TaggedFile

_BLOCKS = "▁▂▃▄▅▆▇█"
_RUNS = 3  # largest number of time spans of a tag in a line


def as_lines(tagged: Tagged) -> Iterator[str]:
    """Yield lines for a terminal: a video, its tags and, with a timeline, the time spans of each tag."""
    yield f"{one_line(tagged['id'])}: {counted(tagged['frames'], 'second')}"
    names = [one_line(tag["name"]) for tag in tagged["tags"]]
    if not names:  # none reaches its threshold
        yield "  no tag"
    for index, (tag, name) in enumerate(zip(tagged["tags"], names, strict=True)):
        line = f"  {tag['score']:.2f}  {name:<{max(map(len, names))}}"
        if "timeline" in tagged:
            line += f"  {_strip(tagged['timeline']['scores'][index])}  {_times(tagged['timeline'], index)}"
        yield line.rstrip()


def _strip(scores: Sequence[float]) -> str:
    return "".join(_BLOCKS[min(int(score * len(_BLOCKS)), len(_BLOCKS) - 1)] for score in scores)


def _times(timeline: Timeline, tag: int) -> str:
    runs = [f"{format_duration(begin)}–{format_duration(end)}" for begin, end in tag_spans(timeline, tag)]
    return ", ".join(runs[:_RUNS] + ["…"] * (len(runs) > _RUNS))


def as_csv(results: Sequence[TaggedFile]) -> str:
    """Return CSV with a row for each tag of each video, and with a timeline also for each segment; times in seconds."""
    text = StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "begin", "end", "class", "name", "score"])
    for tagged in (result.tagged for result in results):
        spans = [(0, tagged["frames"]), *(tagged["timeline"]["segments"] if "timeline" in tagged else [])]
        for index, tag in enumerate(tagged["tags"]):
            scores = [tag["score"], *(tagged["timeline"]["scores"][index] if "timeline" in tagged else [])]
            for span, score in zip(spans, scores, strict=True):
                writer.writerow([tagged["id"], *span, tag["class"], tag["name"], f"{score:.6f}"])
    return text.getvalue()


def as_html(model: str, results: Sequence[TaggedFile], left_out: Mapping[str, str]) -> str:
    """Return a self-contained HTML page.

    Args:
        model: name of the model.
        results: tags of videos, with timelines.
        left_out: reason of each file that has no result, by its name.
    """
    content = {
        "videos": [
            {
                **result.tagged,
                "remarks": list(result.remarks),
                "pictures": [f"data:image/jpeg;base64,{base64.b64encode(each).decode()}" for each in result.pictures],
            }
            for result in results
        ],
        "left_out": dict(left_out),
    }
    script = "".join(_without_imports(_file(module)) for module in ("chart.js", "page.js"))
    facts = [model, counted(len(results), "video")]
    facts += [f"{len(left_out):,} left out"] if left_out else []
    return Template(_file("page.html")).substitute(
        model=escape(model),
        facts=escape(" · ".join(facts)),
        style=_file("base.css") + _file("page.css"),
        data=json.dumps(content, ensure_ascii=False, allow_nan=False).replace(
            "<", "\\u003c"
        ),  # no text can end the script element
        script=script,
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _file(name: str) -> str:
    return files("reeltag.inference.video").joinpath(f"page/{name}").read_text(encoding="utf-8")


def _without_imports(script: str) -> str:
    """Remove a module's import and export lines, so that several modules fit into one script."""
    return re.sub(r"^(import|export) \{.*\}.*;\n", "", script, flags=re.MULTILINE)
