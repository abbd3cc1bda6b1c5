"""Extractors, the PCA and the 8 bits, each against a formula or another program."""

import math
import re

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from clips import tone
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.data.pca import Moments, Projection, load_projections, save_projections, to_codes
from reeltag.data.video.extractors import efficientnet, mel
from reeltag.data.video.extractors.registry import image_extractor, sound_extractor
from reeltag.data.video.features import Pipeline
from reeltag.models.layers import dequantize

RNG = np.random.default_rng(0)


# --- sound ----------------------------------------------------------------------------------------


def brute_log_mel(second):
    """The documented formula with its sums written out: no FFT."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    angles = 2 * np.pi * np.outer(np.arange(1024), np.arange(1025)) / 2048
    mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
    peaks = np.linspace(mel(60), mel(7600), 130)
    bands = np.zeros((1025, 128))
    for band in range(128):
        for place in range(1, 1025):
            m = mel(place * 16000 / 2048)
            low, peak, high = peaks[band : band + 3]
            bands[place, band] = max(0.0, min((m - low) / (peak - low), (high - m) / (high - peak)))
    x = np.stack([second[begin : begin + 1024] * window for begin in range(0, 16000 - 1024 + 1, 160)])
    power = (x @ np.cos(angles)) ** 2 + (x @ np.sin(angles)) ** 2
    return np.log(power / window.sum() ** 2 @ bands + 1e-6).mean(0)


def test_log_mel_is_its_formula():
    seconds = np.stack([tone(1), RNG.normal(0, 0.1, 16000).astype(np.float32), np.zeros(16000, np.float32)])
    found = mel.log_mel(torch.from_numpy(seconds)).numpy()
    np.testing.assert_allclose(found, [brute_log_mel(second.astype(float)) for second in seconds], atol=2e-4)


def test_a_tone_is_loudest_in_its_band():
    extractor = sound_extractor("logmel")
    peaks = np.linspace(1127 * math.log(1 + 60 / 700), 1127 * math.log(1 + 7600 / 700), 130)[1:-1]
    for hertz in (100, 440, 1000, 4000, 7000):
        values = extractor.values(tone(1, hertz)[None])[0]
        nearest = np.abs(peaks - 1127 * math.log(1 + hertz / 700)).argmin()
        assert abs(int(values.argmax()) - int(nearest)) <= 1
    assert np.abs(extractor.scaled(np.array([math.log(1e-6), 0.0], np.float32))).max() <= 2


def test_vggish_patches_are_those_of_its_published_settings():
    second = RNG.normal(0, 0.1, 16000).astype(np.float32)
    found = mel.vggish_patches(torch.from_numpy(second[None])).numpy()
    assert found.shape == (1, 96, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    edges = 700 * (np.exp(np.linspace(np.log1p(125 / 700), np.log1p(7500 / 700), 66)) - 1)
    for frame in (0, 50, 95):
        spectrum = np.abs(np.fft.rfft(second[160 * frame : 160 * frame + 400] * window, 512))
        for band in (0, 30, 63):
            scale = lambda hertz: np.log1p(np.asarray(hertz) / 700)  # noqa: E731
            bins = scale(np.arange(257) * 16000 / 512)
            low, peak, high = scale(edges[band : band + 3])
            weights = np.clip(np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)), 0, None)
            assert found[0, frame, band] == pytest.approx(np.log(spectrum @ weights + 0.01), abs=1e-3)


# --- pictures -------------------------------------------------------------------------------------


def same_padded(x, weight, stride, groups=1):
    """TensorFlow's SAME, from its definition: as many outputs as strides begin in the input, zeros shared out."""
    kernel, side = weight.shape[-1], x.shape[-1]
    outputs = math.ceil(side / stride)
    total = max((outputs - 1) * stride + kernel - side, 0)
    x = torch.nn.functional.pad(x, (total // 2, total - total // 2) * 2)
    return torch.nn.functional.conv2d(x, weight, stride=stride, groups=groups)


def published_network(state, pictures):
    """EfficientNet-Lite0 as its paper and TensorFlow's program have it: no folding, in float64."""
    state = {name: value.double() if value.is_floating_point() else value for name, value in state.items()}
    norm = lambda x, name: torch.nn.functional.batch_norm(  # noqa: E731
        x,
        *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")),
        eps=1e-3,
    )
    relu6 = torch.nn.functional.relu6
    x = (pictures.permute(0, 3, 1, 2).double() - 127) / 128
    x = relu6(norm(same_padded(x, state["_conv_stem.weight"], 2), "_bn0"))
    strides = {1: 2, 3: 2, 5: 2, 11: 2}  # by the number of the block
    for number in range(16):
        name, before = f"_blocks.{number}.", x
        if f"{name}_expand_conv.weight" in state:
            x = relu6(norm(same_padded(x, state[f"{name}_expand_conv.weight"], 1), f"{name}_bn0"))
        stride = strides.get(number, 1)
        depthwise = state[f"{name}_depthwise_conv.weight"]
        x = relu6(norm(same_padded(x, depthwise, stride, groups=len(depthwise)), f"{name}_bn1"))
        x = norm(same_padded(x, state[f"{name}_project_conv.weight"], 1), f"{name}_bn2")
        x = x + before if x.shape == before.shape else x
    return relu6(norm(same_padded(x, state["_conv_head.weight"], 1), "_bn1")).mean((2, 3))


def test_efficientnet_is_the_published_network():
    pictures = torch.from_numpy(RNG.integers(0, 256, (2, 224, 224, 3), np.uint8))
    state = torch.load(efficientnet.weights_file(), weights_only=True)
    with torch.no_grad():
        expected = published_network(state, pictures)
    found = image_extractor("efficientnet-lite0").values(pictures.numpy())
    assert found.shape == (2, 1280)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_efficientnet_does_not_depend_on_the_others_of_a_batch():
    pictures = RNG.integers(0, 256, (3, 224, 224, 3), np.uint8)
    values = image_extractor("efficientnet-lite0").values
    np.testing.assert_allclose(
        values(pictures), np.concatenate([values(picture[None]) for picture in pictures]), atol=1e-5
    )


def test_other_weights_are_refused_before_they_are_read(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(b"anything")
    monkeypatch.setattr(efficientnet, "weights_file", lambda: tmp_path / "w.pth")
    with pytest.raises(UsageError, match="are not the weights of efficientnet-lite0"):
        image_extractor("efficientnet-lite0")


def model(path, nodes, inputs, outputs):
    """Write an ONNX graph; inputs and outputs are name, type and shape."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def mean_model(path, shape, kind=TensorProto.FLOAT, axes=(2, 3)):
    """Means over the picture, with the maximum as a second output."""
    cast = helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT)
    mean = helper.make_node("ReduceMean", ["f"], ["mean"], axes=list(axes), keepdims=0)
    most = helper.make_node("ReduceMax", ["f"], ["most"], axes=list(axes), keepdims=1)
    outputs = [(name, TensorProto.FLOAT, None) for name in ("mean", "most")]
    return model(path, [cast, mean, most], [("x", kind, shape)], outputs)


PICTURES = RNG.integers(0, 256, (3, 8, 8, 3), np.uint8)


@pytest.mark.parametrize("shape", [["N", 3, 8, 8], [1, 3, 8, 8], ["N", 3, "H", "W"]])
def test_an_onnx_image_model_with_channels_first(tmp_path, shape):
    path = mean_model(tmp_path / "m.onnx", shape)
    extractor = image_extractor(f"onnx:{path}?size=8&mean=0.5,0.25,0&std=2")
    expected = (PICTURES.reshape(3, -1, 3).mean(1) / 255 - [0.5, 0.25, 0]) / 2
    assert (extractor.width, extractor.takes) == (3, (8, 8))
    np.testing.assert_allclose(extractor.values(PICTURES), expected, atol=1e-5)


def test_an_onnx_image_model_with_channels_last_that_reads_bytes(tmp_path):
    path = mean_model(tmp_path / "m.onnx", ["N", 8, 8, 3], TensorProto.UINT8, axes=(1, 2))
    extractor = image_extractor(f"onnx:{path}?output=most&scale=0.5&offset=10")
    np.testing.assert_array_equal(extractor.values(PICTURES), PICTURES.max((1, 2)))
    np.testing.assert_array_equal(extractor.scaled(np.array([12], np.float32)), [1])


def test_where_a_model_lies_does_not_matter_and_its_settings_do(tmp_path):
    (tmp_path / "b").mkdir()
    a = mean_model(tmp_path / "m.onnx", ["N", 3, 8, 8])
    b = mean_model(tmp_path / "b" / "n.onnx", ["N", 3, 8, 8])
    one, two, three = (image_extractor(f"onnx:{path}") for path in (a, b, f"{a}?mean=0.5"))
    assert one.identity == two.identity != three.identity
    assert one.origin(None).hash == two.origin(None).hash != three.origin(None).hash
    assert image_extractor(f"onnx:{a}?size=8&output=mean").identity == one.identity  # what it is without them
    dynamic = mean_model(tmp_path / "open.onnx", ["N", 3, "H", "W"])
    assert image_extractor(f"onnx:{dynamic}?size=8").identity != image_extractor(f"onnx:{dynamic}?size=9").identity


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onnx", "names no file"),
        ("onnx:{}/none.onnx", "cannot be read"),
        ("onnx:{}/text.onnx", "cannot open it"),
        ("onnx:{}/m.onnx?size=9", r"made for pictures of 8 x 8, not of 9 x 9; leave out \?size=$"),
        ("onnx:{}/half.onnx?size=9", r"made for pictures of 8 x W, not of 9 x 9; give \?size=8$"),
        ("inception:{}/m.onnx", r"made for pictures of 8 x 8, not of 299 x 299; export it again"),
        ("onnx:{}/m.onnx?std=0", r"std\.0: must be more than 0, not '0'"),
        ("onnx:{}/m.onnx?std=1,-1,1", r"std\.1: must be more than 0, not '-1'; keys are"),
        ("onnx:{}/open.onnx", r"give the side with \?size="),
        ("onnx:{}/m.onnx?colour=1", "colour: unknown key; keys are"),
        ("onnx:{}/m.onnx?std=a", r"std\.0: must be a number, not 'a'"),
        ("onnx:{}/m.onnx?output=z", "no output 'z', but mean, most"),
        ("onnx:{}/bytes.onnx?std=2", "reads uint8 pixels as they are; leave out std"),
        ("onnx:{}/vector.onnx", r"not float or uint8 \[N, 3, H, W\]"),
        ("inception:{}/open.onnx", "gives 3 values; Inception-v3's pool has 2048"),
        ("efficientnet-lite0:x", "reads no file, but 'x' was given"),
        ("resnet", "there is no 'resnet'; use efficientnet-lite0, onnx, inception"),
    ],
)
def test_what_is_wrong_with_an_image_model_is_said(tmp_path, name, message):
    mean_model(tmp_path / "m.onnx", ["N", 3, 8, 8])
    mean_model(tmp_path / "open.onnx", ["N", 3, "H", "W"])
    mean_model(tmp_path / "half.onnx", ["N", 3, 8, "W"])
    mean_model(tmp_path / "bytes.onnx", ["N", 3, 8, 8], TensorProto.UINT8)
    mean_model(tmp_path / "vector.onnx", ["N", 5], axes=(1,))
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(UsageError, match=message):
        image_extractor(name.format(tmp_path))


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        (
            sound_extractor,
            "/a/yamnet.tflite",
            "--audio: '/a/yamnet.tflite' is a file; name its encoder, such as yamnet:/a",
        ),
        (sound_extractor, "./VGGish.onnx", "such as vggish:./VGGish.onnx,PCA"),
        (image_extractor, ".", "'.' is a folder; give NAME:PATH, with one of onnx, inception"),
        (image_extractor, "", "there is no ''; use efficientnet-lite0"),
        (sound_extractor, "a.tflite", "give NAME:PATH, with one of onnx, whisper, yamnet, vggish"),
        (
            image_extractor,
            "big.onnx?size=9",
            "--image: 'big.onnx' is a file; name its encoder, such as onnx:big.onnx?size=9",
        ),
        (image_extractor, "a.tflite", "such as tflite:a.tflite"),
        (image_extractor, "exports/dinov2-small.onnx", "such as dinov2:exports/dinov2-small.onnx"),
        (image_extractor, "yamnet:a.tflite", "--image: 'yamnet' reads sound; give it to --audio"),
        (sound_extractor, "clip:a", "--audio: 'clip' reads pictures; see --image"),
        (sound_extractor, "yamnt:a.tflite", "--audio: there is no 'yamnt'; did you mean 'yamnet'?"),
        (image_extractor, "dinov:a", "did you mean 'dinov2'?"),
    ],
)
def test_a_wrong_name_of_an_encoder_is_answered_with_the_right_one(option, name, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        option(name)


def nan_model(path, shape):
    """Zero divided by zero for each input."""
    nodes = [helper.make_node(*each) for each in (("Sub", ["x", "x"], ["zero"]), ("Div", ["zero", "zero"], ["nan"]))]
    flat = helper.make_node("Flatten", ["nan"], ["y"])
    return model(path, [*nodes, flat], [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, None)])


def test_networks_that_give_nan_are_refused_before_any_video(tmp_path):
    seen, heard = nan_model(tmp_path / "v.onnx", ["N", 3, 8, 8]), nan_model(tmp_path / "a.onnx", ["N", 8000])
    with pytest.raises(UsageError, match=r"v\.onnx: gives NaN or infinite values for a plain grey picture"):
        image_extractor(f"onnx:{seen}")
    with pytest.raises(UsageError, match=r"a\.onnx: gives NaN or infinite values for a tone"):
        sound_extractor(f"onnx:{heard}?rate=8000")


def stand_in_for_inception(path):
    """Write a graph of Inception-v3's form: 299 x 299 pictures to 2048 values, here weighted means of the picture."""
    weights = RNG.normal(size=(3, 2048)).astype(np.float32)
    mean = helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2], keepdims=0)
    product = helper.make_node("MatMul", ["mean", "w"], ["pool_3"])
    initial = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())
    model(path, [mean, product], [("x", TensorProto.FLOAT, ["N", 299, 299, 3])], [("pool_3", TensorProto.FLOAT, None)])
    loaded = onnx.load(path)
    loaded.graph.initializer.append(initial)
    onnx.save(loaded, path)
    return weights


