"""Predictions of the hold-out: in a file of each member, and read for the searches of teachers and of the ensemble.

With thousands of classes only the probabilities that matter are stored: GAP counts 20 of a video, and all of 232,000
videos and 3,862 classes, as in the paper, would take 3.6 GB for each member and encoding. A video's highest ones are
always stored, so the GAP of a member is exact; the mean of several is off by less than `LEAST`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from reeltag.core import tensorfile
from reeltag.data.schema import Schema
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.video_metrics import gap
from reeltag.pipeline.ensemble_search import contenders

MANY_CLASSES = 1000
HIGHEST, LEAST = 50, 1e-3  # of many classes a video's 50 highest are stored, and all that are at least 0.001
EXPECTED = 150  # stored probabilities of a video, for estimates
CHUNK = 8192  # videos that are read at a time

Source = tuple["HoldoutPredictions", str]  # predictions, and one of their encodings


def holdout_row_bytes(schema: Schema, encodings: int) -> int:
    """Estimate the bytes that the predictions of an example take in so many encodings, with its labels."""
    if _is_sparse(schema.classes, schema.segments is not None):
        return EXPECTED * 8 * encodings
    return schema.classes * (1 + 4 * encodings)


def _is_sparse(classes: int, segments: bool) -> bool:
    return classes > MANY_CLASSES and not segments


class HoldoutPredictions:
    """Predictions of one member on N hold-out examples, by encoding.

    Args:
        tensors: content of the file: `labels` [N, C], and probabilities [N, C] by encoding; or if not all are stored,
            pairs of example and class in `labels`, and for each encoding the probabilities, their classes in
            `ENCODING/classes`, and the number of each example in `ENCODING/counts` [N].
        classes: C.
    """

    def __init__(self, tensors: dict[str, Tensor], classes: int) -> None:
        self._tensors, self._classes = tensors, classes

    @classmethod
    def of(cls, encodings: Mapping[str, Iterable[Predictions]], classes: int, *, segments: bool) -> HoldoutPredictions:
        """Collect the predictions of every encoding; `segments` are stored with all classes, rated or not."""
        sparse = _is_sparse(classes, segments)
        tensors: dict[str, Tensor] = {}
        for encoding, parts in encodings.items():
            labels, stored = [], []
            for part in parts:
                labels.append(part.labels)
                stored.append(_highest(part.comparable) if sparse else {"": part.comparable})
            tensors |= {f"{encoding}{name}": torch.cat([each[name] for each in stored]) for name in stored[0]}
            known = torch.cat([each for each in labels if each is not None])
            tensors["labels"] = known.nonzero().int() if sparse else known
        return cls(tensors, classes)

    @classmethod
    def read(cls, paths: Sequence[Path], classes: int) -> HoldoutPredictions:
        """Read files that `save` wrote, of the same examples in different encodings."""
        tensors = {name: tensor for path in paths for name, tensor in tensorfile.load_tensors(path)[0].items()}
        return cls(tensors, classes)

    def save(self, path: Path) -> None:
        """Write the predictions to a file."""
        tensorfile.save_tensors(path, self._tensors, {"videos": len(self)})

    def __len__(self) -> int:
        counts = [tensor for name, tensor in self._tensors.items() if name.endswith("/counts")]
        return len(counts[0] if counts else self._tensors["labels"])

    @property
    def is_sparse(self) -> bool:
        """True if not all probabilities are stored."""
        return any(name.endswith("/counts") for name in self._tensors)

    def probabilities(self, encoding: str, examples: Tensor) -> Tensor:
        """Return probabilities [n, C] of some examples: -1 for classes without a known label, 0 if not stored."""
        stored = self._tensors[encoding]
        if not self.is_sparse:
            return stored[examples]
        counts = self._tensors[f"{encoding}/counts"].long()
        begins, lengths = (counts.cumsum(0) - counts)[examples], counts[examples]
        rows = torch.repeat_interleave(torch.arange(len(examples)), lengths)
        places = torch.arange(len(rows)) + torch.repeat_interleave(begins - (lengths.cumsum(0) - lengths), lengths)
        dense = torch.zeros(len(examples), self._classes)
        dense[rows, self._tensors[f"{encoding}/classes"][places].long()] = stored[places]
        return dense

    @property
    def labels(self) -> Tensor:
        """Labels [N, C], bool."""
        stored = self._tensors["labels"]
        if not self.is_sparse:
            return stored
        labels = torch.zeros(len(self), self._classes, dtype=torch.bool)
        labels[stored[:, 0].long(), stored[:, 1].long()] = True
        return labels

    def gap(self, encoding: str, examples: Tensor | None = None) -> float:
        """Return GAP@20 in an encoding, of some examples or of all."""
        (probabilities,), labels = read_contenders([(self, encoding)], self.labels, examples)
        return gap(probabilities, labels)


def _highest(probabilities: Tensor) -> dict[str, Tensor]:
    """Return the probabilities [B, C] that are stored, with their classes and their numbers, by the names' endings."""
    lowest = probabilities.topk(HIGHEST, dim=1).values[:, -1:].clamp_max(LEAST)
    rows, classes = torch.nonzero(probabilities >= lowest, as_tuple=True)
    counts = torch.bincount(rows, minlength=len(probabilities))
    return {"": probabilities[rows, classes], "/classes": classes.int(), "/counts": counts.int()}


def read_contenders(
    sources: Sequence[Source], labels: Tensor, examples: Tensor | None = None
) -> tuple[list[Tensor], Tensor]:
    """Read the classes that may be among a video's 20 highest for any weights; see `ensemble_search.contenders`.

    Args:
        sources: of the same N examples.
        labels: [N, C] bool.
        examples: [n], indices of those to read; all by default.

    Returns:
        Probabilities [n, K] of each source, and labels [n, K] bool.
    """
    sparse = any(predictions.is_sparse for predictions, _ in sources)
    chunks: list[tuple[list[Tensor], Tensor]] = []
    for part in torch.split(torch.arange(len(labels)) if examples is None else examples, CHUNK):
        dense = [predictions.probabilities(encoding, part) for predictions, encoding in sources]
        chunks.append(contenders(dense, labels[part], stored_only=sparse))
    width = max(found.shape[1] for _, found in chunks)
    probabilities = [
        torch.cat([pad(each[source], (0, width - each[source].shape[1]), value=-1.0) for each, _ in chunks])
        for source in range(len(sources))
    ]
    return probabilities, torch.cat([pad(found, (0, width - found.shape[1])) for _, found in chunks])
