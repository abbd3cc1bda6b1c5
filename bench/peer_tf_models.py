"""The authors' graphs under TensorFlow 2, for bench/train.py and bench/infer.py, run by the peers' interpreter.

Written anew from the paper and the published program: the same operations in the same order (gather of random frames,
fused batch norm over all rows, products over [B·T, D], `while` loops over frames with [x, h] in one product, each
gradient clipped by itself, Adam), compiled by `tf.function`. Variables have the names of reeltag's, and
bench/models.py sees that both compute the same loss and probabilities before anything is timed.

A line `check NAME FILE`, `train NAME FILE BATCH FRAMES` or `infer NAME FILE BATCH FRAMES` on stdin is answered by a
line of JSON. FILE is an .npz of weights, and for `check` also of the frames, draws and labels.
"""

import os
from functools import cache

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from measure import serve, timed

WIDTHS, FRAMES, CLASSES = (1024, 128), 300, 3862
EPSILON, DECAY = 1e-3, 0.999
STATISTICS = ("running_mean", "running_var")


class Graph:
    """A tagger of one family, its step of training and its inference."""

    def __init__(self, family, path):
        self.family, self.w = family, {}
        with np.load(path) as arrays:
            self.given = {name: arrays[name] for name in arrays if name.startswith("given.")}
            for name in arrays.files:
                if name.startswith("model."):
                    name = name.removeprefix("model.")
                    trained = not name.endswith(STATISTICS)
                    self.w[name] = tf.Variable(arrays["model." + name], trainable=trained)
        self.trained = {name: v for name, v in self.w.items() if v.trainable}
        self.moments = {name: [tf.Variable(tf.zeros_like(v)) for _ in "mv"] for name, v in self.trained.items()}
        self.steps = tf.Variable(0.0)

    def norm(self, name, x, training):
        """Fused batch norm over the rows of [N, F]."""
        w = {key: self.w[f"{name}.{key}"] for key in ("weight", "bias", *STATISTICS)}
        rows = tf.reshape(x, [-1, 1, 1, x.shape[-1]])
        if training:
            y, mean, var = tf.compat.v1.nn.fused_batch_norm(rows, w["weight"], w["bias"], epsilon=EPSILON)
            for key, value in zip(STATISTICS, (mean, var), strict=True):
                w[key].assign(DECAY * w[key] + (1 - DECAY) * value)
        else:
            moments = [w[key] for key in STATISTICS]
            y, _, _ = tf.compat.v1.nn.fused_batch_norm(
                rows, w["weight"], w["bias"], *moments, epsilon=EPSILON, is_training=False
            )
        return tf.reshape(y, tf.shape(x))

    def assign(self, scope, rows, training):
        """softmax(BN(xW)) as [B, T, K]."""
        a = tf.nn.softmax(self.norm(f"{scope}.assign.norm.norm", rows @ self.w[f"{scope}.assign.weight"], training))
        return tf.reshape(a, [-1, FRAMES, a.shape[-1]])

    def netvlad(self, scope, rows, training):
        a = self.assign(scope, rows, training)
        centres = tf.reduce_sum(a, -2, keepdims=True) * self.w[f"{scope}.centres"][None]
        x = tf.reshape(rows, [-1, FRAMES, rows.shape[-1]])
        v = tf.transpose(tf.transpose(a, [0, 2, 1]) @ x, [0, 2, 1]) - centres
        return tf.nn.l2_normalize(flat(tf.nn.l2_normalize(v, 1)), 1)

    def netfv(self, scope, rows, training):
        a = self.assign(scope, rows, training)
        variance = tf.square(self.w[f"{scope}.deviation"])[None] + 1e-6
        centres = self.w[f"{scope}.centres"][None]
        total = tf.reduce_sum(a, -2, keepdims=True)
        x = tf.reshape(rows, [-1, FRAMES, rows.shape[-1]])
        a = tf.transpose(a, [0, 2, 1])
        x1, x2 = (tf.transpose(a @ each, [0, 2, 1]) for each in (x, tf.square(x)))
        second = total * tf.square(centres) + x2 - 2 * x1 * centres
        second = tf.nn.l2_normalize(flat(second / tf.square(variance) - total), 1)
        first = tf.nn.l2_normalize((x1 - total * centres) / variance, 1)
        return tf.concat([tf.nn.l2_normalize(flat(first), 1), second], 1)

    def dbof(self, scope, rows, training):
        a = self.assign(scope, rows, training)
        total = tf.reduce_sum(a, 1)
        if f"{scope}.reduce" not in self.w:
            return tf.nn.l2_normalize(total, 1)
        highest = tf.nn.l2_normalize(tf.reduce_max(a, 1), 1)
        gates = highest @ self.w[f"{scope}.reduce"] @ self.w[f"{scope}.expand"]
        return tf.nn.l2_normalize(tf.sigmoid(self.norm(f"{scope}.norm", gates, training)) * total, 1)

    def pool(self, x, training):
        """Features pooled apart and side by side."""
        rows = self.norm("input_norm.norm", tf.reshape(x, [-1, sum(WIDTHS)]), training)
        pieces = tf.split(rows, WIDTHS, 1)
        pool = getattr(self, self.family)
        return tf.concat([pool(f"pooling.parts.{n}", piece, training) for n, piece in enumerate(pieces)], 1)

    def rnn(self, x, lengths):
        """A bidirectional layer, then one forwards; the last state, an LSTM's cell."""
        scope = "pooling.stacks.0"
        if self.family == "gru":
            first = [GRU(self.w, f"{scope}.first.{n}") for n in (0, 1)]
            second = GRU(self.w, f"{scope}.second")
        else:
            first = [LSTM(self.w, f"{scope}.first.0.rnn", way) for way in ("", "_reverse")]
            second = LSTM(self.w, f"{scope}.second.rnn", "")
        forth, _ = first[0].run(x, lengths)
        back, _ = first[1].run(tf.reverse_sequence(x, lengths, 1), lengths)
        outputs = tf.concat([forth, tf.reverse_sequence(back, lengths, 1)], 2)
        return second.run(outputs, lengths)[1]

    def tag(self, x, draws, lengths, training):
        """Probabilities of frames [B, T, D]."""
        x = tf.nn.l2_normalize(x, 2)
        if self.family in ("lstm", "gru"):
            vector = self.rnn(x, lengths)
        else:
            vector = self.pool(tf.gather(x, draws, batch_dims=1), training) @ self.w["hidden.weight"]
            if "hidden.bias" in self.w:
                vector += self.w["hidden.bias"]
        if "gate.weight" in self.w:
            vector *= tf.sigmoid(self.norm("gate.norm", vector @ self.w["gate.weight"], training))
        if "head.weight" in self.w:
            return tf.sigmoid(vector @ self.w["head.weight"] + self.w["head.bias"])
        gates = tf.nn.softmax(tf.reshape(vector @ self.w["head.gates"], [-1, 3]))
        experts = tf.sigmoid(tf.reshape(vector @ self.w["head.experts"] + self.w["head.bias"], [-1, 2]))
        p = tf.reshape(tf.reduce_sum(gates[:, :2] * experts, 1), [-1, CLASSES])
        if "head.prob_gate.weight" in self.w:
            p *= tf.sigmoid(self.norm("head.prob_gate.norm", p @ self.w["head.prob_gate.weight"], training))
        return p

    def loss(self, x, draws, lengths, labels):
        p = self.tag(x, draws, lengths, training=True)
        error = -tf.reduce_mean(
            tf.reduce_sum(labels * tf.math.log(p + 1e-5) + (1 - labels) * tf.math.log(1 - p + 1e-5), 1)
        )
        names, l2 = (["head.weight"], 1e-8) if "head.weight" in self.w else (["head.gates", "head.experts"], 1e-6)
        return error + l2 * tf.add_n([tf.nn.l2_loss(self.w[name]) for name in names])

    @tf.function
    def train(self, x, draws, lengths, labels):
        """One step; the loss before it."""
        with tf.GradientTape() as tape:
            loss = self.loss(x, draws, lengths, labels)
        gradients = tape.gradient(loss, self.trained)
        self.steps.assign_add(1.0)
        powers = [beta**self.steps for beta in (0.9, 0.999)]
        for name, gradient in gradients.items():
            handles = [each.handle for each in (self.trained[name], *self.moments[name])]
            clipped = tf.clip_by_norm(gradient, 1.0)
            tf.raw_ops.ResourceApplyAdam(
                var=handles[0],
                m=handles[1],
                v=handles[2],
                beta1_power=powers[0],
                beta2_power=powers[1],
                lr=2e-4,
                beta1=0.9,
                beta2=0.999,
                epsilon=1e-8,
                grad=clipped,
            )
        return loss

    @tf.function
    def infer(self, x, draws, lengths):
        """Probabilities."""
        return self.tag(x, draws, lengths, training=False)