def test_the_official_pair_with_its_published_pca(tmp_path):
    weights = stand_in_for_inception(tmp_path / "inception.onnx")
    mean, variances = RNG.normal(size=(2048, 1)), RNG.uniform(0.01, 4, (2048, 1))
    vectors = np.eye(2048)[RNG.permutation(2048)] * RNG.choice([-1, 1], 2048)
    for name, array in {"mean": mean, "eigenvals": variances, "eigenvecs": vectors}.items():
        np.save(tmp_path / f"{name}.npy", array)
    image = image_extractor(f"inception:{tmp_path}/inception.onnx")
    pipeline = Pipeline(image, None, load_projections(tmp_path, {"rgb": image.identity}))
    pictures = RNG.integers(0, 256, (2, 299, 299, 3), np.uint8)
    values = image.values(pictures)
    raw = ((pictures.astype(float) - 128) / 128).mean((1, 2)) @ weights
    np.testing.assert_allclose(values, raw, atol=1e-4)
    # YouTube-8M's feature extractor, apply_pca.
    expected = (raw - mean[:, 0]).dot(vectors.T[:, :1024]) / np.sqrt(variances[:1024, 0] + 1e-4)
    np.testing.assert_allclose(pipeline.projections["rgb"](values), expected, atol=1e-2)
    assert pipeline.features[0].width == 1024


