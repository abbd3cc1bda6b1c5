"""Predictions as Parquet, written by pyarrow (extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import atomic_path
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.video_metrics import TOP_K, top_k

GROUP_BATCHES = 128  # batches of predictions per row group


class Parquet:
    """Format with the columns id, classes, names and scores: the 20 most probable classes of each video.

    Raises:
        UsageError: pyarrow is not installed.
    """

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise UsageError(
                f"Parquet needs pyarrow ({error}): {install_command('parquet')}, or write .csv or .jsonl"
            ) from error
        self._arrow, self._files = pyarrow, pyarrow.parquet
        lists = {"classes": pyarrow.int32(), "names": pyarrow.string(), "scores": pyarrow.float32()}
        columns = [("id", pyarrow.string()), *((name, pyarrow.list_(kind)) for name, kind in lists.items())]
        self._schema = pyarrow.schema(columns)

    def write(self, path: Path, predictions: Iterable[Predictions], label_names: Sequence[str]) -> None:
        """Write predictions, one row group at a time."""
        names = self._arrow.array(label_names, self._arrow.string())
        batches = (self._batch(part, names) for part in predictions)
        with atomic_path(path) as temporary, self._files.ParquetWriter(temporary, self._schema) as writer:
            while group := list(islice(batches, GROUP_BATCHES)):
                writer.write_table(self._arrow.Table.from_batches(group))

    def join(self, path: Path, parts: Sequence[Path]) -> None:
        """Concatenate files that `write` wrote, one row group at a time."""
        with atomic_path(path) as temporary, self._files.ParquetWriter(temporary, self._schema) as writer:
            for part in parts:
                with self._files.ParquetFile(part) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group))

    def _batch(self, part: Predictions, names: Any) -> Any:
        scores, classes = top_k(part.probabilities, TOP_K)
        numbers = self._arrow.array(classes.flatten().int().numpy())
        offsets = self._arrow.array(range(0, classes.numel() + 1, classes.shape[1]), self._arrow.int32())
        values = [numbers, names.take(numbers), self._arrow.array(scores.flatten().numpy())]
        lists = [self._arrow.ListArray.from_arrays(offsets, column) for column in values]
        return self._arrow.RecordBatch.from_arrays([self._arrow.array(part.ids), *lists], schema=self._schema)
