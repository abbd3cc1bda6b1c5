"""Out-of-memory errors of torch, NumPy and the system, turned into one message with advice."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from reeltag.core.errors import OutOfMemoryError
from reeltag.core.text import megabytes

# Messages of torch on CPU and GPU, of NumPy and of the C++ runtime.
_RAN_OUT = re.compile(r"can't allocate memory|not enough memory|out of memory|std::bad_alloc")
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(\w+)", re.IGNORECASE)


@contextmanager
def explain_out_of_memory(work: str, less: str) -> Iterator[None]:
    """Turn any out-of-memory error in a block into one `OutOfMemoryError` with advice.

    Args:
        work: description of the work in the block.
        less: advice on how to use less memory.

    Raises:
        OutOfMemoryError: instead of the library's own error.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not _ran_out(error):
            raise
        asked = _ASKED.search(str(error))
        size = f" while allocating {_size(asked[1], asked[2])}" if asked else ""
        place = "a GPU's memory" if "CUDA" in str(error) else "memory"
        raise OutOfMemoryError(f"{work}: {place} ran out{size}; {less}") from error


def _ran_out(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or bool(_RAN_OUT.search(str(error)))


def _size(number: str, unit: str) -> str:
    return megabytes(int(number)) if unit == "bytes" else f"{number} {unit}"
