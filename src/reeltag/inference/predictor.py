"""Load a model file and tag arrays or shards with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from reeltag.artifact.display import as_html, as_text
from reeltag.artifact.file import Artifact, Member, resolve_artifact, stream_artifact
from reeltag.artifact.hub import share_artifact
from reeltag.artifact.hub_download import download_from_hub
from reeltag.artifact.shipped import MODELS
from reeltag.artifact.tagging_rule import class_thresholds, require_calibration
from reeltag.core.environment import default_device
from reeltag.core.errors import UsageError
from reeltag.core.storage import Patterns, find_files
from reeltag.data.bad_records import BadRecords
from reeltag.data.extractor_origin import refuse_other_origin
from reeltag.data.formats.example import Video
from reeltag.data.labels import Encoding
from reeltag.data.loader import Batch, stream_batches
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples
from reeltag.data.sources.files import find_features
from reeltag.data.sources.labels import label_table
from reeltag.data.sources.pieces import open_features, pieces, read_piece
from reeltag.data.vocabulary import named
from reeltag.inference.engines.choice import ASKED_FOR, Choice, choose, everywhere
from reeltag.inference.engines.ways import Mode, open_member
from reeltag.inference.ensemble import (
    BATCH_SIZE,
    Calibrated,
    Ensemble,
    Predictions,
    predict_batches,
    videos_at_once,
)
from reeltag.inference.frame_subset import frame_subset
from reeltag.inference.inputs import as_frames, check_frames, refuse_videos
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.metrics.video_metrics import TOP_K, Scores
from reeltag.inference.selection import Selection, check_selection

AnyMode: TypeAlias = Mode | Literal["auto"]
MODES: tuple[AnyMode, ...] = ("auto", *get_args(Mode))


class Predictor:
    """Model that is ready to tag. Several threads may share it.

    Args:
        artifact: the model; its members' weights are not needed.
        members: the members with their weights; each is released before the next is read.
        mode: how weights are kept and multiplied in PyTorch, or a choice of engine and mode for each member.
            `exact`: float32, dequantized once;
            `bf16`: about twice as fast on GPUs and on CPUs that multiply it (AVX-512 BF16, AMX), in half the memory,
            accurate to about three digits;
            `small`: as stored, dequantized a few rows at a time in every call; slower than `exact`, with its results;
            `fast`: 8-bit weights, multiplied in 8 bits, or as `exact` on CPUs without fast and exact products of them.
            `small` and `fast` run on CPUs only.
        device: that computes; by default a GPU, if there is one and the mode supports it.
        calibrated: apply the calibration of the model to all probabilities.

    Attributes:
        mode: the mode; `auto` for a choice.
        choice: engine and mode of each member, and why.

    Raises:
        UsageError: there is no such mode, it does not support this device, or the model has no calibration.
    """

    def __init__(
        self,
        artifact: Artifact,
        members: Iterable[Member],
        mode: Mode | Choice = "exact",
        device: str = "auto",
        *,
        calibrated: bool = False,
    ) -> None:
        self.mode: AnyMode = "auto" if isinstance(mode, Choice) else mode
        self.device = resolve_device(self.mode, device)
        self.choice = mode if isinstance(mode, Choice) else everywhere(mode, artifact.members, ASKED_FOR)
        self.artifact = replace(artifact, members=tuple(replace(member, state={}) for member in artifact.members))
        ways, schema = self.choice.ways, artifact.schema
        modules = (open_member(member, schema, ways[member.name]) for member in members if member.weight > 0)
        weights = [member.weight for member in artifact.members if member.weight > 0]
        self.model: nn.Module = Ensemble(modules, weights).eval()
        self.calibrated = calibrated
        if calibrated:
            self.model = Calibrated(self.model, require_calibration(artifact)).eval()
        if self.device != "cpu":
            self.model.to(self.device)
        self.source: Path | None = None  # the file, if it came from one

    def __repr__(self) -> str:
        return as_text(self.artifact, self.source)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook displays."""
        return as_html(self.artifact, self.source)

    @property
    def schema(self) -> Schema:
        """Schema of the data that the model reads."""
        return self.artifact.schema

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class, or its index if the file has no names."""
        return self.artifact.label_names or tuple(map(str, range(self.schema.classes)))

    @property
    def thresholds(self) -> npt.NDArray[np.float32]:
        """Thresholds [C] of the model, for its probabilities, calibrated or not; infinite where none meets the goal.

        Raises:
            UsageError: the model has none.
        """
        return class_thresholds(self.artifact, calibrated=self.calibrated)

    def selection(self, top: int = TOP_K, threshold: float | None = None, thresholds: bool = False) -> Selection:
        """Return the choice of tags by this model.

        Args:
            top: largest number of tags.
            threshold: least probability of a tag; without one all are shown.
            thresholds: take the model's own thresholds, one for each class.

        Raises:
            UsageError: a number is out of its range, both thresholds are given, or the model has none.
        """
        check_selection(top, threshold, thresholds)
        return Selection(top, tuple(self.thresholds.tolist()) if thresholds else threshold or 0.0)

    def predict(self, frames: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Tag frames.

        Args:
            frames: [T, D] of one video or [B, T, D] of several, in the schema's dtype; frames past the
                schema's limit are left out. A model of segments takes segments.
            lengths: [B], number of real frames of each video; all frames by default.

        Returns:
            Probabilities [C] or [B, C], float32; equal to those of `reeltag predict` except for rounding.

        Raises:
            UsageError: wrong shape, dtype or length, no frames, or values that are not finite.
        """
        array = as_frames(frames)
        several = array if array.ndim == 3 else array[None]
        counts = np.full(len(several), several.shape[1]) if lengths is None else np.asarray(lengths)
        check_frames(several, counts, self.schema)
        cut = several[:, : self.schema.max_frames]
        batch = Batch(
            ids=("",) * len(cut),
            frames=torch.from_numpy(np.array(cut)),
            lengths=torch.from_numpy(counts.astype(np.int64)).clamp_max(self.schema.max_frames),
            labels=None,
        )
        (result,) = predict_batches(self.model, [batch])
        probabilities: npt.NDArray[np.float32] = result.probabilities.numpy()
        return probabilities if array.ndim == 3 else probabilities[0]

    def predict_each(self, videos: Iterable[npt.ArrayLike]) -> Iterator[npt.NDArray[np.float32]]:
        """Tag videos of an iterator, 64 at a time.

        Args:
            videos: frames [T, D] of each; T may differ.

        Yields:
            Probabilities [C] of each, in their order.

        Raises:
            UsageError: a video cannot be tagged; the message names its index from 0 and the reason.
        """
        numbered = enumerate(videos)
        while group := list(islice(numbered, BATCH_SIZE)):
            chunk = []
            for number, frames in group:
                try:
                    chunk.append(as_frames(frames))
                    check_frames(chunk[-1][None], np.array(chunk[-1].shape[:1]), self.schema)
                except UsageError as error:
                    raise UsageError(f"video {number}: {error}") from error
            lengths = np.array(list(map(len, chunk)))
            padded = np.zeros((len(chunk), lengths.max(), self.schema.width), self.schema.dtype)
            for row, video in zip(padded, chunk, strict=True):
                row[: len(video)] = video
            yield from self.predict(padded, lengths)

    def tags(
        self, frames: npt.ArrayLike, top: int = 5, *, threshold: float | None = None, thresholds: bool = False
    ) -> list[tuple[str, float]]:
        """Return the most probable classes of one video [T, D], by name.

        Args:
            frames: of the video.
            top: largest number of classes.
            threshold: least probability of a class; without one all are returned.
            thresholds: return only classes that reach the model's own thresholds.

        Raises:
            UsageError: the frames are not those of one video, or as `selection`.
        """
        selection = self.selection(top, threshold, thresholds)
        probabilities = self.predict(frames)
        if probabilities.ndim != 1:
            raise UsageError("tags: give the frames [T, D] of one video; `predict` takes several")
        ((classes, scores),) = selection.tags(torch.from_numpy(probabilities)[None])
        return [(self.label_names[number], score) for number, score in zip(classes, scores, strict=True)]

    def predict_shards(
        self,
        patterns: Patterns,
        bad: BadRecords | None = None,
        *,
        labelled: bool = False,
        labels: str | Path | None = None,
        label_encoding: Encoding | None = None,
        frames: int | None = None,
        seed: int | None = None,
    ) -> Iterator[Predictions]:
        """Tag every video of shards or of other files of features, or every segment of them, in order.

        Args:
            patterns: paths, URLs or glob patterns, one or several.
            bad: collects bad records, and counts what was forgiven in others: those without an id are called
                SHARD:NUMBER, features of different lengths are cut to the shortest, and missing ones are zeros. By
                default the first such record raises.
            labelled: treat records without labels as bad, and forgive only what the schema allows.
            labels: file of labels for features that are not shards; by default they are found beside the features.
            label_encoding: form of these labels, `index`, `n-hot` or `name`; by default it is found.
            frames: number of frames to tag each video from, drawn uniformly with replacement; all by default.
            seed: of the drawn frames, 0 by default; the draw depends on it and on the video's id alone.

        Raises:
            UsageError: a pattern matches nothing or videos, labels are given for shards or cannot be read, the
                features are of another extractor, or so many frames cannot be drawn.
            DataError: a record is damaged or does not follow the model's schema.
        """
        subset = frame_subset(frames, seed, self.schema)
        schema = self.schema if labelled or bad is None else self.schema.lenient
        refuse_videos(patterns)
        if paths := find_features(patterns):
            examples = self._source_examples(paths, labelled, labels, label_encoding)
        elif labels is not None or label_encoding is not None:
            raise UsageError("labels: shards hold their own labels; leave the file and its encoding out")
        else:
            shards = find_files(patterns)
            refuse_other_origin(self.schema, shards)
            examples = read_examples(shards, schema, bad, labelled=labelled)
        batches = stream_batches(examples, schema, videos_at_once(schema))
        return predict_batches(self.model, batches if subset is None else map(subset.select, batches))

    def _source_examples(
        self, paths: Sequence[Path], labelled: bool, labels: str | Path | None, encoding: Encoding | None
    ) -> Iterator[Video]:
        """Read the examples of features that are not shards."""
        table = None
        if labelled or labels is not None:
            names = self.artifact.label_names
            vocabulary = None if names is None else named(names)
            sources = [open_features(paths, self.schema)]
            table = label_table(labels, sources, encoding=encoding, vocabulary=vocabulary, classes=self.schema.classes)
            if table is None:
                raise UsageError(f"{paths[0]}: has no labels; give a file of labels, or use `reeltag predict`")
            if vocabulary is None and table.names is not None:
                what = "the labels name classes, and the model has no names to number them by"
                raise UsageError(f"{labels or paths[0]}: {what}; give class numbers")
        return chain.from_iterable(read_piece(piece, self.schema, table) for piece in pieces(paths, self.schema))

    def evaluate_shards(
        self,
        patterns: Patterns,
        bad: BadRecords | None = None,
        *,
        all_scores: bool = False,
        labels: str | Path | None = None,
        label_encoding: Encoding | None = None,
        frames: int | None = None,
        seed: int | None = None,
    ) -> Scores:
        """Compute metrics on labelled shards; arguments and errors are those of `predict_shards` and `Evaluation`."""
        predictions = self.predict_shards(
            patterns, bad, labelled=True, labels=labels, label_encoding=label_encoding, frames=frames, seed=seed
        )
        return evaluate_predictions(predictions, all_scores=all_scores, classes=self.schema.segment_classes).compute()

    def save_pretrained(self, folder: str | Path, licence: str | None = None) -> None:
        """Write a folder for the Hugging Face Hub from the model's file; see `artifact.hub.share_artifact`."""
        share_artifact(resolve_model(self), Path(folder), licence)


