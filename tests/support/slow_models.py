"""Every model again: NumPy in float64, one video at a time, frame by frame where it can be."""

from itertools import pairwise

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def unit(x):
    """Norm 1; zero stays zero."""
    return x / max(np.sqrt((x * x).sum()), 1e-6)


def unit_columns(matrix):
    return np.stack([unit(column) for column in matrix.T], 1)


def relu6(x):
    return np.clip(x, 0, 6)


class Weights:
    """A state dict below a prefix."""

    def __init__(self, arrays, prefix=""):
        self.arrays, self.prefix = arrays, prefix

    def __getitem__(self, name):
        return self.arrays[self.prefix + name]

    def __contains__(self, name):
        return any(key.startswith(self.prefix + name) for key in self.arrays)

    def at(self, scope):
        return Weights(self.arrays, f"{self.prefix}{scope}.")

    def norm(self, name, x):
        """Batch norm of one vector by its running statistics."""
        w = self.at(name)
        return (x - w["running_mean"]) / np.sqrt(w["running_var"] + 1e-3) * w["weight"] + w["bias"]

    def linear(self, name, x):
        w = self.at(name)
        product = w["weight"] @ x
        return product + w["bias"] if "bias" in w else product


def slow_tag(config, widths, state, frames):
    """Probabilities of one video of float frames [T, D]."""
    w = Weights({name: tensor.double().numpy() for name, tensor in state.items()})
    frames = [unit(frame) for frame in frames.astype(np.float64)]
    if config.input_norm:
        frames = [w.norm("input_norm.norm", frame) for frame in frames]
    x = POOLINGS[config.family](config, widths, w.at("pooling"), frames)
    if config.hidden:
        x = x @ w["hidden.weight"] + (w["hidden.bias"] if config.activation == "bias" else 0)
        x = x if config.activation == "bias" else w.norm("hidden.norm", x)
        x = relu6(x) if config.activation == "relu6" else x
    return slow_head(config.head, w.at("head"), slow_gate(config.gating, w.at("gate"), x))


def slow_gate(config, w, x, source=None):
    if config.kind == "none":
        return x
    if config.kind == "se":
        return x * sigmoid(np.maximum(w.norm("norm", x @ w["squeeze"]), 0) @ w["excite"])
    matrix = w["weight"].copy()
    if not config.diagonal:
        np.fill_diagonal(matrix, 0)
    gates = (x if source is None else source) @ matrix
    return x * sigmoid(w.norm("norm", gates) if config.norm else gates + w["bias"])