def flat(x):
    return tf.reshape(x, [-1, x.shape[1] * x.shape[2]])


class Cell:
    """A cell of TensorFlow 1, and the loop over the frames."""

    def run(self, x, lengths):
        """Outputs [B, T, H] and the last state, which stays as it is after a video's end."""
        x = tf.transpose(x, [1, 0, 2])
        frames = tf.shape(x)[0]
        outputs = tf.TensorArray(tf.float32, frames, element_shape=[x.shape[1], self.cells])
        state = [tf.zeros([x.shape[1], self.cells])] * self.states

        def step(t, state, outputs):
            new = self.step(x[t], state)
            alive = (t < lengths)[:, None]
            output = tf.where(alive, new[-1], 0.0)
            return t + 1, [tf.where(alive, *pair) for pair in zip(new, state, strict=True)], outputs.write(t, output)

        _, state, outputs = tf.while_loop(lambda t, *_: t < frames, step, [0, state, outputs], parallel_iterations=32)
        return tf.transpose(outputs.stack(), [1, 0, 2]), state[0]


class GRU(Cell):
    states = 1

    def __init__(self, w, scope):
        self.w = [w[f"{scope}.{name}"] for name in ("gates", "gates_bias", "candidate", "candidate_bias")]
        self.cells = self.w[3].shape[0]

    def step(self, x, state):
        (h,) = state
        gates, gates_bias, candidate, candidate_bias = self.w
        r, u = tf.split(tf.sigmoid(tf.concat([x, h], 1) @ gates + gates_bias), 2, 1)
        c = tf.tanh(tf.concat([x, r * h], 1) @ candidate + candidate_bias)
        return [u * h + (1 - u) * c]


