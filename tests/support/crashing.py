"""Decoder processes that end, hang or fill up at marked files; they stand in for those that FFmpeg would crash."""

import os
import signal

from reeltag.data.video.decode import process

_decode = process._work


def segfault(*arguments):
    """Serve as a decoder process does, but crash at 3.mp4."""
    _serve({"3.mp4": lambda: os.kill(os.getpid(), signal.SIGSEGV)}, arguments)


def leave(*arguments):
    """Serve as a decoder process does, but exit at 5.mp4."""
    _serve({"5.mp4": lambda: os._exit(3)}, arguments)


def _serve(faults, arguments):
    real = process.probe

    def probe(path):
        faults.get(path.name, lambda: None)()
        return real(path)

    process.probe = probe
    _decode(*arguments)