def test_reference_vectors_must_hold(tmp_path):
    path, reference = mean_model(tmp_path / "m.onnx", ["N", 3, 8, 8]), tmp_path / "reference.npz"
    values = PICTURES.reshape(3, -1, 3).mean(1) / 255
    np.savez(reference, inputs=PICTURES, values=values)
    image_extractor(f"onnx:{path}?reference={reference}")
    np.savez(reference, inputs=PICTURES, values=values * 1.01)
    with pytest.raises(UsageError, match="differs from its reference by"):
        image_extractor(f"onnx:{path}?reference={reference}")
    np.savez(reference, inputs=PICTURES)
    with pytest.raises(UsageError, match=r"no \.npz file with"):
        image_extractor(f"onnx:{path}?reference={reference}")


def test_onnx_sound_models_of_each_form(tmp_path):
    seconds = RNG.normal(0, 0.1, (2, 16000)).astype(np.float32)
    split = helper.make_node("Reshape", ["x", "shape"], ["rows"])
    rows = model(
        tmp_path / "rows.onnx", [split], [("x", TensorProto.FLOAT, ["samples"])], [("rows", TensorProto.FLOAT, None)]
    )
    loaded = onnx.load(rows)
    loaded.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [4, 4000]))
    onnx.save(loaded, rows)
    np.testing.assert_allclose(
        sound_extractor(f"onnx:{rows}").values(seconds), seconds.reshape(2, 4, 4000).mean(1), atol=1e-6
    )
    one = helper.make_node("Identity", ["x"], ["y"])
    batch = model(tmp_path / "b.onnx", [one], [("x", TensorProto.FLOAT, ["N", 8000])], [("y", TensorProto.FLOAT, None)])
    np.testing.assert_array_equal(
        sound_extractor(f"onnx:{batch}?rate=8000").values(seconds[:, :8000]), seconds[:, :8000]
    )
    flat = helper.make_node("Flatten", ["x"], ["y"])
    patches = model(
        tmp_path / "p.onnx", [flat], [("x", TensorProto.FLOAT, ["N", 1, 96, 64])], [("y", TensorProto.FLOAT, None)]
    )
    expected = mel.vggish_patches(torch.from_numpy(seconds)).reshape(2, -1)
    np.testing.assert_array_equal(sound_extractor(f"onnx:{patches}").values(seconds), expected)
    wrong = model(
        tmp_path / "w.onnx", [flat], [("x", TensorProto.FLOAT, ["N", 10, 10])], [("y", TensorProto.FLOAT, None)]
    )
    with pytest.raises(UsageError, match="VGGish's patches"):
        sound_extractor(f"onnx:{wrong}")


