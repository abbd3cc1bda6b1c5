"""Soft targets on disk: a teacher's probabilities, keyed by shard and record.

Every shard has one `.npy` file of float16, a row a record: all C probabilities, or the k highest with their classes.
Rows of videos without soft targets, such as the hold-out, are NaN. `targets.json` is written last; it ties the files
to the shards' hashes and to the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reeltag.core.errors import DataError, UsageError
from reeltag.core.storage import atomic_path, content_hash, file_hash, file_inside, read_json, write_json
from reeltag.data.shards import Indices, Manifest, Shards

INDEX = "targets.json"
FORMAT = 1
TopK = int | Literal["dense"]


class TargetsWriter:
    """Writer of the folder that `SoftTargets` reads; takes probabilities in any order.

    Args:
        folder: for the files.
        manifest: the shards that the targets belong to.
        top_k: number of probabilities kept for each video, or "dense" for all.
    """

    def __init__(self, folder: Path, manifest: Manifest, top_k: TopK) -> None:
        self.folder, self.manifest = folder, manifest
        self.classes = manifest.schema.classes
        self.kept = None if top_k == "dense" else min(top_k, self.classes)
        self._first = manifest.first_records
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, indices: Indices, probabilities: Tensor) -> None:
        """Store the probabilities [B, C] of the videos with these indices; each shard's file is replaced atomically."""
        shards = np.searchsorted(self._first, indices, "right") - 1
        values, classes = probabilities, None
        if self.kept is not None:
            values, classes = probabilities.topk(self.kept, dim=1)
        for shard in np.unique(shards).tolist():
            chosen = shards == shard
            path = self._path(shard)
            rows = np.load(path, allow_pickle=False) if path.exists() else self._untaught(shard)
            records = self.manifest.numbers[indices[chosen]]
            if classes is None:
                rows[records] = values.numpy()[chosen]
            else:
                rows["class"][records] = classes.numpy()[chosen]
                rows["probability"][records] = values.numpy()[chosen]
            self._write(shard, rows)

    def _path(self, shard: int) -> Path:
        return self.folder / targets_file(shard)

    def _untaught(self, shard: int) -> npt.NDArray[Any]:
        info = self.manifest.shards[shard]
        rows = np.zeros(info.records + info.left_out, _row(self.classes, self.kept))
        _probabilities(rows)[:] = np.nan
        return rows

    def _write(self, shard: int, rows: npt.NDArray[Any]) -> None:
        with atomic_path(self._path(shard)) as temporary, temporary.open("wb") as file:
            np.save(file, rows)

    def finish(self, teacher: Mapping[str, Any]) -> str:
        """Write the index, and the files of shards without probabilities.

        Args:
            teacher: description of the teacher; JSON.

        Returns:
            Hash of the folder's content.
        """
        shards = []
        for number, shard in enumerate(self.manifest.shards):
            path = self._path(number)
            if not path.exists():
                self._write(number, self._untaught(number))
            taught = int(np.isfinite(_probabilities(np.load(path, allow_pickle=False))[:, 0]).sum())
            entry = {"shard": shard.sha256, "file": path.name, "sha256": file_hash(path), "taught": taught}
            shards.append(entry)
        content = {
            "format": FORMAT,
            "top_k": self.kept or "dense",
            "classes": self.classes,
            "teacher": dict(teacher),
            "shards": shards,
        }
        digest = content_hash(content)
        write_json(self.folder / INDEX, {**content, "checksum": digest})
        return digest


def targets_file(shard: int) -> str:
    """Return the file name of a shard's targets."""
    return f"{shard:05}.npy"


def row_bytes(classes: int, top_k: TopK) -> int:
    """Return the bytes of one video's targets."""
    return _row(classes, None if top_k == "dense" else min(top_k, classes)).itemsize


def _row(classes: int, kept: int | None) -> np.dtype[Any]:
    """Return the dtype of a video's row: all probabilities, or the k highest with their classes."""
    if kept is None:
        return np.dtype((np.float16, classes))
    code = np.uint16 if classes <= 1 << 16 else np.uint32
    return np.dtype(([("class", code), ("probability", np.float16)], kept))


class SoftTargets:
    """Random access to the targets of a shard set; cheap to create and to send to a worker.

    Args:
        folder: written by a `TargetsWriter`.
        manifest: the shards that the videos come from, in any order.

    Raises:
        UsageError: the folder holds no targets, some for other shards, or a file was changed since.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        index = read_json(folder / INDEX)
        checksum = index.pop("checksum", None) if isinstance(index, dict) else None
        if checksum != content_hash(index) or index["format"] != FORMAT:
            what = "was changed, or was written by another version of reeltag"
            raise UsageError(f"{folder / INDEX}: {what}; remove {folder}, and reeltag recreates it")
        self.classes, self.folder = index["classes"], folder
        by_shard = {entry["shard"]: entry for entry in index["shards"]}
        self._files: list[Path] = []
        for shard in manifest.shards:
            entry = by_shard.get(shard.sha256)
            if entry is None or self.classes != manifest.schema.classes:
                raise UsageError(f"{folder}: was computed for other data than {shard.path}; recompute the soft targets")
            path = file_inside(folder, entry["file"])
            if file_hash(path) != entry["sha256"]:
                raise UsageError(f"{path}: was changed; remove {folder}, and reeltag recreates it")
            self._files.append(path)
        self._first, self._shards = manifest.first_records, Shards(manifest)

    def rows(self, indices: Indices) -> Tensor:
        """Return the probabilities [B, C] float32 of videos by index; 0 for classes that were not stored.

        Raises:
            DataError: one of them has no soft targets.
        """
        out = np.zeros((len(indices), self.classes), np.float32)
        for row, index in zip(out, indices, strict=True):
            shard = int(np.searchsorted(self._first, index, "right")) - 1
            stored = _open(self._files[shard])[self._shards.manifest.numbers[index]]
            if stored.dtype.names:
                row[stored["class"]] = stored["probability"]
            else:
                row[:] = stored
        if np.isnan(out).any():
            path, record, offset = self._shards.location(indices[np.isnan(out).any(1)][0])
            reason = f"has no soft targets in {self.folder}, since the teacher skipped this video; recompute them"
            raise DataError(reason, file=path, record=record, offset=offset)
        return torch.from_numpy(out)


def mean_rows(targets: Sequence[SoftTargets], indices: Indices) -> Tensor:
    """Return the mean of several teachers' probabilities [B, C] float32 of videos by index."""
    return torch.stack([each.rows(indices) for each in targets]).mean(0)


@lru_cache(maxsize=256)
def _open(path: Path) -> npt.NDArray[Any]:
    try:
        rows: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise UsageError(
            f"{path}: holds no soft targets ({error}); remove {path.parent}, and reeltag recreates it"
        ) from error
    return rows


def _probabilities(rows: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    return rows["probability"] if rows.dtype.names else rows
