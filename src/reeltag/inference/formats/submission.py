"""Segments on disk as the third YouTube-8M challenge (2019) took them: a line a class, its segments best first.

A class's list needs the segments of all shards, so a part holds the scores of its shard, and parts are joined a class
at a time: what is in memory is one class's scores, and the segments' names.
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
from reeltag.inference.metrics.segments import TOP_SEGMENTS

_MARKS = frozenset(' ,"\r\n')  # what parts the cells of the file and the segments of a list


@dataclass(frozen=True)
class Submission:
    """`Class,Segments`: up to K segments `ID:START` of each class, by falling score, equal ones in their order.

    Attributes:
        schema: of the model; its `segment_classes` have a line, by default all classes.
        top: K.
    """

    schema: Schema
    top: int = TOP_SEGMENTS

    @property
    def classes(self) -> list[int]:
        """Those that have a line."""
        return list(self.schema.segment_classes or range(self.schema.classes))

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write the scores of a part, 4 bytes a segment and class.

        Raises:
            UsageError: a video's id cannot stand in such a file.
        """
        ids: list[str] = []
        columns = [torch.empty(0, len(self.classes))]
        for part in predictions:
            ids += part.ids
            columns.append(part.probabilities[:, self.classes])
        if bad := next((each for each in ids if _MARKS & set(each)), None):
            raise UsageError(f"{path.name}: {bad!r} cannot stand in a CSV of segments, which spaces part; use .jsonl")
        names = np.frombuffer("\n".join(ids).encode(), np.uint8)
        tensorfile.write(path, {"scores": torch.cat(columns).T.numpy(), "ids": names}, {"segments": len(ids)})

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Write a line for each class, from the scores of all parts."""
        files = [TensorFile(part) for part in parts]
        ids = [name for file in files if file.content["segments"] for name in _names(file)]
        scores = [file.read("scores") for file in files]  # pages of the files
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as out:
            out.write("Class,Segments\n")
            for row, label in enumerate(self.classes):
                order = np.argsort(-np.concatenate([each[row] for each in scores]), kind="stable")[: self.top]
                out.write(f"{label},{' '.join(ids[place] for place in order.tolist())}\n")


def _names(file: TensorFile) -> list[str]:
    return file.read("ids").tobytes().decode().split("\n")