# --- PCA and codes --------------------------------------------------------------------------------


def test_codes_are_the_inverse_of_what_models_read():
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(to_codes(dequantize(codes).numpy()), codes.numpy())
    values = np.linspace(-2.5, 2.5, 1001, dtype=np.float32)
    back = dequantize(torch.from_numpy(to_codes(values))).numpy()
    assert np.abs(back - values.clip(-2, 2)).max() <= 2 / 255 + 1e-3  # half a step, and the middle's 1/512


def correlated(frames, width):
    return (RNG.normal(size=(frames, width)) * np.arange(width, 0, -1)) @ RNG.normal(size=(width, width)) + 100


def test_the_pca_is_that_of_all_frames_at_once():
    frames = correlated(500, 12).astype(np.float32)
    moments = Moments(12)
    for begin in (0, 3, 150, 499):
        moments.add(frames[begin : {0: 3, 3: 150, 150: 499, 499: 500}[begin]])
    projection = moments.projection(5)
    centred = frames.astype(np.float64) - frames.astype(np.float64).mean(0)
    _, singular, vectors = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign((projection.components * vectors[:5].T).sum(0))
    np.testing.assert_allclose(projection.components * signs, vectors[:5].T, atol=1e-4)
    variances = singular[:5] ** 2 / 500
    np.testing.assert_allclose(projection.scale, 1 / np.sqrt(variances + 1e-4 * centred.var(0).mean()), rtol=1e-4)
    whitened = projection(frames)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(5), atol=2e-3)
    largest = projection.components[np.abs(projection.components).argmax(0), range(5)]
    assert (largest > 0).all()


