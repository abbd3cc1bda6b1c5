"""Decoder processes that end at marked files; they stand in for those that a file makes FFmpeg crash."""

import os
import signal

from reeltag.data.video.decode import process


def main():
    """Serve as a decoder process does, but crash at crash.mp4, be killed at kill.mp4 and exit at 5.mp4.

    From nonsense.mp4 on, answer nothing that can be read.
    """
    ends = {"crash.mp4": signal.SIGSEGV, "kill.mp4": signal.SIGKILL}
    real, answer = process.probe, process._answer

    def probe(path):
        if path.name in ends:
            os.kill(os.getpid(), ends[path.name])
        if path.name == "5.mp4":
            os._exit(3)
        return real(path)

    def answer_or_not(connection, call, path, *arguments):
        if path.name == "nonsense.mp4":
            process._answer = lambda connection, *_: connection.send_bytes(b'{"answer": "nonsense"}')
            process._answer(connection)
        else:
            answer(connection, call, path, *arguments)

    process.probe, process._answer = probe, answer_or_not
    process.main()
