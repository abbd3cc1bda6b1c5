"""Predictions as Parquet, written by pyarrow (extra `parquet`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from torch.nn.functional import pad

from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError
from reeltag.core.storage import atomic_path
from reeltag.inference.ensemble import Predictions
from reeltag.inference.selection import Selection

GROUP_BATCHES = 128  # batches of predictions per row group


def import_pyarrow(instead: str) -> tuple[Any, Any]:
    """Import pyarrow and its module for Parquet.

    Args:
        instead: advice for those who do not want to install it.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"Parquet needs pyarrow ({error}): {install_command('parquet')}, or {instead}") from error
    return pyarrow, pyarrow.parquet


class Parquet:
    """Format with the columns id, classes, names and scores: the tags of each video.

    Args:
        selection: of the tags.

    Raises:
        UsageError: pyarrow is not installed.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._arrow, self._files = pyarrow, _ = import_pyarrow("write .csv or .jsonl")
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
        scores, classes, kept = self._selection.apply(part.probabilities)
        numbers = self._arrow.array(classes[kept].int().numpy())
        offsets = self._arrow.array(pad(kept.sum(1).cumsum(0), (1, 0)).int().numpy())
        values = [numbers, names.take(numbers), self._arrow.array(scores[kept].numpy())]
        lists = [self._arrow.ListArray.from_arrays(offsets, column) for column in values]
        return self._arrow.RecordBatch.from_arrays([self._arrow.array(part.ids), *lists], schema=self._schema)