def test_a_pca_needs_frames_that_vary():
    moments = Moments(12)
    moments.add(correlated(5, 12).astype(np.float32))
    assert moments.projection(4).widths == (12, 4)
    with pytest.raises(UsageError, match="5 frames of 12 values allow at most 4"):
        moments.projection(5)
    same = Moments(3)
    same.add(np.ones((9, 3), np.float32))
    with pytest.raises(UsageError, match="all frames are the same"):
        same.projection(1)


def test_a_pca_file_is_for_its_extractor(tmp_path):
    projection = Projection(*(RNG.normal(size=shape).astype(np.float32) for shape in ((6,), (6, 2), (2,))))
    path = tmp_path / "pca.safetensors"
    save_projections(path, {"rgb": projection}, {"rgb": {"name": "a", "weights": "1"}})
    (loaded,) = load_projections(path, {"rgb": {"name": "a", "weights": "1"}, "audio": {"name": "b"}}).values()
    np.testing.assert_array_equal(loaded.components, projection.components)
    assert loaded.hash == projection.hash
    with pytest.raises(UsageError, match=re.escape("PCA of 'rgb' is for the values of 'a' with other weights")):
        load_projections(path, {"rgb": {"name": "a", "weights": "2"}})
    with pytest.raises(UsageError, match=r"mean\.npy"):
        load_projections(tmp_path, {})
    (tmp_path / "recipe.toml").write_text("seed = 1\n")
    for name in ("nothere", "recipe.toml"):
        with pytest.raises(ArtifactError, match=r"the pca\.safetensors that `reeltag extract --fit-pca` wrote$"):
            load_projections(tmp_path / name, {})
