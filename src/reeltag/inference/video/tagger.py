"""Tag video files with a model whose schema names the extractors of its features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from reeltag.core.errors import VideoError
from reeltag.core.progress import Progress
from reeltag.data.formats.example import Video
from reeltag.data.loader import stream_batches
from reeltag.data.video.dataset import Item
from reeltag.data.video.engine import Engine, process_files, suggested_workers
from reeltag.data.video.thumbnails import thumbnails
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.predictor import Predictor
from reeltag.inference.timeline import Tagged, build_tagged, segment_spans, split_segments
from reeltag.inference.video.reader import VideoReader, open_reader


@dataclass(frozen=True)
class TaggedFile:
    """Tags of a video file.

    Attributes:
        tagged: its tags and, if requested, their timeline.
        remarks: peculiarities of the file, such as a missing sound track.
        pictures: JPEG of the middle frame of each segment; empty if not requested, or if the file has no pictures.
    """

    tagged: Tagged
    remarks: tuple[str, ...]
    pictures: tuple[bytes, ...]


@dataclass(frozen=True)
class VideoTagger:
    """A model together with the extractors of its features; see `open_tagger`.

    Attributes:
        predictor: the model.
        reader: converts video files to the model's input.
        least: least score [C] of a tag of each class, such as the model's thresholds; by default all are shown.
    """

    predictor: Predictor
    reader: VideoReader
    least: Sequence[float] | None = None

    def tag(self, video: Video, top: int, *, timeline: bool = False) -> Tagged:
        """Return the most probable classes of a video, and with `timeline` their scores in its segments.

        Args:
            video: features of the video, as the reader returns them.
            top: number of classes; all if there are fewer.
            timeline: also tag the segments of the video.
        """
        schema = self.predictor.schema
        groups = [
            [video],
            split_segments(video) if timeline else [],
        ]  # separate batches, so that segments are not padded to the video's length
        batches = chain.from_iterable(stream_batches(group, schema, BATCH_SIZE) for group in groups)
        scores = torch.cat([part.probabilities for part in predict_batches(self.predictor.model, batches)]).numpy()
        return build_tagged(video, scores, min(top, schema.classes), self.predictor.label_names, self.least)


def open_tagger(
    predictor: Predictor,
    name: str,
    image: str | None = None,
    audio: str | None = None,
    *,
    thresholds: bool = False,
) -> VideoTagger:
    """Open the extractors of a model: those that its schema names, or those that the user names instead.

    Args:
        predictor: the model.
        name: name of its file, for messages.
        image: extractor of the feature `rgb`, such as `onnx:PATH`; needed if it reads a file of its own.
        audio: extractor of the feature `audio`, likewise.
        thresholds: show only tags that reach the model's own thresholds.

    Raises:
        UsageError: the extractor of a feature is unknown, the named one is not that of the training data, or the model
            has no thresholds.
    """
    least = predictor.thresholds.tolist() if thresholds else None
    return VideoTagger(predictor, open_reader(predictor.artifact, name, image, audio), least)


def tag_files(
    tagger: VideoTagger,
    items: Sequence[Item],
    top: int,
    progress: Progress,
    *,
    timeline: bool = False,
    pictures: bool = False,
) -> tuple[list[TaggedFile], dict[str, str]]:
    """Tag files, several at once.

    Args:
        tagger: the model.
        items: the files.
        top: number of tags per file.
        progress: reports each file.
        timeline: also tag the segments of each video.
        pictures: also make a picture of each segment.

    Returns:
        The results, and for each file that cannot be read the reason, by its name; both in the order of the files.
    """
    results, left_out = dict[str, TaggedFile](), dict[str, str]()

    def read(item: Item, engine: Engine) -> tuple[Video, tuple[str, ...], tuple[bytes, ...]]:
        video, remarks = tagger.reader.read(item.path, item.id, engine)
        return video, remarks, _middles(item.path, video.length, engine) if pictures else ()

    files = process_files(items, suggested_workers(len(items)), read)
    with progress.task("tag", len(items), "files") as task, closing(files):
        for item, found in files:
            if isinstance(found, VideoError):
                left_out[item.id] = str(found).removeprefix(f"{item.path}: ")
            else:
                video, remarks, images = found
                results[item.id] = TaggedFile(tagger.tag(video, top, timeline=timeline), remarks, images)
            task.advance(1, note=item.id)
    names = [item.id for item in items]
    return [results[name] for name in names if name in results], {
        name: left_out[name] for name in names if name in left_out
    }


def _middles(path: Path, length: int, engine: Engine) -> tuple[bytes, ...]:
    """Return a JPEG of the middle frame of each segment; empty if the file has no pictures."""
    wanted = [(begin + end) // 2 for begin, end in segment_spans(length)]
    images = thumbnails(path, wanted, engine)
    return tuple(images[second] for second in wanted) if images else ()
