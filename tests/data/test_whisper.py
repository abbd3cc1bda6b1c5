"""Whisper's encoder reads what its own feature extractor gives it, and its states are averaged by second."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from clips import tone
from conftest import golden
from reeltag.core.errors import UsageError
from reeltag.data.video.extractors.registry import sound_extractor
from reeltag.data.video.extractors.whisper import log_mel

RNG = np.random.default_rng(0)
WIDTH = 8


def golden_wave():
    """The seven seconds of which the golden file has the log-mel: a chirp, then noise."""
    times = np.arange(7 * 16000) / 16000
    chirp = 0.5 * np.sin(2 * np.pi * (100 * times + 500 * times**2))
    noise = np.random.default_rng(0).normal(0, 0.01, len(times))
    return (chirp * (times < 5) + noise * (times > 2)).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
def test_the_log_mel_is_that_of_transformers(bands):
    """`made_by` in the golden file names the versions that wrote it."""
    samples = np.zeros(480000, np.float32)
    samples[: 7 * 16000] = golden_wave()
    published = golden("whisper_log_mel")
    found = log_mel(torch.from_numpy(samples), bands).numpy()
    assert found.shape == (bands, 3000)
    np.testing.assert_allclose(found[:, published["windows"]], published[f"bands{bands}"], atol=1e-5)


def write_encoder(path, weights, shape=("N", 80, 3000), stride=2, output="last_hidden_state", more=()):
    """A graph of the encoder's shape: one convolution over every other window, weights [width, bands, 3]."""
    nodes = [
        helper.make_node("Conv", ["input_features", "w"], ["x"], pads=[1, 1], strides=[stride]),
        helper.make_node("Transpose", ["x"], [output], perm=[0, 2, 1]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, sides)
        for name, sides in [("input_features", shape), *more]
    ]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", None, len(weights)])]
    graph = helper.make_graph(nodes, "encoder", inputs, outputs, [numpy_helper.from_array(weights, "w")])
    path.parent.mkdir(exist_ok=True, parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def expected_states(seconds, weights, bands):
    """The convolution of the log-mel of up to 30 seconds, written out: [1500, width]."""
    samples = np.zeros(480000, np.float32)
    samples[: seconds.size] = seconds.reshape(-1)
    spectrum = np.pad(log_mel(torch.from_numpy(samples), bands).numpy(), [(0, 0), (1, 1)])
    return np.stack([np.tensordot(weights, spectrum[:, i : i + 3], 2) for i in range(0, 3000, 2)])


@pytest.mark.parametrize(("bands", "query"), [(80, ""), (128, ""), (128, "?bands=128&offset=1&scale=0.5")])
def test_states_are_averaged_by_second_in_windows_of_thirty(tmp_path, bands, query):
    weights = RNG.normal(0, 0.1, (WIDTH, bands, 3)).astype(np.float32)
    shape = ("N", "bands" if query else bands, 3000 if query else "windows")
    write_encoder(tmp_path / "encoder_model.onnx", weights, shape)
    encoder = sound_extractor(f"whisper:{tmp_path}{query}")  # the folder of an export
    assert (encoder.width, encoder.takes, encoder.batch) == (WIDTH, (16000,), 30)
    wave = np.cumsum(np.linspace(0.02, 2, 33 * 16000))
    seconds = (0.3 * np.sin(wave)).astype(np.float32).reshape(33, 16000)
    first, second = (expected_states(part, weights, bands) for part in (seconds[:30], seconds[30:]))
    expected = [
        states[50 * k : 50 * k + 50].mean(0) for states, count in ((first, 30), (second, 3)) for k in range(count)
    ]
    found = encoder.values(seconds)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    if query:
        np.testing.assert_allclose(encoder.scaled(found), (found - 1) * 0.5, atol=1e-6)


def test_where_the_encoder_lies_does_not_matter_and_its_weights_do(tmp_path):
    weights = RNG.normal(0, 0.1, (WIDTH, 80, 3)).astype(np.float32)
    places = (write_encoder(tmp_path / folder / "encoder_model.onnx", weights) for folder in ("a", "b/onnx"))
    named = [*places, tmp_path / "b", f"{tmp_path / 'b'}?bands=80"]
    assert len({sound_extractor(f"whisper:{path}").origin(None).hash for path in named}) == 1
    model = onnx.load(named[0])
    other = tmp_path / "c" / "encoder_model.onnx"
    hashes = set()
    for change in (0, 1):  # the graph is the same, its weights lie beside it
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights + change, "w"))
        other.parent.mkdir(exist_ok=True)
        (other.parent / "encoder_model.onnx_data").unlink(missing_ok=True)
        kept = onnx.ModelProto()
        kept.CopyFrom(model)
        onnx.save(kept, other, save_as_external_data=True, location="encoder_model.onnx_data", size_threshold=0)
        hashes.add(sound_extractor(f"whisper:{other}").origin(None).hash)
    assert len(hashes) == 2


def test_what_is_no_encoder_of_whisper_is_refused(tmp_path):
    weights = RNG.normal(0, 0.1, (WIDTH, 80, 3)).astype(np.float32)
    files = {
        "short": {"shape": ("N", 80, 1000)},
        "decoder": {"more": [("ids", ["N"])]},
        "open": {"shape": ("N", "bands", 3000)},
        "long": {"stride": 1},
    }
    for name, changes in files.items():
        write_encoder(tmp_path / f"{name}.onnx", weights, **changes)
    write_encoder(tmp_path / "whisper.onnx", weights)
    (tmp_path / "empty").mkdir()
    for rest, message in [
        ("short.onnx", r"short.onnx: reads tensor\(float\) \['N', 80, 1000\], not float \[N, bands, 3000\]"),
        ("decoder.onnx", "decoder.onnx: reads .*, tensor"),
        ("open.onnx", r"open.onnx: .*give the number of its mel bands, \?bands=80"),
        ("open.onnx?bands=128", r"open.onnx: cannot be computed for input \[1, 128, 3000\]"),
        ("whisper.onnx?bands=128", r"whisper.onnx: reads 80 mel bands, and \?bands=128 was given; leave it out"),
        ("long.onnx", r"long.onnx: output 'last_hidden_state' is \[1, 3000, 8\], not the 1500 states"),
        ("none.onnx", "none.onnx: cannot be read"),
        ("empty", "empty: holds no encoder_model.onnx"),
        ("whisper.onnx?layer=3", "whisper.onnx: layer: .*keys are .*bands"),
    ]:
        with pytest.raises(UsageError, match=message):
            sound_extractor(f"whisper:{tmp_path}/{rest}")


def test_reference_values_must_hold(tmp_path):
    weights = RNG.normal(0, 0.1, (WIDTH, 80, 3)).astype(np.float32)
    path = write_encoder(tmp_path / "encoder_model.onnx", weights)
    seconds = tone(2).reshape(2, 16000)
    values = sound_extractor(f"whisper:{path}").values(seconds)
    np.savez(tmp_path / "right.npz", inputs=seconds, values=values)
    np.savez(tmp_path / "wrong.npz", inputs=seconds, values=values * 1.1)
    sound_extractor(f"whisper:{path}?reference={tmp_path / 'right.npz'}")
    with pytest.raises(UsageError, match="differs from its reference"):
        sound_extractor(f"whisper:{path}?reference={tmp_path / 'wrong.npz'}")
