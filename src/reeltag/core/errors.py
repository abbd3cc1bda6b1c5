"""Errors that reeltag raises on bad input. Each message names the thing, the place and the next step.

A `ReeltagError` is one that the user can fix, so the command line prints its message and exits with code 2.
Any other exception is a bug in reeltag and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_ID = 100  # characters of an id in a message


class ReeltagError(ValueError):
    """Base class of all errors that the user can fix."""


class UsageError(ReeltagError):
    """A path, argument or combination of arguments that cannot work."""


class DataError(ReeltagError):
    """A record or shard that cannot be trusted.

    Args:
        reason: what is wrong and, where there is one, the next step.
        file: path of the shard.
        record: index of the record in the shard, from 0.
        offset: byte offset of the record in the shard.
        id: of the record's video, where it has one.
    """

    def __init__(
        self,
        reason: str,
        *,
        file: str | None = None,
        record: int | None = None,
        offset: int | None = None,
        id: str | None = None,
    ) -> None:
        self.reason, self.file, self.record, self.offset, self.id = reason, file, record, offset, id
        place = [file] if file else []
        place += [f"record {record}"] if record is not None else []
        place += [f"byte {offset}"] if offset is not None else []
        parts = [", ".join(place)] if place else []
        parts += [f"video {id[:MAX_ID]!r}"] if id is not None else []
        super().__init__(": ".join([*parts, reason]))

    def __reduce__(self) -> tuple[object, ...]:
        # Loader workers send errors to the parent by pickle, which only replays positional arguments.
        return (_rebuild_data_error, (self.reason, self.file, self.record, self.offset, self.id))


def _rebuild_data_error(
    reason: str, file: str | None, record: int | None, offset: int | None, id: str | None
) -> DataError:
    return DataError(reason, file=file, record=record, offset=offset, id=id)


class RecipeError(ReeltagError):
    """An invalid recipe; the message lists all faults at once."""

    def __init__(self, source: str, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        count = f"{len(self.faults)} fault" + ("s" if len(self.faults) > 1 else "")
        super().__init__("\n  ".join([f"{source}: {count}", *self.faults]))


class ArtifactError(ReeltagError):
    """A `.reeltag` file or checkpoint that is damaged, of another format, or written by another version."""


class BudgetError(ReeltagError):
    """The file would exceed its byte budget."""


class TrainingError(ReeltagError):
    """Training cannot continue, for example because the loss is not finite."""


class TrainingStoppedError(ReeltagError):
    """A training was given up, because others of a search promise more."""


class OutOfMemoryError(ReeltagError):
    """The work needs more memory than the machine or the GPU has."""


class TransferError(ReeltagError):
    """A remote file that is missing, not accessible or cannot be reached."""


class VideoError(ReeltagError):
    """A video file that cannot be read, or takes too long to decode."""


class WorkerError(ReeltagError):
    """A worker process ended before its task was finished."""


class RequestError(ReeltagError):
    """A request that the service rejects.

    Args:
        status: HTTP status code of the response.
        reason: what is wrong and the next step.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)
