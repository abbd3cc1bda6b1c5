"""Submission file of the third YouTube-8M challenge (2019): for each class its highest-scoring segments.

The list of a class needs the segments of all shards. So a part holds the scores of one shard, and parts are joined
class by class, with one class's scores and the ids of the segments in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reeltag.core import tensorfile
from reeltag.core.errors import UsageError
from reeltag.core.storage import atomic_path
from reeltag.core.tensorfile import TensorFile
from reeltag.data.schema import Schema
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.segment_metrics import TOP_SEGMENTS

_MARKS = frozenset(' ,"\r\n')  # separators of cells and of segments


@dataclass(frozen=True)
class Submission:
    """Format `Class,Segments`: up to K segments `ID:START` of each class, in descending order of score.

    Attributes:
        schema: schema of the model; its `segment_classes`, by default all classes, have a line each.
        top: K.
    """

    schema: Schema
    top: int = TOP_SEGMENTS

    @property
    def classes(self) -> list[int]:
        """Classes with a line in the file."""
        return list(self.schema.segment_classes or range(self.schema.classes))

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write the scores of a part, 4 bytes per segment and class.

        Raises:
            UsageError: a video's id contains a separator.
        """
        ids: list[str] = []
        columns = [torch.empty(0, len(self.classes))]
        for part in predictions:
            ids += part.ids
            columns.append(part.probabilities[:, self.classes])
        if bad := next((each for each in ids if _MARKS & set(each)), None):
            raise UsageError(f"{path.name}: {bad!r} contains a separator of this CSV of segments; use .jsonl")
        names = np.frombuffer("\n".join(ids).encode(), np.uint8)
        tensorfile.write(path, {"scores": torch.cat(columns).T.numpy(), "ids": names}, {"segments": len(ids)})

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Write a line for each class from the scores of all parts."""
        files = [TensorFile(part) for part in parts]
        ids = [name for file in files if file.content["segments"] for name in _names(file)]
        scores = [file.read("scores") for file in files]  # memory-mapped
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.write("Class,Segments\n")
            for row, label in enumerate(self.classes):
                order = np.argsort(-np.concatenate([each[row] for each in scores]), kind="stable")[: self.top]
                out.write(f"{label},{' '.join(ids[index] for index in order.tolist())}\n")


def _names(file: TensorFile) -> list[str]:
    return file.read("ids").tobytes().decode().split("\n")
