"""Read predictions of any program as a teacher's: Kaggle's CSV format, or NumPy's .npz."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from reeltag.core.errors import UsageError
from reeltag.core.storage import require_regular
from reeltag.core.tables import fault, read_table
from reeltag.data.shards import Indices, id_hash

COLUMNS = ("VideoId", "LabelConfidencePairs")


@dataclass(frozen=True)
class ExternalPredictions:
    """Probabilities of N videos, P entries in all.

    Attributes:
        path: of the file.
        ids: hash of each video's id, in ascending order.
        starts: [N] index of each video's first entry.
        counts: [N] number of entries of each video.
        classes: [P] class index of each entry.
        probabilities: [P] float32.
        width: C.
    """

    path: Path
    ids: npt.NDArray[np.uint64]
    starts: Indices
    counts: Indices
    classes: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    width: int

    def rows(self, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
        """Return the probabilities [B, C] of the videos with these id hashes; 0 for classes that the file leaves out.

        Raises:
            UsageError: the file has no such video.
        """
        places = np.searchsorted(self.ids, ids)
        missing = self.ids[np.minimum(places, len(self.ids) - 1)] != ids
        if missing.any():
            what = f"has no predictions for {missing.sum():,} of {len(ids):,} training videos of a shard"
            raise UsageError(f"{self.path}: {what}; predict every training video by its id")
        out = np.zeros((len(ids), self.width), np.float32)
        for row, place in zip(out, places.tolist(), strict=True):
            part = slice(self.starts[place], self.starts[place] + self.counts[place])
            row[self.classes[part]] = self.probabilities[part]
        return out


def read_predictions(path: Path, classes: int) -> ExternalPredictions:
    """Read a file of predictions.

    Args:
        path: `.csv` with the columns VideoId and LabelConfidencePairs, pairs of class index and probability, as
            `reeltag predict --out` writes it; or `.npz` with `ids` [N] text and `probabilities` [N, C].
        classes: C.

    Raises:
        UsageError: the file cannot be read, an id occurs twice, a class is outside 0…C-1, or a number is not a
            probability; the message names the line or row.
    """
    if path.suffix not in (".csv", ".npz"):
        raise UsageError(f"{path}: predictions are a .csv (Kaggle's columns) or .npz file")
    names, counts, numbers, values = (_read_csv if path.suffix == ".csv" else _read_npz)(path, classes)
    if not names:
        raise UsageError(f"{path}: holds no predictions")
    hashes = np.array([id_hash(name) for name in names], np.uint64)
    order = np.argsort(hashes, kind="stable")
    if (twice := np.flatnonzero(np.diff(hashes[order]) == 0)).size:
        raise UsageError(f"{path}: {names[order[twice[0]]]!r} occurs twice; give each video once")
    starts = np.cumsum([0, *counts])[:-1]
    return ExternalPredictions(path, hashes[order], starts[order], counts[order], numbers, values, classes)


Read = tuple[list[str], Indices, npt.NDArray[np.int64], npt.NDArray[np.float32]]


def _read_csv(path: Path, classes: int) -> Read:
    names: list[str] = []
    counts: list[int] = []
    numbers, values = [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
    table = read_table(path)
    if table.columns != COLUMNS:
        raise fault(path, table.header, f"should be {','.join(COLUMNS)}, the header of Kaggle's format")
    for line, (name, pairs) in table:
        try:
            cells = np.array(pairs.split(), np.float64).reshape(-1, 2)
        except ValueError as error:
            how = "an id, and pairs of class number and probability separated by spaces"
            raise fault(path, line, f"should be {how}") from error
        if not name:
            raise fault(path, line, "has no id")
        if wrong := _fault(cells[:, 0], cells[:, 1], classes):
            raise fault(path, line, wrong)
        names.append(name)
        counts.append(len(cells))
        numbers.append(cells[:, 0].astype(np.int64))
        values.append(cells[:, 1].astype(np.float32))
    return names, np.array(counts, np.int64), np.concatenate(numbers), np.concatenate(values)


def _read_npz(path: Path, classes: int) -> Read:
    try:
        with np.load(require_regular(path), allow_pickle=False) as arrays:
            ids, dense = arrays["ids"], arrays["probabilities"]
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except KeyError as error:
        raise UsageError(f"{path}: has no array {error}; give ids [N] and probabilities [N, C]") from error
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path}: is not an .npz file with ids (text) and probabilities ({error})") from error
    if ids.dtype.kind not in "US" or dense.shape != (len(ids.ravel()), classes) or ids.ndim != 1:
        shapes = f"ids {list(ids.shape)} {ids.dtype} and probabilities {list(dense.shape)}"
        raise UsageError(f"{path}: holds {shapes}; give ids [N] as text and probabilities [N, {classes}]")
    for row, probabilities in enumerate(dense):
        if wrong := _fault(np.arange(classes), probabilities, classes):
            raise UsageError(f"{path}, row {row}: {wrong}")
    names = [_text(path, name) for name in ids.tolist()]
    counts = np.full(len(names), classes, np.int64)
    return names, counts, np.tile(np.arange(classes), len(names)), dense.astype(np.float32).ravel()


def _text(path: Path, name: Any) -> str:
    try:
        return name.decode("utf-8") if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: the id {name!r} is not UTF-8") from error


def _fault(numbers: npt.NDArray[Any], probabilities: npt.NDArray[Any], classes: int) -> str:
    """Return what is wrong with a video's predictions; empty if nothing is."""
    known = (numbers >= 0) & (numbers < classes) & (numbers == np.floor(numbers))
    if not known.all():
        return f"{numbers[~known][0]:g} is not one of the classes 0 to {classes - 1}"
    if len(np.unique(numbers)) < len(numbers):
        return "a class occurs twice"
    if not (sound := (probabilities >= 0) & (probabilities <= 1)).all():  # NaN is neither
        return f"{probabilities[~sound][0]:g} is not a probability; give numbers from 0 to 1"
    return ""
