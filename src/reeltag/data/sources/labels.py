"""The labels of a source: those of a file, or those beside the features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.core.text import counted
from reeltag.data.label_table import LabelTable, gather, read_labels
from reeltag.data.labels import Encoding, RawLabels, find_form
from reeltag.data.sources.videos import Source, SourceVideo
from reeltag.data.vocabulary import Vocabulary


def label_table(
    path: str | Path | None,
    sources: Sequence[Source],
    *,
    encoding: Encoding | None = None,
    vocabulary: Vocabulary | None = None,
    classes: int | None = None,
    progress: Progress | None = None,
) -> LabelTable | None:
    """Read the labels of videos from a file, or else from beside the features; None if there are none.

    Args:
        path: of the file of labels.
        sources: of the videos; they are read for their labels if there is no file.
        encoding: form of the labels; by default it is found, if only one fits.
        vocabulary: names of the classes.
        classes: C; by default that of the vocabulary, or one more than the highest class.
        progress: reports the reading of labels beside the features.

    Raises:
        UsageError: the labels cannot be read, or may be read in two ways.
        DataError: a video cannot be read.
    """
    if path is not None:
        return read_labels(Path(path), encoding=encoding, vocabulary=vocabulary, classes=classes)
    if all(first_video(source).labels is None for source in sources):
        return None
    found: list[RawLabels] = []
    total = sum(len(source.parts()) for source in sources)
    with (progress or Progress()).task("read labels", total, "parts") as task:
        for source in sources:
            for part in source.parts():
                videos = (video for video in source.read(part) if video.labels is not None)
                found += [RawLabels(video.place, video.id, video.labels) for video in videos]
                task.advance(1, note=counted(len(found), "video"))
    return gather(found, find_form(found, encoding=encoding, vocabulary=vocabulary, classes=classes))


def first_video(source: Source) -> SourceVideo:
    """Return the first video of a source.

    Raises:
        UsageError: there is none.
        DataError: it cannot be read.
    """
    return next(_videos(source))


def _videos(source: Source) -> Iterator[SourceVideo]:
    for part in source.parts():
        yield from source.read(part)
    raise UsageError(f"the {source.kind} source holds no videos; check what it was made of")
