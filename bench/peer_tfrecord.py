"""The PyPI package tfrecord's side of bench/reader.py, run by the peers' interpreter; asked as peer_tf_reader.py is.

It checks no CRC and reads by the protobuf library.
"""

import sys
import zlib
from importlib.metadata import version

import numpy as np
from tfrecord.reader import sequence_loader

from measure import exhaust, serve, timed

CONTEXT, LISTS = {"id": "byte", "labels": "int"}, {"rgb": "byte", "audio": "byte"}


def videos():
    """Id, labels and the frames of each feature, [T, D_f] uint8."""
    for path in sys.argv[1:]:
        for context, lists in sequence_loader(path, None, CONTEXT, LISTS):
            features = [np.frombuffer(b"".join(lists[name]), np.uint8).reshape(len(lists[name]), -1) for name in LISTS]
            yield context["id"], context["labels"], features


def contents():
    return [
        [name.decode(), labels.tolist(), *(zlib.crc32(frames) for frames in features)]
        for name, labels, features in videos()
    ]


def main():
    serve(
        f"tfrecord {version('tfrecord')}",
        lambda command, _: contents() if command == "check" else timed(lambda: exhaust(videos())),
    )


if __name__ == "__main__":
    main()
