"""Video files → tags, by a model that knows which extractors its features come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from reeltag.core.environment import available_cpus
from reeltag.core.errors import VideoError
from reeltag.core.progress import Progress
from reeltag.data.formats.example import Video
from reeltag.data.loader import stream_batches
from reeltag.data.video.dataset import Item
from reeltag.data.video.thumbnails import thumbnails
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches
from reeltag.inference.predictor import Predictor
from reeltag.inference.timeline import Tagged, build_tagged, segment_spans, split_segments
from reeltag.inference.video.reader import VideoReader, open_reader


@dataclass(frozen=True)
class TaggedFile:
    """Tags of a video file.

    Attributes:
        tagged: its tags, and where it was asked for their timeline.
        remarks: what is unusual about the file, for people.
        pictures: JPEG of the middle of each segment; none where they were not asked for, or there are none.
    """

    tagged: Tagged
    remarks: tuple[str, ...]
    pictures: tuple[bytes, ...]


@dataclass(frozen=True)
class VideoTagger:
    """A model behind the extractors that it was trained with; see `open_tagger`.

    Attributes:
        predictor: the model.
        reader: file → what the model reads.
    """

    predictor: Predictor
    reader: VideoReader

    def tag(self, video: Video, top: int, *, timeline: bool = False) -> Tagged:
        """Return the most probable classes of a video, and with `timeline` their scores in its segments.

        Args:
            video: as the reader gives it.
            top: how many; all where there are fewer.
            timeline: whether segments are tagged.
        """
        schema = self.predictor.schema
        groups = [[video], split_segments(video) if timeline else []]  # apart, so that segments are not padded
        batches = chain.from_iterable(stream_batches(group, schema, BATCH_SIZE) for group in groups)
        scores = torch.cat([part.probabilities for part in predict_batches(self.predictor.model, batches)]).numpy()
        return build_tagged(video, scores, min(top, schema.classes), self.predictor.label_names)


def open_tagger(predictor: Predictor, name: str, image: str | None = None, audio: str | None = None) -> VideoTagger:
    """Open the extractors of a model, which are opened by the names that its schema has, or as they are given.

    Args:
        predictor: the model.
        name: of its file, for errors.
        image: what makes the feature `rgb`, such as `onnx:PATH`, where the name does not tell.
        audio: what makes the feature `audio`.

    Raises:
        UsageError: the model's features are of no extractor that is known, or of another.
    """
    return VideoTagger(predictor, open_reader(predictor.artifact, name, image, audio))


def tag_files(
    tagger: VideoTagger,
    items: Sequence[Item],
    top: int,
    progress: Progress,
    *,
    timeline: bool = False,
    pictures: bool = False,
) -> tuple[list[TaggedFile], dict[str, str]]:
    """Tag files one after the other.

    Args:
        tagger: the model.
        items: the files.
        top: how many tags of each.
        progress: what people see.
        timeline: whether segments are tagged.
        pictures: whether there are to be pictures of them.

    Returns:
        The results, and of each file that cannot be read its name and the reason.
    """
    results, left_out = list[TaggedFile](), dict[str, str]()
    threads = available_cpus()
    with progress.task("tag", len(items), "files") as task:
        for item in items:
            try:
                video, remarks = tagger.reader.read(item.path, item.id, threads)
                found = _middles(item.path, video.length, threads) if pictures else ()
            except VideoError as error:
                left_out[item.id] = str(error).removeprefix(f"{item.path}: ")
            else:
                results.append(TaggedFile(tagger.tag(video, top, timeline=timeline), remarks, found))
            task.advance(1, note=item.id)
    return results, left_out


def _middles(path: Path, length: int, threads: int) -> tuple[bytes, ...]:
    wanted = [(begin + end) // 2 for begin, end in segment_spans(length)]
    found = thumbnails(path, wanted, threads)
    return tuple(found[second] for second in wanted) if found else ()
