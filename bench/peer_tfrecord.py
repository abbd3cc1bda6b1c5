"""The PyPI package tfrecord's side of bench/reader.py, run by the peers' interpreter; asked as peer_tf_reader.py is.

It checks no CRC and reads by the protobuf library.
"""

import json
import sys
import time
import zlib
from importlib.metadata import version

import numpy as np
from tfrecord.reader import sequence_loader

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


def timed():
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in videos():
        pass
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def main():
    print(json.dumps(f"tfrecord {version('tfrecord')}"), flush=True)
    for line in sys.stdin:
        print(json.dumps(contents() if line.split()[0] == "check" else timed()), flush=True)


if __name__ == "__main__":
    main()
