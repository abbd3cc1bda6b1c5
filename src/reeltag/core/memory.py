"""Memory that ran out: recognised, whoever says so, and told with what would need less."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from reeltag.core.errors import OutOfMemoryError
from reeltag.core.text import megabytes

# What torch says on a processor and on a GPU, and NumPy.
_RAN_OUT = re.compile(r"can't allocate memory|not enough memory|out of memory|std::bad_alloc")
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(\w+)", re.IGNORECASE)


@contextmanager
def explain_out_of_memory(work: str, less: str) -> Iterator[None]:
    """Say of work in a block that memory ran out, and what would need less of it.

    Args:
        work: what is done in the block.
        less: the next step.

    Raises:
        OutOfMemoryError: instead of whatever says that memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not _ran_out(error):
            raise
        asked = _ASKED.search(str(error))
        size = f", with {_size(asked[1], asked[2])} asked for at once" if asked else ""
        place = "a GPU's memory" if "CUDA" in str(error) else "memory"
        raise OutOfMemoryError(f"{work}: {place} ran out{size}; {less}") from error


def _ran_out(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_RAN_OUT.search(str(error)))


def _size(number: str, unit: str) -> str:
    return megabytes(int(number)) if unit == "bytes" else f"{number} {unit}"
