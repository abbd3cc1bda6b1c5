"""Model + batches → predictions. All real frames take part, masked, so that the result is deterministic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from reeltag.artifact import file as artifact_file
from reeltag.artifact.file import Artifact, Member
from reeltag.artifact.quantization.linear import byte_state, coded_state, dense_state
from reeltag.data.bad_records import BadRecords
from reeltag.data.loader import Batch, stream_batches
from reeltag.data.extractor_origin import refuse_other_origin
from reeltag.data.schema import Schema
from reeltag.data.shards import read_all
from reeltag.artifact.quantization.encodings import State
from reeltag.core.environment import default_device
from reeltag.core.errors import DataError, UsageError
from reeltag.inference.inputs import as_array, check
from reeltag.core.memory import enough_memory
from reeltag.inference.metrics.gap import Metrics, Scores, top_k
from reeltag.artifact.quantization.quantize import is_large
from reeltag.inference.metrics.segments import SegmentRanking
from reeltag.core.storage import Patterns, counted, find

BATCH_SIZE = 64
LESS_MEMORY = "end other programs, take fewer processes, a smaller model, or one of the modes bf16 and small"

Mode = Literal["exact", "bf16", "small", "fast"]
# What a member computes with.
WEIGHTS: dict[Mode, Callable[[State], Mapping[str, Tensor]]] = {
    "exact": dense_state,
    "bf16": partial(dense_state, dtype=torch.bfloat16),
    "small": coded_state,
    "fast": byte_state,
}


@dataclass(frozen=True)
class Predictions:
    """What a model says of B videos, or of their segments.

    Attributes:
        ids: names of the videos.
        probabilities: [B, C] float32.
        labels: [B, C] bool, or None.
        rated: [B, C] bool, which classes the labels tell of; None: all.
    """

    ids: tuple[str, ...]
    probabilities: Tensor
    labels: Tensor | None
    rated: Tensor | None = None

    @property
    def comparable(self) -> Tensor:
        """[B, C], the probabilities, but -1 where no label tells what is right, so that it ranks behind all others."""
        return self.probabilities if self.rated is None else self.probabilities.masked_fill(~self.rated, -1)


class Ensemble(nn.Module):
    """The weighted mean of models' probabilities.

    Args:
        taggers: the members, or ensembles of them; theirs are the weights whose type changes.
        weights: their shares; sum to 1.
        bf16: compute matrix products in bf16, and keep the large weights in it too, in half the memory, but for those
            of `torch.nn.LSTM` and `GRU`.
    """

    def __init__(self, taggers: Iterable[nn.Module], weights: Sequence[float], bf16: bool = False) -> None:
        super().__init__()
        self.weights, self.bf16 = list(weights), bf16
        self.taggers = nn.ModuleList(self._arranged(tagger) for tagger in taggers)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Frames [B, T, D] and lengths [B] to probabilities [B, C]."""
        parts = zip(self.taggers, self.weights, strict=True)
        with torch.autocast(frames.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            return torch.stack([weight * tagger(frames, lengths) for tagger, weight in parts]).sum(0)

    def _arranged(self, tagger: nn.Module) -> nn.Module:
        for module in tagger.modules():
            if self.bf16 and not isinstance(module, nn.RNNBase):  # whose kernels want weights and biases of one type
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim > 1 and is_large(parameter):
                        parameter.data = parameter.data.bfloat16()
        return tagger


@torch.inference_mode()
def predict(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Predictions]:
    """Tag batches, in their order; the model must be in evaluation mode.

    Raises:
        OutOfMemoryError: a batch takes more memory than there is.
    """
    device = next(model.parameters()).device
    for batch in batches:
        with enough_memory(f"tagging {counted(len(batch), 'video')} at once", LESS_MEMORY):
            there = batch.to(device)
            probabilities = model(there.frames, there.lengths).cpu()
        yield Predictions(batch.ids, probabilities, batch.labels, batch.rated)


class Evaluation:
    """Labelled predictions, measured as they come.

    Args:
        all_scores: keep them all in memory, for `Scores.map_all`.
        classes: that segments can be rated in; all by default.
    """

    def __init__(self, *, all_scores: bool = False, classes: Sequence[int] | None = None) -> None:
        self._all_scores, self._classes = all_scores, classes
        self._parts: list[Metrics] = []
        self._ranking: SegmentRanking | None = None

    def add(self, part: Predictions) -> None:
        """Measure some; segments without a rating take part in the ranking of each class alone.

        Raises:
            DataError: one has no labels.
        """
        if part.labels is None:
            raise DataError(
                f"video {part.ids[0]!r} or one beside it has no labels, so nothing can be measured; "
                "evaluate on labelled shards, or use `reeltag predict`"
            )
        scores, labels = part.comparable, part.labels
        if part.rated is not None:
            self._ranking = self._ranking or SegmentRanking(labels.shape[1], self._classes)
            self._ranking.add(part.probabilities, labels, part.rated)
            told = part.rated.any(1)
            scores, labels = scores[told], labels[told]
        if len(labels):
            self._parts.append(Metrics.of(scores, labels, all_scores=self._all_scores))

    def metrics(self) -> Metrics:
        """Metrics of all that was added.

        Raises:
            DataError: there was nothing.
        """
        if not self._parts:
            raise DataError("no videos to evaluate")
        segment_ap = self._ranking.class_ap() if self._ranking else None
        return replace(Metrics.merge(self._parts), segment_ap=segment_ap)


def evaluate(
    predictions: Iterable[Predictions], *, all_scores: bool = False, classes: Sequence[int] | None = None
) -> Metrics:
    """Metrics of labelled predictions; the arguments are those of `Evaluation`.

    Raises:
        DataError: a video has no labels, or there is no video.
    """
    evaluation = Evaluation(all_scores=all_scores, classes=classes)
    for part in predictions:
        evaluation.add(part)
    return evaluation.metrics()


class Predictor:
    """A shipped model, ready to tag; threads may share it.

    Args:
        shipped: what the file holds; its members' weights may be missing.
        members: them with their weights; each is let go before the next is read.
        mode: how weights are kept and multiplied.
            `exact` float32, dequantised once;
            `bf16` about twice as fast on processors that multiply it (AVX-512 BF16, AMX) and on GPUs, in half the
            memory, accurate to about three digits;
            `small` as stored, and dequantised a few rows at a time in every call: the results of `exact`, slowly;
            `fast` 8-bit weights that are multiplied in 8 bits. `small` and `fast` are for processors.
        device: where to compute; by default a GPU, where there is one and the mode is for it.

    Raises:
        UsageError: there is no such mode, or it is not for this device.
    """

    def __init__(
        self, shipped: Artifact, members: Iterable[Member], mode: Mode = "exact", device: str = "auto"
    ) -> None:
        self.mode, self.device = mode, place(mode, device)
        self.artifact = replace(shipped, members=tuple(replace(member, state={}) for member in shipped.members))
        taggers = (member.build(shipped.schema, WEIGHTS[mode]) for member in members if member.weight > 0)
        shares = [member.weight for member in shipped.members if member.weight > 0]
        self.model = Ensemble(taggers, shares, mode == "bf16").eval()
        if self.device != "cpu":
            self.model.to(self.device)
        self.source: Path | None = None  # the file, if it came from one

    def __repr__(self) -> str:
        from reeltag.artifact.display import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from reeltag.artifact.display import as_html

        return as_html(self)

    @property
    def schema(self) -> Schema:
        """The data that the model reads."""
        return self.artifact.schema

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each class; its number where the file has no names."""
        return self.artifact.label_names or tuple(map(str, range(self.schema.classes)))

    def predict(self, frames: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """Tag frames.

        Args:
            frames: [T, D] of one video or [B, T, D] of several, in the schema's dtype; frames past the
                schema's limit are left out. A model of segments takes segments.
            lengths: [B], real frames of each video; all by default.

        Returns:
            Probabilities [C] or [B, C], float32; what `reeltag predict` computes, but for the last bits.

        Raises:
            UsageError: wrong shape, dtype or length, no frames, or values that are not finite.
        """
        array = as_array(frames)
        several = array if array.ndim == 3 else array[None]
        counts = np.full(len(several), several.shape[1]) if lengths is None else np.asarray(lengths)
        check(several, counts, self.schema)
        cut = several[:, : self.schema.max_frames]
        batch = Batch(
            ids=("",) * len(cut),
            frames=torch.from_numpy(np.array(cut)),
            lengths=torch.from_numpy(counts.astype(np.int64)).clamp_max(self.schema.max_frames),
            labels=None,
        )
        (result,) = predict(self.model, [batch])
        probabilities: npt.NDArray[np.float32] = result.probabilities.numpy()
        return probabilities if array.ndim == 3 else probabilities[0]

    def predict_each(self, videos: Iterable[npt.ArrayLike]) -> Iterator[npt.NDArray[np.float32]]:
        """Tag videos as they come, 64 at a time.

        Args:
            videos: frames [T, D] of each; T may differ.

        Yields:
            Probabilities [C] of each, in their order.

        Raises:
            UsageError: a video cannot be tagged; says which, counted from 0, and why.
        """
        numbered = enumerate(videos)
        while taken := list(islice(numbered, BATCH_SIZE)):
            chunk = []
            for number, frames in taken:
                try:
                    chunk.append(as_array(frames))
                    check(chunk[-1][None], np.array(chunk[-1].shape[:1]), self.schema)
                except UsageError as error:
                    raise UsageError(f"video {number}: {error}") from error
            lengths = np.array(list(map(len, chunk)))
            padded = np.zeros((len(chunk), lengths.max(), self.schema.width), self.schema.dtype)
            for row, video in zip(padded, chunk, strict=True):
                row[: len(video)] = video
            yield from self.predict(padded, lengths)

    def tags(self, frames: npt.ArrayLike, top: int = 5) -> list[tuple[str, float]]:
        """The most probable classes of one video [T, D], by name.

        Raises:
            UsageError: the frames are not those of one video.
        """
        probabilities = self.predict(frames)
        if probabilities.ndim != 1:
            raise UsageError("tags: give the frames [T, D] of one video; `predict` takes several")
        scores, classes = top_k(torch.from_numpy(probabilities)[None], top)
        return [(self.label_names[c], s) for c, s in zip(classes[0].tolist(), scores[0].tolist(), strict=True)]

    def predict_shards(
        self, patterns: Patterns, bad: BadRecords | None = None, *, labelled: bool = False
    ) -> Iterator[Predictions]:
        """Tag every video of shards, or every segment of them, in order.

        Args:
            patterns: paths, URLs or glob patterns, one or several.
            bad: takes note of bad records; by default the first is raised.
            labelled: a record without labels is bad too.

        Raises:
            UsageError: a pattern matches nothing, or the features are of another extractor.
            DataError: a record is damaged or does not follow the model's schema.
        """
        shards = find(patterns)
        refuse_other_origin(self.schema, shards)
        videos = read_all(shards, self.schema, bad, labelled=labelled)
        return predict(self.model, stream_batches(videos, self.schema, BATCH_SIZE))

    def evaluate_shards(self, patterns: Patterns, bad: BadRecords | None = None, *, all_scores: bool = False) -> Scores:
        """Measure on labelled shards; arguments and errors are those of `predict_shards` and `Evaluation`."""
        predictions = self.predict_shards(patterns, bad, labelled=True)
        return evaluate(predictions, all_scores=all_scores, classes=self.schema.segment_classes).compute()

    def save_pretrained(self, folder: str | Path, licence: str | None = None) -> None:
        """Share the file that the model was loaded from; see `sharing.share`."""
        from reeltag.artifact.hub import share

        share(file_of(self), Path(folder), licence)


def place(mode: Mode, device: str) -> str:
    """The device that a mode computes on, where "auto" leaves it open.

    Raises:
        UsageError: there is no such mode, or it is not for this device.
    """
    if mode not in WEIGHTS:
        raise UsageError(f"mode: there is no {mode!r}; use {', '.join(WEIGHTS)}")
    coded = mode in ("small", "fast")
    if device == "auto":
        return "cpu" if coded else default_device()
    try:
        if coded and torch.device(device).type != "cpu":
            raise UsageError(f"mode: {mode!r} is for processors; use 'exact' or 'bf16' on {device}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"device: {device!r} is not here ({reason}); see `reeltag doctor`") from error
    return device


def load(path: str | Path, mode: Mode = "exact", device: str = "auto") -> Predictor:
    """Open a model for prediction; see `Predictor`.

    Args:
        path: a `.reeltag` file, a folder that `reeltag share` wrote, or a URL.
        mode: `exact`, `bf16`, `small` or `fast`.
        device: where to compute; by default a GPU, where there is one and the mode is for it.

    Raises:
        ArtifactError: the file is missing, damaged, or from a newer reeltag, or cannot be fetched.
        UsageError: there is no such mode, or it is not for this device.
    """
    file = artifact_file.local_file(path)
    predictor = Predictor(*artifact_file.stream(file), mode, device)
    predictor.source = file
    return predictor


def file_of(model: str | Path | Predictor) -> Path:
    """The file of a model, which may be open already.

    Raises:
        ArtifactError: there is none at that place.
        UsageError: the model did not come from a file.
    """
    if not isinstance(model, Predictor):
        return artifact_file.local_file(model)
    if model.source is None:
        raise UsageError("the model was not loaded from a file; write one with `artifact.save` and load that")
    return model.source
