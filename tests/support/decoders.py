"""Decoder processes that outlive a command, since starting one takes longer than most tests' clips."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from reeltag.data.video import engine
from reeltag.data.video.decode import DecoderProcess, process


@contextmanager
def kept_decoders() -> Iterator[None]:
    """Let commands that this process runs in a block share their decoder processes."""
    started, spare = list[DecoderProcess](), list[DecoderProcess]()

    class Kept(DecoderProcess):
        def close(self) -> None:
            spare.append(self)

    def borrow() -> DecoderProcess:
        if not spare:
            started.append(Kept())
            spare.append(started[-1])
        return spare.pop()

    with mock.patch.object(engine, "DecoderProcess", borrow):
        yield
    for decoder in started:
        DecoderProcess.close(decoder)


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start new decoder processes, which end at marked files; see crashing.py."""
    monkeypatch.setattr(engine, "DecoderProcess", process.DecoderProcess)
    monkeypatch.setattr(process, "_MODULE", "crashing")
