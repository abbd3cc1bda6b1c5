"""tf.data's side of bench/loader.py, run by the peers' interpreter: float batches as the YouTube-8M starter code makes.

A line `check BATCH PATH` or `pass BATCH PATH…` on stdin is answered by a line of JSON.
"""

import os
import zlib
from functools import cache, partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf

from measure import exhaust, serve, timed

CLASSES, FRAMES, WIDTHS = 3862, 300, {"rgb": 1024, "audio": 128}
CONTEXT = {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)}
LISTS = {name: tf.io.FixedLenSequenceFeature([], tf.string) for name in WIDTHS}


def parse(serialized):
    """Id, multi-hot labels and dequantised frames, padded with zeros."""
    context, lists = tf.io.parse_single_sequence_example(serialized, CONTEXT, LISTS)
    labels = tf.raw_ops.SparseToDense(
        sparse_indices=context["labels"].values,
        output_shape=[CLASSES],
        sparse_values=True,
        default_value=False,
        validate_indices=False,
    )
    features = []
    for name, width in WIDTHS.items():
        codes = tf.reshape(tf.cast(tf.io.decode_raw(lists[name], tf.uint8), tf.float32), [-1, width])
        values = codes * (4 / 255) + (4 / 512 - 2)
        features.append(tf.pad(values[:FRAMES], [[0, tf.maximum(0, FRAMES - tf.shape(values)[0])], [0, 0]]))
    return context["id"], labels, tf.ensure_shape(tf.concat(features, 1), [FRAMES, sum(WIDTHS.values())])


@cache  # so that only the first pass traces
def pipeline(paths, batch, shuffle):
    records = tf.data.TFRecordDataset(paths)
    options = tf.data.Options()
    options.threading.private_threadpool_size = options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    # Records are shuffled while they are strings, which costs tf.data the least.
    return (records.shuffle(100_000) if shuffle else records).map(parse).batch(batch).with_options(options)


def contents(dataset):
    return [
        [name.numpy().decode(), tf.where(labels)[:, 0].numpy().tolist(), zlib.crc32(frames.numpy())]
        for name, labels, frames in dataset.unbatch()
    ]


def answer(command, batch, *paths):
    dataset = pipeline(paths, int(batch), command == "pass")
    return contents(dataset) if command == "check" else timed(partial(exhaust, dataset))


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    serve(f"TensorFlow {tf.__version__}", answer)


if __name__ == "__main__":
    main()
