"""Damaged or invalid records, and the limit on how many of them may be skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reeltag.core.errors import DataError, UsageError
from reeltag.core.text import counted, first_lines


@dataclass(frozen=True)
class BadRecord:
    """A skipped record: the fields of its `DataError`."""

    file: str
    record: int
    offset: int
    reason: str
    id: str | None = None

    @classmethod
    def from_error(cls, error: DataError) -> BadRecord:
        """Create the entry of the record that an error names."""
        assert error.file is not None and error.record is not None and error.offset is not None
        return cls(error.file, error.record, error.offset, error.reason, error.id)

    @property
    def error(self) -> DataError:
        """The error that was not raised."""
        return DataError(self.reason, file=self.file, record=self.record, offset=self.offset, id=self.id)

    def __str__(self) -> str:
        return str(self.error)


@dataclass
class BadRecords:
    """Collection of bad records up to a limit.

    Attributes:
        limit: how many records may be skipped; with 0 the first bad record is raised.
        records: those that were skipped.
        skipped: number of records that the schema leaves out, which do not count against the limit.
        remarks: numbers of records and shards that the schema forgave something, by what it was.

    Raises:
        UsageError: the limit is below 0.
    """

    limit: int = 0
    records: list[BadRecord] = field(default_factory=list)
    skipped: int = 0
    remarks: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise UsageError(f"max_bad_records: must be 0 or more, not {self.limit}")

    def skip(self, error: DataError) -> None:
        """Add a bad record.

        Raises:
            DataError: the limit is exceeded.
        """
        if len(self.records) < self.limit:
            self.records.append(BadRecord.from_error(error))
            return
        if not self.limit:
            raise error
        reason = f"{error.reason}; this is one more than max_bad_records, {self.limit:,}, after"
        lines = [reason, *format_first(self.records)]
        raise DataError("\n  ".join(lines), file=error.file, record=error.record, offset=error.offset, id=error.id)


def format_first(found: Sequence[BadRecord]) -> list[str]:
    """Format the first few records, one line each."""
    return first_lines(list(map(str, found)))


def summary(found: Sequence[BadRecord]) -> str:
    """Summarise the skipped records in a few lines."""
    return "\n  ".join([f"{counted(len(found), 'bad record')} left out:", *format_first(found)])


def format_remarks(remarks: Mapping[str, int]) -> list[str]:
    """Format counted remarks, one line each."""
    return [f"{what}: {count:,}" for what, count in sorted(remarks.items())]