def resolve_device(mode: AnyMode, device: str) -> str:
    """Return the device that a mode computes on; "auto" selects one.

    Raises:
        UsageError: there is no such mode, or it does not support this device.
    """
    if mode not in MODES:
        raise UsageError(f"mode: there is no {mode!r}; use {', '.join(MODES)}")
    quantized = mode in ("small", "fast")
    if device == "auto":
        return "cpu" if quantized else default_device()
    try:
        if quantized and torch.device(device).type != "cpu":
            raise UsageError(f"mode: {mode!r} runs on CPUs only; use 'exact' or 'bf16' on {device}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: {device!r} is not available ({reason}); see `reeltag doctor`") from error
    return device


def load(
    path: str | Path,
    mode: AnyMode | Choice = "auto",
    device: str = "auto",
    *,
    batch_size: int | None = None,
    calibrated: bool = False,
) -> Predictor:
    """Open a model for prediction; see `Predictor`.

    Args:
        path: a `.reeltag` file, a folder that `reeltag share` wrote, a URL, or a name; see `resolve_artifact`.
        mode: `exact`, `bf16`, `small` or `fast`; or `auto`, on CPUs the fastest engine and mode for each member whose
            cost is at most 0.0005 of GAP, which is measured once for each model and machine; see docs/onnx.md.
        device: that computes; by default a GPU, if there is one and the mode supports it.
        batch_size: number of videos that are usually tagged at once, for which `auto` chooses; by default as many as
            of shards, 64, or up to 256 of few frames.
        calibrated: apply the calibration in the file, which `reeltag thresholds` wrote, to all probabilities.

    Raises:
        ArtifactError: the file is missing, damaged, or from a newer reeltag, or cannot be fetched.
        UsageError: there is no such mode, the batch size is below 1, the mode does not support this device, or the file
            has no calibration.
    """
    file = resolve_artifact(path)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size: must be 1 or more, not {batch_size}")
    if mode == "auto":
        device = resolve_device(mode, device)
        videos = batch_size or videos_at_once(stream_artifact(file)[0].schema)
        mode = choose(file, torch.device(device).type, videos)
    predictor = Predictor(*stream_artifact(file), mode, device, calibrated=calibrated)
    predictor.source = file
    return predictor


