"""Values that do not fit the form that stores them are told, a fitted scale fits, and floats go through every step."""

import json
import re
import shlex

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from clips import numbered, write_clip
from conftest import DATA
from reeltag.cli.main import main
from reeltag.core.errors import DataError
from reeltag.core.storage import find_files
from reeltag.data.formats.example import Video, decode, encode
from reeltag.data.pca import to_codes
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples
from reeltag.data.video import extract as collecting
from reeltag.data.video.features import open_pipeline
from reeltag.data.video.value_range import Distribution, ValueUse, find_misfit
from reeltag.inference.predictor import load
from tagged import schema_of, write_untrained

random = np.random.default_rng(26)
NORMAL = random.standard_normal((3000, 64)).astype(np.float32)
UNIT = NORMAL / np.linalg.norm(NORMAL, axis=1, keepdims=True)
DEAD = np.where(np.arange(64) == 7, np.float32(0), NORMAL / 2)


def use_of(values):
    use = ValueUse()
    use.add(values[:1000])
    use.add(values[1000:])
    return use


def scale_of(values):
    distribution = Distribution()
    for part in np.split(values, 3):
        distribution.add(part)
    return distribution.scale()


@pytest.mark.parametrize(
    ("values", "told", "lost"),
    [
        (NORMAL / 2, None, False),
        (NORMAL.clip(0, 2), None, False),  # half of the values are 0, in the range
        (NORMAL.clip(-2, 2), None, False),  # at the ends, where nothing is cut
        (DEAD, None, False),
        (NORMAL, r"4\.\d% of its values are outside", False),
        (10 * UNIT, r"\d+\.\d% of its values are outside", False),
        (100 * UNIT, r"8\d\.\d% of its values are outside", True),
        (UNIT, r"its values take \d\d of 256 codes", False),
        (1e9 * NORMAL, r"100\.0% of its values are outside .* and its values take 2 of 256", True),
        (-3 - NORMAL.clip(0), r"100\.0% of its values are outside", True),
        (NORMAL * 0 + 1, "its values take 1 of 256 codes", False),
        (random.standard_cauchy((3000, 64)).astype(np.float32), "2\\d.\\d% of its values are outside", True),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_told(values, told, lost):
    misfit = find_misfit(use_of(values), "uint8")
    if told is None:
        assert misfit is None
    else:
        assert re.search(told, misfit.what)
        assert misfit.lost == lost
    assert find_misfit(use_of(values), "float32") is None


def test_the_counts_are_those_of_the_codes():
    values = random.normal(0.3, 1.5, (3000, 8)).astype(np.float32)
    use = use_of(values)
    assert use.count == values.size
    assert use.outside == np.mean(np.abs(values.clip(-2, 2) - values) > 2 / 255)  # half of a code's interval
    sizes = np.sort(np.unique(to_codes(values), return_counts=True)[1])[::-1]
    assert sizes[: use.codes].sum() >= 0.999 * values.size > sizes[: use.codes - 1].sum()


@pytest.mark.parametrize(
    "values",
    [NORMAL, UNIT, 100 * UNIT, 1e-6 * UNIT, 1e9 * NORMAL, NORMAL.clip(0), -3 - NORMAL.clip(0), DEAD, 1000 + NORMAL / 10,
     np.sort(NORMAL.ravel()).reshape(NORMAL.shape)],
    ids=["normal", "unit", "large", "tiny", "huge", "ReLU", "negative", "dead", "far", "drifting"],
)  # fmt: skip
def test_a_fitted_scale_is_that_of_the_quantiles_and_fits(values):
    offset, scale = scale_of(values)
    low, high = np.quantile(values.astype(np.float64), [0.0005, 0.9995])
    assert 4 / scale == pytest.approx(high - low, rel=0.03)
    assert offset == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    mapped = (values - np.float32(offset)) * np.float32(scale)
    use = use_of(mapped)
    assert find_misfit(use, "uint8") is None
    assert use.outside < 0.0015
    assert (float(str(offset)), float(str(scale))) == (offset, scale)


def test_no_scale_fits_values_that_are_all_equal():
    assert scale_of(NORMAL * 0 + np.float32(0.1)) is None
    assert scale_of(1000 + NORMAL * np.float32(1e-6)) is None  # but for the last bit


@pytest.mark.parametrize(("factor", "told"), [(1, False), (1e5, True), (1e-9, True), (0, False)])
def test_float16_is_for_values_that_it_holds(factor, told):
    misfit = find_misfit(use_of(np.float32(factor) * NORMAL), "float16")
    assert (misfit is not None) == told


# --- the command ----------------------------------------------------------------------------------


def encoder(path, norm, tail=()):
    """An encoder whose vectors of 48 values have a given norm, and then go through further nodes up to `out`."""
    weights = np.random.default_rng(1).standard_normal((3 * 16 * 16, 48))
    constants = {"half": 0.5, "weights": weights, "norm": norm, "zero": 0.0}
    nodes = [
        helper.make_node("Flatten", ["pixels"], ["flat"], axis=1),
        helper.make_node("Sub", ["flat", "half"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["direction"], axis=1, p=2),
        helper.make_node("Mul", ["direction", "norm"], ["values"]),
        *(tail or [helper.make_node("Identity", ["values"], ["out"])]),
    ]
    made = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()]
    shapes = (("pixels", ["N", 3, 16, 16]), ("out", ["N", 48]))
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name, shape in shapes)
    graph = helper.make_graph(nodes, "g", inputs, outputs, made)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Ten clips of pictures that differ, and their labels."""
    folder = tmp_path_factory.mktemp("clips")
    rows = ["file,labels"]
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 256, (5, 48, 64, 3), np.uint8)
        write_clip(folder / f"{number}.mp4", times=range(5), pictures=[*(noise // 2 + numbered(number) // 2)], rate=1)
        rows.append(f"{number}.mp4,{'ab'[number % 2]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def extract(clips, out, *options):
    given = [str(clips), "--labels", str(clips / "labels.csv"), "--audio", "none", "--out", str(out), "--workers", "1"]
    return main(["extract", *given, "--quiet", *map(str, options)])


def contents(folder):
    """Return the bytes of all files, without the recipe's name, which is the folder's."""
    named = f'name = "{folder.name}"'.encode()
    return {path.name: path.read_bytes().replace(named, b"") for path in folder.iterdir()}


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_what_8_bits_would_ruin_is_refused_early_and_the_command_that_is_told_decodes_nothing_again(
    clips, tmp_path, capsys, monkeypatch
):
    net = encoder(tmp_path / "a net.onnx", 100)
    read, inner = [], collecting._extract_part

    def extract_part(part, engine, pipeline):
        inner(part, engine, pipeline)
        read.append(part.item.id)

    monkeypatch.setattr(collecting, "_extract_part", extract_part)
    assert extract(clips, tmp_path / "out", "--image", f"onnx:{net}") == 2
    told = capsys.readouterr().err
    assert "% of its values are outside the 8-bit range" in told
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / "out.parts").glob("*.part"))) == len(read) >= 8
    option, name = shlex.split(re.search(r"(--image '[^']*')", told)[1])
    assert name.startswith(f"onnx:{net}?offset=")
    assert extract(clips, tmp_path / "out", option, name) == 0
    assert sorted(read) == sorted(f"{number}.mp4" for number in range(10))  # each once
    assert capsys.readouterr().err == ""
    found = manifest(tmp_path / "out")["values"]["rgb"]
    assert found["outside"] < 0.01
    assert found["codes"] >= 64
    assert not (tmp_path / "out.parts").exists()


def test_clipping_may_be_allowed(clips, tmp_path, capsys):
    net = encoder(tmp_path / "n.onnx", 100)
    assert extract(clips, tmp_path / "out", "--image", f"onnx:{net}", "--allow-clipping", "--json") == 0
    said = capsys.readouterr()
    (warning,) = json.loads(said.out)["warnings"]
    assert "rgb of onnx:n.onnx" in warning
    assert "outside the 8-bit range" in said.err


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "videos").is_dir(), reason="needs real clips, see REELTAG_DATA")
def test_the_extractors_that_come_with_reeltag_fit_real_clips(tmp_path, capsys):
    for number, clips in enumerate([DATA / "videos", *(DATA / "videos").iterdir()]):
        out = tmp_path / str(number)
        assert main(["extract", str(clips), "--out", str(out), "--quiet", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["warnings"] == []


@pytest.mark.parametrize(
    ("norm", "tail", "told"),
    [
        (1, (), "its values take .. of 256 codes; give --image"),
        (4, [helper.make_node("Mul", ["values", "zero"], ["out"])], "all equal, .* or give --image none"),
    ],
    ids=["unit norm", "constant"],
)
def test_a_warning_names_the_feature_and_what_to_give(clips, tmp_path, capsys, norm, tail, told):
    net = encoder(tmp_path / "n.onnx", norm, tail)
    assert extract(clips, tmp_path / "out", "--image", f"onnx:{net}") == 0
    assert re.search(told, capsys.readouterr().err)


def test_pictures_that_an_encoder_cannot_encode_are_named(clips, tmp_path, capsys):
    tail = [  # NaN unless all pixels are about equal
        helper.make_node("ReduceMax", ["flat"], ["high"], axes=[1]),
        helper.make_node("ReduceMin", ["flat"], ["low"], axes=[1]),
        helper.make_node("Sub", ["high", "low"], ["range"]),
        helper.make_node("Sub", ["norm", "range"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["root"]),
        helper.make_node("Add", ["values", "root"], ["out"]),
    ]
    net = encoder(tmp_path / "n.onnx", 0.05, tail)
    assert extract(clips, tmp_path / "out", "--image", f"onnx:{net}") == 2
    told = "onnx:n.onnx gives NaN, infinite values or some beyond ±1e+15 for second 0"
    assert told in capsys.readouterr().err


def test_a_measured_scale_is_part_of_the_features_and_tagging_applies_it(clips, tmp_path, capsys):
    net = encoder(tmp_path / "n.onnx", 100)
    image = ["--image", f"onnx:{net}"]
    assert extract(clips, tmp_path / "a", *image, "--fit-scale", 3) == 0
    told = capsys.readouterr().out
    # The command that is told makes the same shards, whatever the order in which the videos are found.
    shown = [str(clips / f"{number}.mp4") for number in reversed(range(10))]
    given = ["extract", *shown, "--labels", str(clips / "labels.csv"), "--audio", "none", "--quiet"]
    assert main([*given, *shlex.split(re.search(r"for more videos: (.*)", told)[1]), "--out", str(tmp_path / "b")]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert extract(clips, tmp_path / "d", *image, "--allow-clipping") == 0
    model = write_untrained(tmp_path / "m.reeltag", schema_of(tmp_path / "a").model_copy(update={"classes": 3}))
    capsys.readouterr()
    assert main(["predict", str(model), str(tmp_path / "d" / "*.tfrecord")]) == 2
    assert "on another scale" in capsys.readouterr().err
    scores_agree(model, tmp_path / "a", clips, image, capsys)


def scores_agree(model, shards, clips, options, capsys):
    """Assert that tagging the clips gives what predicting their shards gives."""
    capsys.readouterr()
    assert main(["tag", str(clips), "--model", str(model), *options, "--json", "--quiet"]) == 0
    tagged = {video["id"]: video["tags"] for video in json.loads(capsys.readouterr().out)["videos"]}
    parts = list(load(model).predict_shards([str(shards / "*.tfrecord")]))
    expected = {name: row for part in parts for name, row in zip(part.ids, part.probabilities.numpy(), strict=True)}
    assert tagged.keys() == expected.keys()
    for name, tags in tagged.items():
        np.testing.assert_allclose([tag["score"] for tag in tags], np.sort(expected[name])[::-1], atol=2e-6)
    assert len({round(tags[0]["score"], 6) for tags in tagged.values()}) == 10


@pytest.mark.parametrize(
    ("storage", "kind"), [("float16", np.float16), pytest.param("float32", np.float32, marks=pytest.mark.slow)]
)
def test_floats_go_through_every_step(clips, tmp_path, capsys, storage, kind):
    net = encoder(tmp_path / "n.onnx", 100)
    image = ["--image", f"onnx:{net}"]
    out = tmp_path / "out"
    assert extract(clips, out, *image, "--storage", storage) == 0
    assert capsys.readouterr().err == ""
    schema = schema_of(out)
    pipeline = open_pipeline(image[1], "none")
    found = {video.id: video.features[0] for video in read_examples(find_files([str(out / "*.tfrecord")]), schema)}
    for name in ("0.mp4", "7.mp4"):
        values = pipeline.extract(clips / name).values["rgb"]
        np.testing.assert_array_equal(found[name], values.astype(kind).astype(np.float32))
    assert schema.features[0].extractor.scale is None
    largest = max(float(np.abs(values).max()) for values in found.values())
    assert manifest(out)["values"]["rgb"]["largest"] == pytest.approx(largest, rel=1e-3)
    size = sum(path.stat().st_size for path in out.glob("*.tfrecord"))
    assert 10 * 5 * 48 * np.dtype(kind).itemsize < size < 10 * 5 * 48 * np.dtype(kind).itemsize * 1.3
    model = write_untrained(tmp_path / "m.reeltag", schema.model_copy(update={"classes": 3}))
    scores_agree(model, out, clips, image, capsys)
    other = manifest(out)
    other["schema"] |= {"dtype": "uint8", "storage": "native"}
    (out / "manifest.json").write_text(json.dumps(other))
    assert main(["predict", str(model), str(out / "*.tfrecord")]) == 2
    assert f"of these shards is uint8, but the model reads {storage}; extract" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["float16", "float32"])
def test_a_model_is_trained_on_floats(clips, tmp_path, capsys, storage):
    image = ["--image", f"onnx:{encoder(tmp_path / 'n.onnx', 100)}"]
    out = tmp_path / "out"
    assert extract(clips, out, *image, "--storage", storage) == 0
    assert main(["data", "verify", str(out / "*.tfrecord"), "--schema", str(out / "recipe.toml")]) == 0
    sets = ["--set", f"data.root={out}", "--set", "training.epochs=2"]
    assert main(["run", str(out / "recipe.toml"), "--out", str(tmp_path / "run"), "--quiet", *sets]) == 0
    scores_agree(tmp_path / "run" / "model.reeltag", out, clips, image, capsys)


def test_values_beyond_float16_are_refused(clips, tmp_path, capsys):
    net = encoder(tmp_path / "n.onnx", 1e6)
    options = ["--image", f"onnx:{net}", "--storage"]
    assert extract(clips, tmp_path / "out", *options, "float16") == 2
    assert re.search(r"has values up to [\d.e+]+, and float16 holds .* give --storage float32", capsys.readouterr().err)
    assert extract(clips, tmp_path / "out", *options, "float32") == 0


def test_records_hold_float16_exactly_or_are_refused():
    schema = Schema(features=({"name": "rgb", "width": 4},), classes=2, dtype="float32", storage="float16-bytes")
    frames = random.standard_normal((5, 4)).astype(np.float16).astype(np.float32)
    back = decode(encode(Video("a", np.array([1]), (frames,)), schema), schema)
    np.testing.assert_array_equal(back.features[0], frames)
    for odd in (frames + np.float32(1e-6), frames * np.float32(1e6)):
        with pytest.raises(DataError, match="holds values that float16-bytes cannot"):
            encode(Video("a", None, (odd,)), schema)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fit-scale", "0"], "1 or more"),
        (["--fit-scale", "3", "--fit-pca", "4"], "a PCA brings values to a scale of its own"),
        (["--fit-scale", "3", "--storage", "float16"], "float16 is stored as it is"),
        (["--allow-clipping", "--storage", "float32"], "float32 is stored as it is"),
        (["--image", "efficientnet-lite0?scale=0"], "scale: must be more than 0"),
    ],
)
def test_options_that_exclude_each_other_are_refused(clips, tmp_path, capsys, options, message):
    assert extract(clips, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
