"""YAMNet, VGGish and TFLite networks, against reference values, other programs and formulas written out."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from clips import tone, write_clip
from conftest import DATA, golden
from reeltag.cli.main import main
from reeltag.core.errors import UsageError
from reeltag.data.video.extractors import mel
from reeltag.data.video.extractors.registry import image_extractor, sound_extractor
from reeltag.data.video.extractors.tflite import TfliteNetwork
from reeltag.data.video.features import Pipeline
from tflite_files import write_sum_network

RNG = np.random.default_rng(3)
FILES = DATA / "extractors"
YAMNET, MOBILENET = FILES / "yamnet_spectra_in.tflite", FILES / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
SECONDS = np.stack([tone(1), tone(1, 3000, loudness=0.1), RNG.normal(0, 0.1, 16000).astype(np.float32)])


@pytest.fixture
def files():
    """The folder of real files, with LiteRT to run them."""
    if not FILES.is_dir():
        pytest.skip(f"no files of encoders in {FILES}")
    pytest.importorskip("ai_edge_litert")
    return FILES


def yamnet_reference():
    """The sounds, filled up to a second, and what the real YAMNet makes of them."""
    if not FILES.is_dir():
        pytest.skip(f"no reference values in {FILES}")
    with np.load(FILES / "yamnet_reference.npz") as file:
        return np.pad(file["sounds"], ((0, 0), (0, 400))), file["log_mel"], file["embedding"], file["scores"]


def record_codes(extractor, values):
    """The codes of a record."""
    pipeline = Pipeline(None, extractor)
    return pipeline.stored(pipeline.mapped({"audio": values}))[0]


# --- log-mel patches --------------------------------------------------------------------------------


def test_yamnet_patches_are_those_of_the_reference():
    sounds, log_mel, _, _ = yamnet_reference()
    np.testing.assert_allclose(mel.yamnet_patches(torch.from_numpy(sounds)).numpy(), log_mel, atol=1e-4)


def chirp():
    t = np.arange(16000) / 16000
    return 0.4 * np.sin(2 * np.pi * (100 * t + 1500 * t * t)) + 0.05 * np.sin(2 * np.pi * 3000 * t) * (t > 0.5)


def clip():
    """16,000 samples of a real clip, at whatever rate they are."""
    path = DATA / "videos" / "pancake.mkv"
    if not path.exists():
        pytest.skip(f"no clip {path}")
    with av.open(str(path)) as container:
        pieces = [frame.to_ndarray().mean(0) for frame in container.decode(audio=0)]
    return np.concatenate(pieces)[64000:80000]


@pytest.mark.parametrize("sound", [chirp, clip])
def test_vggish_patches_are_those_of_torchvggish(sound):
    # torchvggish 0.2, whose front end is Google's program: vggish_input.waveform_to_examples(sound, 16000).
    seconds = torch.from_numpy(sound().astype(np.float32)[None])
    found = mel.vggish_patches(seconds)[0].numpy()
    np.testing.assert_allclose(found, golden("torchvggish_log_mel")[sound.__name__], atol=1e-4)


@pytest.mark.parametrize("patches", [mel.yamnet_patches, mel.vggish_patches])
def test_patches_end_before_the_second_does(patches):
    sound = torch.from_numpy(SECONDS)
    other = sound.clone()
    other[:, 15600:] = 1
    assert torch.equal(patches(sound), patches(other))
    other[:, 15500:] = 1
    assert not torch.equal(patches(sound), patches(other))


# --- YAMNet -----------------------------------------------------------------------------------------


def test_the_real_yamnet_gives_its_reference(files):
    sounds, _, embedding, scores = yamnet_reference()
    extractor = sound_extractor(f"yamnet:{YAMNET}")
    assert (extractor.name, extractor.width, extractor.takes) == ("yamnet:yamnet_spectra_in.tflite", 1024, (16000,))
    classifier = TfliteNetwork(YAMNET, width=521)
    patches = mel.yamnet_patches(torch.from_numpy(sounds)).numpy()
    found = extractor.values(sounds)
    for number in range(4):
        assert np.corrcoef(found[number], embedding[number])[0, 1] >= 0.998
        classes = classifier(patches[number : number + 1])
        assert np.corrcoef(classes, scores[number])[0, 1] >= 0.998
        assert classes.argsort(kind="stable")[-2:].tolist() == scores[number].argsort(kind="stable")[-2:].tolist()


def test_threads_do_not_disturb_each_other(files):
    extractor = sound_extractor(f"yamnet:{YAMNET}")
    sounds = [tone(1, hertz)[None] for hertz in range(200, 3400, 200)]
    expected = [extractor.values(sound) for sound in sounds]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(extractor.values, sounds)), expected)


def test_zeros_of_yamnet_are_no_end_of_the_range(files):
    sounds, *_ = yamnet_reference()
    extractor = sound_extractor(f"yamnet:{YAMNET}")
    values = extractor.values(np.concatenate([sounds, SECONDS]))
    codes = record_codes(extractor, values)
    assert set(codes[values == 0]) == {4}
    assert ((codes == 0) | (codes == 255)).mean() < 0.002
    within = codes < 255
    np.testing.assert_allclose(1.45 + 0.75 * ((codes + 0.5) * 4 / 255 - 2)[within], values[within], atol=0.006)


def graph(path, nodes, shape, outputs, arrays):
    """Write an ONNX graph with the input `x` and constant arrays."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    whole = helper.make_graph(nodes, "g", inputs, outs, constants)
    onnx.save(helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def patches_model(path, width, shape=("N", 96, 64), scale=1.0, bias=0.0):
    """Random weights, in the shape of YAMNet or VGGish: scores first, then the mean over time through a matrix."""
    weights = (scale * RNG.normal(size=(64, width))).astype(np.float32)
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["patches"]),
        helper.make_node("ReduceMean", ["patches"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["patches"], ["scores"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["vectors"]),
    ]
    arrays = {"w": weights, "bias": np.full(width, bias, np.float32), "shape": np.array([-1, 96, 64])}
    return graph(path, nodes, list(shape), ["scores", "vectors"], arrays), weights


@pytest.mark.parametrize("shape", [("N", 96, 64), (1, 96, 64), ("N", 1, 96, 64), ("N", 96, 64, 1)])
def test_a_yamnet_in_onnx_that_reads_patches(tmp_path, shape):
    path, weights = patches_model(tmp_path / "yamnet.onnx", 1024, shape)
    expected = mel.yamnet_patches(torch.from_numpy(SECONDS)).numpy().mean(1) @ weights
    np.testing.assert_allclose(sound_extractor(f"yamnet:{path}").values(SECONDS), expected, atol=1e-3)


@pytest.mark.parametrize("shape", [("samples",), ("N", "samples"), (1, 15600)])
def test_a_yamnet_in_onnx_hears_one_patch_of_each_second(tmp_path, shape):
    """As tf2onnx exports it, it makes more vectors of more samples; here a vector tells the number of samples."""
    weights = RNG.normal(size=(1, 1024)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceSum", ["x", "last"], ["sum"], keepdims=1),
        helper.make_node("Reshape", ["sum", "column"], ["column_sum"]),
        helper.make_node("Mul", ["column_sum", "w"], ["product"]),
        helper.make_node("Shape", ["x"], ["size"], start=-1),
        helper.make_node("Cast", ["size"], ["count"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["product", "count"], ["embeddings"]),
        helper.make_node("Identity", ["column_sum"], ["scores"]),
    ]
    arrays = {"w": weights, "last": np.array([-1]), "column": np.array([-1, 1])}
    path = graph(tmp_path / "yamnet.onnx", nodes, list(shape), ["scores", "embeddings"], arrays)
    expected = SECONDS[:, :15600].sum(1, keepdims=True) * weights + 15600
    np.testing.assert_allclose(sound_extractor(f"yamnet:{path}").values(SECONDS), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("yamnet", "yamnet: names no file"),
        ("yamnet:{}/none.onnx", "cannot be read"),
        ("yamnet:{}/text.onnx", "onnxruntime cannot open it"),
        ("yamnet:{}/narrow.onnx", r"gives \[2, 64\], \[2, 128\] for 2 patches, and no vector of 1,024 values each"),
        ("yamnet:{}/constant.onnx", "the same 1,024 values for silence and a tone"),
        ("yamnet:{}/picture.onnx", r"reads \['N', 3, 224, 224\], not log-mel patches"),
        ("yamnet:{}/fixed.onnx", r"cannot be computed for input \[15600\]"),
        ("yamnet:{}/narrow.onnx?rate=8000", "rate: unknown key"),
        ("vggish:{}/narrow.onnx", "names one file; give the network and its PCA"),
        ("vggish:{}/narrow.onnx,{}/none.npz", "no vggish_pca_params.npz"),
        ("vggish:{}/narrow.onnx,{}/text.onnx", "no vggish_pca_params.npz"),
        ("vggish:{}/narrow.onnx,{}/small.npz", r"components \[64, 64\] and mean \[64\], not \[128, 128\]"),
    ],
)
def test_files_of_other_networks_are_named(tmp_path, name, message):
    patches_model(tmp_path / "narrow.onnx", 128)
    (tmp_path / "text.onnx").write_text("text")
    shape = helper.make_node("ConstantOfShape", ["n"], ["y"])
    graph(tmp_path / "constant.onnx", [shape], ["N", 96, 64], ["y"], {"n": np.array([2, 1024])})
    same = helper.make_node("Identity", ["x"], ["y"])
    graph(tmp_path / "picture.onnx", [same], ["N", 3, 224, 224], ["y"], {})
    graph(tmp_path / "fixed.onnx", [same], [16000], ["y"], {})
    np.savez(tmp_path / "small.npz", pca_eigen_vectors=np.eye(64), pca_means=np.zeros(64))
    with pytest.raises(UsageError, match=message):
        sound_extractor(name.format(tmp_path, tmp_path))


# --- VGGish -----------------------------------------------------------------------------------------


def google_codes(embeddings, components, means):
    """As `vggish_postprocess.py` computes them."""
    projected = np.dot(components, (embeddings.T - means.reshape(-1, 1))).T
    return ((np.clip(projected, -2.0, 2.0) + 2.0) * (255.0 / 4.0)).astype(np.uint8)


def pca_file(folder, kind, rng=RNG):
    """The published PCA, or one with other numbers."""
    if kind == "published":
        if not FILES.is_dir():
            pytest.skip(f"no published PCA in {FILES}")
        return FILES / "vggish_pca_params.npz"
    components = np.linalg.qr(rng.normal(size=(128, 128)))[0] / rng.uniform(0.2, 3, (128, 1))
    np.savez(folder / "pca.npz", pca_eigen_vectors=components, pca_means=rng.normal(size=(128, 1)))
    return folder / "pca.npz"


@pytest.mark.parametrize("kind", ["published", "generated"])
def test_codes_of_vggish_are_googles(tmp_path, kind):
    rng = np.random.default_rng(0)  # whatever tests came before
    pca = pca_file(tmp_path, kind, rng)
    with np.load(pca) as file:
        components, means = file["pca_eigen_vectors"], file["pca_means"]
    path, weights = patches_model(tmp_path / "vggish.onnx", 128, scale=0.05, bias=means.ravel())
    extractor = sound_extractor(f"vggish:{path},{pca}")
    assert (extractor.name, extractor.width) == (f"vggish:vggish.onnx,{pca.name}", 128)
    seconds = (rng.normal(0, 0.3, (40, 1)) * rng.normal(size=(40, 16000))).astype(np.float32)
    codes = record_codes(extractor, extractor.values(seconds))
    patches = mel.vggish_patches(torch.from_numpy(seconds)).numpy()
    expected = google_codes(patches.mean(1).astype(np.float64) @ weights + means.ravel(), components, means)
    assert len(np.unique(expected)) > 200
    # A value may fall on the other side of a step, since the network adds in float32.
    assert (codes != expected).mean() < 0.002
    assert np.abs(codes.astype(int) - expected).max() <= 1


def test_values_beyond_the_published_range_of_vggish_are_no_fault(tmp_path, capsys):
    path, _ = patches_model(tmp_path / "vggish.onnx", 128, scale=3.0)
    pca = pca_file(tmp_path, "generated")
    write_clip(tmp_path / "tone.m4a", pictures=(), sound=tone(8))
    clip = [str(tmp_path / "tone.m4a"), "--image", "none"]
    vggish = f"vggish:{path},{pca}"
    assert main(["extract", *clip, "--audio", vggish, "--out", str(tmp_path / "shards")]) == 0
    assert "outside the 8-bit range" not in capsys.readouterr().err
    assert main(["extract", *clip, "--audio", f"{vggish}?scale=1.5", "--out", str(tmp_path / "other")]) == 2
    assert "outside the 8-bit range" in capsys.readouterr().err


def test_another_pca_is_another_vggish(tmp_path):
    path, _ = patches_model(tmp_path / "vggish.onnx", 128)
    one, two = (pca_file(tmp_path / str(number), "generated") for number in made(tmp_path, 2))
    first, second = (sound_extractor(f"vggish:{path},{pca}") for pca in (one, two))
    assert first.origin(None).hash != second.origin(None).hash


def made(folder, count):
    for number in range(count):
        (folder / str(number)).mkdir()
        yield number


# --- TFLite -----------------------------------------------------------------------------------------


def test_a_tflite_network_of_pictures(files):
    from ai_edge_litert.interpreter import Interpreter

    extractor = image_extractor(f"tflite:{MOBILENET}")
    assert (extractor.width, extractor.takes) == (1024, (224, 224))
    pictures = RNG.integers(0, 256, (2, 224, 224, 3), np.uint8)
    interpreter = Interpreter(str(MOBILENET), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pictures[1:])
    interpreter.invoke()
    output = interpreter.get_output_details()[0]
    (scale,), (zero,) = (output["quantization_parameters"][key] for key in ("scales", "zero_points"))
    expected = scale * (interpreter.get_tensor(output["index"]).astype(float).ravel() - zero)
    assert expected.max() > 1
    np.testing.assert_allclose(extractor.values(pictures)[1], expected, rtol=1e-5)


@pytest.mark.parametrize("outputs", [("score", "vector"), ("vector",), ("score",)])
@pytest.mark.parametrize(
    ("shape", "signature"), [([1], [-1]), ([1, 1], [1, -1]), ([15600], [15600]), ([1, 15600],) * 2]
)
def test_a_yamnet_in_tflite_that_reads_samples(tmp_path, shape, signature, outputs):
    pytest.importorskip("ai_edge_litert")
    weights = RNG.normal(size=(1, 1024)).astype(np.float32)
    path = write_sum_network(tmp_path / "yamnet.tflite", weights, shape, signature, outputs=outputs)
    expected = SECONDS[:, :15600].sum(1, keepdims=True, dtype=np.float64) * weights
    np.testing.assert_allclose(sound_extractor(f"yamnet:{path}").values(SECONDS), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("opener", "name", "message"),
    [
        (image_extractor, f"tflite:{YAMNET}", r"reads float32 \[1, 96, 64\], not pictures"),
        (image_extractor, f"tflite:{MOBILENET}?mean=0.5&std=2", "as they are; leave out mean and std"),
        (sound_extractor, f"yamnet:{MOBILENET}", "reads uint8, not float32"),
        (sound_extractor, f"vggish:{YAMNET},pca.npz", "has no vector of 128 values"),
        (image_extractor, "tflite:{}/text.tflite", "LiteRT cannot open it"),
        (image_extractor, "tflite:{}/empty.tflite", "LiteRT cannot open it"),
        (image_extractor, "tflite:{}/cut.tflite", "LiteRT cannot open it"),
        (image_extractor, "tflite:{}/none.tflite", "cannot be read"),
    ],
)
def test_other_tflite_files_are_named(files, tmp_path, opener, name, message):
    (tmp_path / "text.tflite").write_text("text")
    (tmp_path / "empty.tflite").touch()
    (tmp_path / "cut.tflite").write_bytes(MOBILENET.read_bytes()[:100_000])
    with pytest.raises(UsageError, match=message):
        opener(name.format(tmp_path))


def test_what_installs_litert_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    Path(tmp_path / "a.tflite").touch()
    with pytest.raises(UsageError, match=r"pip install .*\[litert\]"):
        sound_extractor(f"yamnet:{tmp_path}/a.tflite")
