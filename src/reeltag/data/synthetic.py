"""Synthetic shards with learnable labels, for the quickstart and the tests.

Every class has a prototype frame, and a video shows the prototypes of its labels, with noise, among
distractor frames that all classes share. Labels come in themes, so they co-occur. What separates the
families: the last classes come in pairs that show the same two prototypes, one pair member in one
order and the other in the opposite order, so that only a model that reads the frames in order tells
them apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.ratings import Ratings
from reeltag.data.schema import MAX_FRAMES, Feature, Schema

Floats = npt.NDArray[np.float64]

THEMES = 8
DISTRACTORS = 12
MAX_LABELS = 4  # a video


class SyntheticSettings(BaseModel):
    """Size and difficulty of the synthetic data."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    train_videos: int = Field(4000, gt=0)
    test_videos: int = Field(1000, gt=0)
    shards: int = Field(8, gt=0, description="a split")
    classes: int = Field(60, gt=7)
    rgb: int = Field(64, gt=0, description="values a frame")
    audio: int = Field(16, gt=0, description="values a frame")
    frames: tuple[int, int] = Field((20, 60), description="fewest and most frames of a video")
    noise: float = Field(1.0, ge=0, description="standard deviation beside a prototype's 1")
    order_pairs: int = Field(3, ge=0, description="pairs of classes that differ in order alone")
    segments: int | None = Field(None, gt=0, description="frames a segment; rates those of every video")
    seed: int = Field(0, ge=0)

    # A rule between keys is checked on the later one, so that it is reported along with other faults.
    @field_validator("shards")
    @classmethod
    def _filled(cls, value: int, info: ValidationInfo) -> int:
        if value > min(info.data.get(f"{split}_videos", value) for split in ("train", "test")):
            raise ValueError("each shard needs at least one video")
        return value

    @field_validator("frames")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not MAX_LABELS <= value[0] <= value[1] <= MAX_FRAMES:
            raise ValueError(
                f"the fewest are at least {MAX_LABELS}, and the most at least those, at most {MAX_FRAMES:,}"
            )
        return value

    @field_validator("order_pairs")
    @classmethod
    def _leaves_others(cls, value: int, info: ValidationInfo) -> int:
        if 2 * value > info.data.get("classes", 2 * value + 2) - 2:
            raise ValueError("two classes a pair, and at least two classes besides")
        return value

    @field_validator("segments")
    @classmethod
    def _within_a_video(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and value > info.data.get("frames", (value, value))[0]:
            raise ValueError("a segment is a part of a video; at most the fewest frames of one")
        return value

    @property
    def record_schema(self) -> Schema:
        """The layout of the generated records: YouTube-8M's, with other widths."""
        features = (Feature(name="rgb", width=self.rgb), Feature(name="audio", width=self.audio))
        return Schema(features=features, classes=self.classes, max_frames=self.frames[1], segments=self.segments)


def write_synthetic(folder: Path, settings: SyntheticSettings) -> None:
    """Write `train-*.tfrecord` and `test-*.tfrecord`; equal settings give equal bytes."""
    world = _World(settings)
    for number, (split, videos) in enumerate([("train", settings.train_videos), ("test", settings.test_videos)]):
        for shard in range(settings.shards):
            count = len(range(shard, videos, settings.shards))
            rng = np.random.default_rng([settings.seed, number, shard])
            path = folder / f"{split}-{shard:05}-of-{settings.shards:05}.tfrecord"
            records = (
                encode(world.video(f"{split}-{shard:03}-{index:05}", rng), settings.record_schema)
                for index in range(count)
            )
            write_shard(path, records)


class _World:
    """Prototypes, label frequencies and co-occurrence."""

    def __init__(self, settings: SyntheticSettings) -> None:
        rng = np.random.default_rng([settings.seed, 0x5EED])
        self.settings, self.width = settings, settings.rgb + settings.audio
        self.prototypes = rng.normal(size=(settings.classes, self.width))
        self.distractors = rng.normal(size=(DISTRACTORS, self.width))
        # A pair's second member has no look of its own: it shows the first's two frames the other way round.
        self.second_looks = rng.normal(size=(settings.classes, self.width))
        self.first_in_pair = settings.classes - 2 * settings.order_pairs
        self.theme_of = rng.integers(0, THEMES, settings.classes)
        popularity = 1 / np.arange(1, settings.classes + 1) ** 0.7
        self.popularity = popularity[rng.permutation(settings.classes)]
        self.popularity /= self.popularity.sum()

    def labels(self, rng: np.random.Generator) -> list[int]:
        first = int(rng.choice(len(self.popularity), p=self.popularity))
        related = np.where(self.theme_of == self.theme_of[first], 12.0, 1.0) * self.popularity
        related[first] = 0
        more = rng.choice(len(related), rng.integers(0, MAX_LABELS), replace=False, p=related / related.sum())
        chosen = [first]
        for label in more.tolist():
            # Both members of a pair in one video could not be told apart by anyone.
            if label < self.first_in_pair or self._partner(label) not in chosen:
                chosen.append(label)
        return chosen

    def video(self, name: str, rng: np.random.Generator) -> Video:
        settings = self.settings
        length = int(rng.integers(settings.frames[0], settings.frames[1] + 1))
        labels = self.labels(rng)
        frames = self.distractors[rng.integers(0, DISTRACTORS, length)]
        # A third of the frames show labels, in stretches that follow one another.
        starts = np.sort(rng.choice(length, len(labels), replace=False))
        share = max(2, length // (3 * len(labels)))
        shown = np.full(length, -1)  # the label of each frame
        for start, label in zip(starts, labels, strict=True):
            stretch = slice(start, start + share)
            frames[stretch] = self._look(label, len(frames[stretch]))
            shown[stretch] = label
        frames = frames + settings.noise * rng.normal(size=frames.shape)
        codes = np.clip(np.round((frames / 2 + 2) * 255 / 4), 0, 255).astype(np.uint8)
        features = (codes[:, : settings.rgb], codes[:, settings.rgb :])
        known = np.array(sorted(labels), np.int64)
        return Video(name, known, features, ratings=self._ratings(known, shown))

    def _ratings(self, labels: npt.NDArray[np.int64], shown: npt.NDArray[np.int64]) -> Ratings | None:
        """Rate each segment for each label of its video: positive if most frames show it, negative if none do."""
        size = self.settings.segments
        if size is None:
            return None
        rated = []
        for start in range(0, len(shown), size):
            shares = (shown[start : start + size, None] == labels).mean(0)
            rated += [
                (start, label, share > 0) for label, share in zip(labels, shares, strict=True) if not 0 < share <= 0.5
            ]
        starts, classes, positive = zip(*rated, strict=True) if rated else ((), (), ())
        return Ratings(np.array(starts, np.int64), np.array(classes, np.int64), np.array(positive, bool))

    def _look(self, label: int, frames: int) -> Floats:
        if label < self.first_in_pair:
            return np.broadcast_to(self.prototypes[label], (frames, self.width))
        leader = min(label, self._partner(label))
        looks = np.stack([self.prototypes[leader], self.second_looks[leader]])
        order = (np.arange(frames) * 2 // max(frames, 1)) ^ int(label != leader)
        shown: Floats = looks[order]
        return shown

    def _partner(self, label: int) -> int:
        return self.first_in_pair + ((label - self.first_in_pair) ^ 1)