def slow_head(config, w, x):
    if config.kind == "logistic":
        return sigmoid(x @ w["weight"] + w["bias"])
    gates = (x @ w["gates_in"] @ w["gates"]) if config.gate_rank else x @ w["gates"]
    experts, m = sigmoid(x @ w["experts"] + w["bias"]), config.experts
    p = np.zeros(len(experts) // m)
    for c in range(len(p)):
        share = softmax(gates[c * (m + 1) : (c + 1) * (m + 1)])
        p[c] = sum(share[e] * experts[c * m + e] for e in range(m))
    if not config.prob_gating:
        return p
    gating = type("Gating", (), {"kind": "context", "norm": True, "diagonal": config.prob_gating_diagonal})
    return slow_gate(gating, w.at("prob_gate"), p, x if config.prob_gating_input == "hidden" else None)


def pieces(widths, frames):
    """The frames of each feature."""
    starts = np.cumsum([0, *widths])
    return [[frame[a:b] for frame in frames] for a, b in pairwise(starts)]


def assign(w, frame):
    return softmax(w.norm("norm.norm", frame @ w["weight"]))


def slow_netvlad(config, widths, w, frames):
    found = []
    for number, feature in enumerate(pieces(widths, frames)):
        part = w.at(f"parts.{number}")
        vlad = 0
        for x in feature:
            a = assign(part.at("assign"), x)
            vlad = vlad + a * (x[:, None] - (part["centres"] if config.centres == "free" else 0))
        found.append(unit(unit_columns(vlad).reshape(-1)))
    return np.concatenate(found)


def slow_netfv(config, widths, w, frames):
    found = []
    for number, feature in enumerate(pieces(widths, frames)):
        part = w.at(f"parts.{number}")
        centres = part["centres"] if config.centres == "free" else config.coupling * part["assign.weight"]
        variance = part["deviation"] ** 2 + 1e-6
        first = second = 0
        for x in feature:
            a = assign(part.at("assign"), x)
            apart = x[:, None] - centres
            first = first + a * apart / variance
            second = second + a * (apart**2 / variance**2 - 1)
        found += [unit(unit_columns(first).reshape(-1)), unit(second.reshape(-1))]
    return np.concatenate(found)


def slow_dbof(config, widths, w, frames):
    if config.pooling in ("max", "mean"):
        active = [relu6(w.norm("norm.norm", frame @ w["weight"])) for frame in frames]
        return np.max(active, 0) if config.pooling == "max" else np.mean(active, 0)
    found = []
    for number, feature in enumerate(pieces(widths, frames)):
        part = w.at(f"parts.{number}")
        shares = [assign(part.at("assign"), x) for x in feature]
        total, highest = np.sum(shares, 0), unit(np.max(shares, 0))
        if config.pooling == "gated" and number == 0:
            found.append(unit(sigmoid(part.norm("norm", highest @ part["reduce"] @ part["expand"])) * total))
        else:
            found += [unit(total), highest] if config.pooling == "soft+max" else [unit(total)]
    return np.concatenate(found)


def slow_mean(config, widths, w, frames):
    return np.mean(frames, 0)


def lstm(w, end, frames):
    """Outputs and final cell state."""
    h = c = np.zeros(w[f"rnn.weight_hh{end}"].shape[1])
    outputs = []
    for x in frames:
        gates = w[f"rnn.weight_ih{end}"] @ x + w[f"rnn.bias_ih{end}"]
        i, f, g, o = np.split(gates + w[f"rnn.weight_hh{end}"] @ h + w[f"rnn.bias_hh{end}"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return outputs, c


def torch_gru(w, end, frames):
    """Reset after the product."""
    h = np.zeros(w[f"rnn.weight_hh{end}"].shape[1])
    outputs = []
    for x in frames:
        r, z, n = np.split(w[f"rnn.weight_ih{end}"] @ x + w[f"rnn.bias_ih{end}"], 3)
        hr, hz, hn = np.split(w[f"rnn.weight_hh{end}"] @ h + w[f"rnn.bias_hh{end}"], 3)
        z = sigmoid(z + hz)
        h = (1 - z) * np.tanh(n + sigmoid(r + hr) * hn) + z * h
        outputs.append(h)
    return outputs, h


def tensorflow_gru(w, frames):
    """Reset before the product."""
    h = np.zeros(w["candidate"].shape[1])
    outputs = []
    for x in frames:
        r, u = np.split(sigmoid(np.concatenate([x, h]) @ w["gates"] + w["gates_bias"]), 2)
        candidate = np.tanh(np.concatenate([x, r * h]) @ w["candidate"] + w["candidate_bias"])
        h = u * h + (1 - u) * candidate
        outputs.append(h)
    return outputs, h


def slow_rnn(config, widths, w, frames):
    dual = config.paths == "dual"
    found = []
    for number, path in enumerate(pieces(widths, frames) if dual else [frames]):
        if dual:
            before = w.at(f"before.{number}")
            path = [before.norm("input_norm.norm", x) @ before["weight"] for x in path]
            path = [relu6(before.norm("norm.norm", x)) for x in path]
        stack = w.at(f"stacks.{number}")
        if config.cell == "gru":
            forwards, _ = tensorflow_gru(stack.at("first.0"), path)
            backwards, _ = tensorflow_gru(stack.at("first.1"), path[::-1])
        else:
            run = lstm if config.cell == "lstm" else torch_gru
            forwards, _ = run(stack.at("first.0"), "_l0", path)
            backwards, _ = run(stack.at("first.0"), "_l0_reverse", path[::-1])
        outputs = [np.concatenate(pair) for pair in zip(forwards, backwards[::-1], strict=True)]
        second = stack.at("second")
        found.append(tensorflow_gru(second, outputs)[1] if config.cell == "gru" else run(second, "_l0", outputs)[1])
    return np.concatenate(found)


def slow_nextvlad(config, widths, w, frames):
    found = []
    for number, feature in enumerate(pieces(widths, frames)):
        part = w.at(f"parts.{number}")
        clusters = config.clusters if number == 0 else config.clusters // 2
        groups = config.groups if number == 0 else max(1, config.groups // 2)
        vlad = 0
        for x in feature:
            wide = part.linear("expand", x)
            attention = sigmoid(part.linear("attend", wide))
            logits = part.norm("norm.norm", wide @ part["assign"])
            for g in range(groups):
                piece = wide[g * len(wide) // groups : (g + 1) * len(wide) // groups]
                a = softmax(logits[g * clusters : (g + 1) * clusters]) * attention[g]
                vlad = vlad + a * (piece[:, None] - part["centres"])
        found.append(part.norm("out_norm", unit_columns(vlad).reshape(-1)))
    return np.concatenate(found)


def layer_norm(w, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w["weight"] + w["bias"]


def slow_attention(config, widths, w, frames):
    frames = [layer_norm(w.at("frame_norm"), w.linear("project", frame)) for frame in frames]
    keys, values = ([w.linear(name, frame) for frame in frames] for name in ("keys", "values"))
    size = config.width // config.heads
    found = []
    for query in w["queries"]:
        answer = np.zeros(config.width)
        for head in range(config.heads):
            part = slice(head * size, (head + 1) * size)
            share = softmax(np.array([query[part] @ key[part] for key in keys]) / np.sqrt(size))
            answer[part] = sum(s * value[part] for s, value in zip(share, values, strict=True))
        y = w.linear("mix", answer)
        gate, value = np.split(w.linear("expand", layer_norm(w.at("answer_norm"), y)), 2)
        found.append(y + w.linear("reduce", gate * sigmoid(gate) * value))
    return np.concatenate(found)


POOLINGS = {
    "attention": slow_attention,
    "dbof": slow_dbof,
    "mean": slow_mean,
    "netfv": slow_netfv,
    "netvlad": slow_netvlad,
    "nextvlad": slow_nextvlad,
    "rnn": slow_rnn,
}