class LSTM(Cell):
    states = 2

    def __init__(self, w, scope, way):
        ih, hh, *biases = (w[f"{scope}.{kind}_l0{way}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        self.weights, self.biases, self.cells = (ih, hh), biases, hh.shape[1]

    def run(self, x, lengths):
        # TensorFlow keeps [x, h] → gates as one matrix; torch keeps two, transposed.
        self.kernel, self.bias = tf.transpose(tf.concat(self.weights, 1)), tf.add_n(self.biases)
        return super().run(x, lengths)

    def step(self, x, state):
        c, h = state
        i, f, g, o = tf.split(tf.concat([x, h], 1) @ self.kernel + self.bias, 4, 1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return [c, tf.sigmoid(o) * tf.tanh(c)]


@cache
def graph(family, path):
    return Graph(family, path)


@cache
def random_inputs(batch, frames):
    rng = np.random.default_rng(batch)
    x = tf.constant(rng.uniform(-2, 2, (batch, frames, sum(WIDTHS))).astype(np.float32))
    draws = tf.constant((rng.random((batch, FRAMES)) * frames).astype(np.int32))
    labels = tf.constant((rng.random((batch, CLASSES)) < 3 / CLASSES).astype(np.float32))
    return x, draws, tf.fill([batch], frames), labels


def check(model):
    given = {name: tf.constant(value) for name, value in model.given.items()}
    inputs = [given[f"given.{name}"] for name in ("frames", "draws", "lengths", "labels")]
    probabilities = model.infer(*inputs[:3]).numpy().tolist()
    return {"probabilities": probabilities, "losses": [float(model.train(*inputs)) for _ in range(3)]}


def answer(command, family, path, *sizes):
    model = graph(family, path)
    if command == "check":
        return check(model)
    inputs = random_inputs(*map(int, sizes))
    return timed(lambda: (model.train(*inputs) if command == "train" else model.infer(*inputs[:3])).numpy())


def main():
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    serve(f"TensorFlow {tf.__version__}", answer)


if __name__ == "__main__":
    main()
