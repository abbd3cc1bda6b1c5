"""Read a source of a test, or get its error."""

from pathlib import Path

import pytest

from reeltag.core.errors import ReeltagError
from reeltag.data.sources.source import open_source, read_videos


def read(path: Path, *features):
    return list(read_videos(open_source(path, features)))


def error_of(path: Path, *features) -> str:
    """Return the message, which is one line and names a place in the path."""
    with pytest.raises(ReeltagError) as caught:
        read(path, *features)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))