def from_pretrained(model: str | Path, revision: str | None = None, **arguments: Any) -> Predictor:
    """Open a model that `reeltag share` wrote, from its folder or from the Hub, or one that comes with reeltag.

    Args:
        model: the folder, user/name on the Hugging Face Hub, or the name of a model that comes with reeltag.
        revision: branch, tag or commit on the Hub.
        arguments: as `reeltag.load` takes them.

    Raises:
        UsageError: there is no such folder and no such model, or the Hub cannot be reached and has no cached copy.
        ArtifactError: the file in the folder is missing or damaged.
    """
    if Path(model).is_dir() or model in MODELS:
        if revision is not None:
            raise UsageError(f"{model}: is not on the Hub, so revision {revision!r} does not apply; leave it out")
        return load(model, **arguments)
    return load(download_from_hub(str(model), revision), **arguments)


def resolve_model(model: str | Path | Predictor) -> Path:
    """Return the local path of a model, which may be loaded already.

    Raises:
        ArtifactError: there is no model at that location.
        UsageError: the model was not loaded from a file.
    """
    if not isinstance(model, Predictor):
        return resolve_artifact(model)
    if model.source is None:
        raise UsageError(
            "the model was not loaded from a file; write one with `reeltag.artifact.file.save_artifact` and load that"
        )
    return model.source
