"""Video files → tags, by a model that knows which extractors its features come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from reeltag.data.batches import stream_batches
from reeltag.data.example import Video
from reeltag.data.origins import difference
from reeltag.data.schema import Feature, Schema
from reeltag.errors import UsageError, VideoError
from reeltag.predict import BATCH_SIZE, Predictor, predict
from reeltag.progress import Progress
from reeltag.storage import counted
from reeltag.timeline import Tagged, segments, segments_of, tagged
from reeltag.video.dataset import Item
from reeltag.video.extractors import IMAGE, SOUND, Extractor, image_extractor, sound_extractor
from reeltag.video.features import Pipeline
from reeltag.video.thumbnails import thumbnails


@dataclass(frozen=True)
class Result:
    """What is said of a file.

    Attributes:
        tagged: its tags, and where it was asked for their timeline.
        remarks: what is unusual about the file, for people.
        pictures: JPEG of the middle of each segment; none where they were not asked for, or there are none.
    """

    tagged: Tagged
    remarks: tuple[str, ...]
    pictures: tuple[bytes, ...]


# By feature: the option that names its extractor, the extractors there are, and what opens one.
_KINDS: dict[str, tuple[str, dict[str, Any], Callable[[str], Extractor[Any] | None]]] = {
    "rgb": ("--image", IMAGE, image_extractor),
    "audio": ("--audio", SOUND, sound_extractor),
}


@dataclass(frozen=True)
class VideoTagger:
    """A model behind the extractors that it was trained with; see `open_tagger`.

    Attributes:
        predictor: the model.
        pipeline: file → features.
    """

    predictor: Predictor
    pipeline: Pipeline

    def features(self, path: Path, name: str, threads: int = 1) -> tuple[Video, tuple[str, ...]]:
        """What the model reads of a file, and what is unusual about it.

        Args:
            path: the file.
            name: the video's.
            threads: of the decoder.

        Raises:
            VideoError: the file cannot be read, or is too slow to decode.
        """
        extraction = self.pipeline.extract(path, threads)
        codes = dict(zip(extraction.values, self.pipeline.codes(extraction), strict=True))
        schema = self.predictor.schema
        ordered = tuple(codes[feature.name][: schema.max_frames] for feature in schema.features)
        return Video(name, None, ordered, max(0, extraction.seconds - schema.max_frames)), extraction.remarks

    def tag(self, video: Video, top: int, *, timeline: bool = False) -> Tagged:
        """The most probable classes of a video; with a timeline those of its segments too.

        Args:
            video: as `features` gives it.
            top: how many; all where there are fewer.
            timeline: whether segments are tagged.
        """
        schema = self.predictor.schema
        groups = [[video], segments_of(video) if timeline else []]  # apart, so that segments are not padded
        batches = chain.from_iterable(stream_batches(group, schema, BATCH_SIZE) for group in groups)
        scores = torch.cat([part.probabilities for part in predict(self.predictor.model, batches)]).numpy()
        return tagged(video, scores, min(top, schema.classes), self.predictor.label_names)


def open_tagger(predictor: Predictor, name: str, image: str | None = None, audio: str | None = None) -> VideoTagger:
    """A model with its extractors, which are opened by the names that its schema has, or as they are given.

    Args:
        predictor: the model.
        name: of its file, for errors.
        image: what makes the feature `rgb`, such as `onnx:PATH`, where the name does not tell.
        audio: what makes the feature `audio`.

    Raises:
        UsageError: the model's features are of no extractor that is known, or of another.
    """
    schema = predictor.schema
    _refuse_unfit(schema, name)
    given = {"rgb": image, "audio": audio}
    read = {feature.name for feature in schema.features}
    if unread := [_KINDS[feature][0] for feature, value in given.items() if value is not None and feature not in read]:
        raise UsageError(f"{unread[0]}: {name} reads no such feature, but {', '.join(sorted(read))}; leave it out")
    projections = predictor.artifact.projections
    for feature in schema.features:
        if feature.extractor and feature.extractor.projection and feature.name not in projections:
            what = f"does not hold the PCA of its feature {feature.name!r}"
            raise UsageError(f"{name}: {what}; name it in the recipe, data.pca, and run that again")
    opened = {feature.name: _extractor(feature, given[feature.name], name) for feature in schema.features}
    return VideoTagger(predictor, Pipeline(opened.get("rgb"), opened.get("audio"), projections))


def tag_files(
    tagger: VideoTagger,
    items: Sequence[Item],
    top: int,
    progress: Progress,
    *,
    timeline: bool = False,
    pictures: bool = False,
) -> tuple[list[Result], dict[str, str]]:
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
    results, left_out = list[Result](), dict[str, str]()
    threads = len(os.sched_getaffinity(0))
    with progress.task("tag", len(items), "files") as task:
        for item in items:
            try:
                video, remarks = tagger.features(item.path, item.id, threads)
                found = _middles(item.path, video.length, threads) if pictures else ()
            except VideoError as error:
                left_out[item.id] = str(error).removeprefix(f"{item.path}: ")
            else:
                results.append(Result(tagger.tag(video, top, timeline=timeline), remarks, found))
            task.advance(1, note=item.id)
    return results, left_out


def _middles(path: Path, length: int, threads: int) -> tuple[bytes, ...]:
    wanted = [(begin + end) // 2 for begin, end in segments(length)]
    found = thumbnails(path, wanted, threads)
    return tuple(found[second] for second in wanted) if found else ()


def _refuse_unfit(schema: Schema, name: str) -> None:
    if schema.segments is not None:
        what = f"tags segments of {counted(schema.segments, 'frame')}, and this command whole videos"
        raise UsageError(f"{name}: {what}; use `reeltag extract` and `reeltag predict`")
    unknown = [each.name for each in schema.features if each.extractor is None or each.name not in _KINDS]
    if unknown:
        what = f"does not know what makes its feature {unknown[0]!r} of a video"
        raise UsageError(f"{name}: {what}; train on the shards of `reeltag extract`, with the recipe beside them")


def _extractor(feature: Feature, given: str | None, model: str) -> Extractor[Any]:
    origin = feature.extractor
    assert origin is not None  # `_refuse_unfit` saw to it
    option, known, opener = _KINDS[feature.name]
    kind, _, file = origin.name.partition(":")
    if given is None and file:
        raise UsageError(f"{model}: reads the features of {origin.name}; say where it is, {option} {kind}:PATH?…")
    if given is None and kind not in known:
        raise UsageError(f"{model}: reads the features of {origin.name!r}, which this reeltag does not have")
    extractor = opener(given or origin.name)
    found = extractor.origin(origin.projection) if extractor else None
    if extractor is None or found is None or found.hash != origin.hash:
        other = f"{found.name}{difference(found, origin)}" if found else "none"
        raise UsageError(f"{model}: reads {feature.name!r} from {origin.name}, not from {other}; give {option} as then")
    return extractor
