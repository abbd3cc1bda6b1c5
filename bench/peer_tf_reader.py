"""tf.data's side of bench/reader.py, run by the peers' interpreter.

A line `check BATCH` or `pass BATCH` on stdin is answered by a line of JSON, so TensorFlow's start is
never measured. The pipeline is the YouTube-8M starter code's without its dequantisation and padding;
BATCH 1 parses record by record, as that code does.
"""

import os
import sys
import zlib
from functools import cache, partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from measure import exhaust, serve, timed

CONTEXT = {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.RaggedFeature(tf.int64)}
LISTS = {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in ("rgb", "audio")}


def parse(serialized):
    """One record, or a batch of them."""
    many = serialized.shape.rank > 0
    read = tf.io.parse_sequence_example if many else tf.io.parse_single_sequence_example
    context, lists = read(serialized, CONTEXT, LISTS)[:2]
    return context["id"], context["labels"], *(tf.io.decode_raw(lists[name], tf.uint8) for name in LISTS)


@cache  # so that a pass traces nothing
def pipeline(batch):
    records = tf.data.TFRecordDataset(sys.argv[1:])
    options = tf.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    # Nothing here can be tuned, and the end of a pass would wait for the tuner's next turn.
    options.autotune.enabled = False
    return (records.batch(batch) if batch > 1 else records).map(parse).with_options(options)


def contents(dataset, batch):
    return [
        [name.numpy().decode(), labels.numpy().tolist(), *(zlib.crc32(frames.numpy()) for frames in features)]
        for name, labels, *features in (dataset.unbatch() if batch > 1 else dataset)
    ]


def answer(command, batch):
    dataset = pipeline(int(batch))
    return contents(dataset, int(batch)) if command == "check" else timed(partial(exhaust, dataset))


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    serve(f"TensorFlow {tf.__version__}", answer)


if __name__ == "__main__":
    main()
