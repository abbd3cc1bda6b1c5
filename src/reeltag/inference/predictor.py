"""Load a shipped model and tag with it: from arrays, from shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.artifact.display import as_html, as_text
from reeltag.artifact.file import Artifact, Member, resolve_artifact, stream_artifact
from reeltag.artifact.hub import download_from_hub, share_artifact
from reeltag.artifact.quantization.encodings import State
from reeltag.artifact.quantization.linear import dequantized_state, int8_state, quantized_state
from reeltag.core.environment import default_device
from reeltag.core.errors import UsageError
from reeltag.core.storage import Patterns, find_files
from reeltag.data.bad_records import BadRecords
from reeltag.data.extractor_origin import refuse_other_origin
from reeltag.data.loader import Batch, stream_batches
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples
from reeltag.inference.ensemble import BATCH_SIZE, Ensemble, Predictions, predict_batches
from reeltag.inference.inputs import as_frames, check_frames
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.metrics.gap import Scores, top_k

Mode = Literal["exact", "bf16", "small", "fast"]
# What a member computes with.
WEIGHTS: dict[Mode, Callable[[State], Mapping[str, Tensor]]] = {
    "exact": dequantized_state,
    "bf16": partial(dequantized_state, dtype=torch.bfloat16),
    "small": quantized_state,
    "fast": int8_state,
}


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
        self.mode, self.device = mode, resolve_device(mode, device)
        self.artifact = replace(shipped, members=tuple(replace(member, state={}) for member in shipped.members))
        taggers = (member.build(shipped.schema, WEIGHTS[mode]) for member in members if member.weight > 0)
        shares = [member.weight for member in shipped.members if member.weight > 0]
        self.model = Ensemble(taggers, shares, mode == "bf16").eval()
        if self.device != "cpu":
            self.model.to(self.device)
        self.source: Path | None = None  # the file, if it came from one

    def __repr__(self) -> str:
        return as_text(self.artifact, self.source)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return as_html(self.artifact, self.source)

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
                    chunk.append(as_frames(frames))
                    check_frames(chunk[-1][None], np.array(chunk[-1].shape[:1]), self.schema)
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
        shards = find_files(patterns)
        refuse_other_origin(self.schema, shards)
        videos = read_examples(shards, self.schema, bad, labelled=labelled)
        return predict_batches(self.model, stream_batches(videos, self.schema, BATCH_SIZE))

    def evaluate_shards(self, patterns: Patterns, bad: BadRecords | None = None, *, all_scores: bool = False) -> Scores:
        """Measure on labelled shards; arguments and errors are those of `predict_shards` and `Evaluation`."""
        predictions = self.predict_shards(patterns, bad, labelled=True)
        return evaluate_predictions(predictions, all_scores=all_scores, classes=self.schema.segment_classes).compute()

    def save_pretrained(self, folder: str | Path, licence: str | None = None) -> None:
        """Share the file that the model was loaded from; see `sharing.share`."""
        share_artifact(resolve_model(self), Path(folder), licence)


def resolve_device(mode: Mode, device: str) -> str:
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
    file = resolve_artifact(path)
    predictor = Predictor(*stream_artifact(file), mode, device)
    predictor.source = file
    return predictor


def from_pretrained(model: str | Path, revision: str | None = None, **arguments: Any) -> Predictor:
    """Open a model that `share` wrote.

    Args:
        model: the folder, or user/name on the Hugging Face Hub.
        revision: branch, tag or commit on the Hub.
        arguments: as `reeltag.load` takes them.

    Raises:
        UsageError: there is no such folder and no such model, or the Hub cannot be reached and has no cached copy.
        ArtifactError: the file in the folder is missing or damaged.
    """
    if Path(model).is_dir():
        if revision is not None:
            raise UsageError(f"{model}: is a folder, so revision {revision!r} means nothing; leave it out")
        return load(model, **arguments)
    return load(download_from_hub(str(model), revision), **arguments)


def resolve_model(model: str | Path | Predictor) -> Path:
    """The file of a model, which may be open already.

    Raises:
        ArtifactError: there is none at that place.
        UsageError: the model did not come from a file.
    """
    if not isinstance(model, Predictor):
        return resolve_artifact(model)
    if model.source is None:
        raise UsageError(
            "the model was not loaded from a file; write one with `reeltag.artifact.file.save_artifact` and load that"
        )
    return model.source
