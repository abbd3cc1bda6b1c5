"""CLIP, SigLIP and DINOv2: preprocessing against their own libraries, graphs of the true shapes with random weights."""

import json
import re
import sys
from fractions import Fraction
from importlib import import_module
from importlib.util import find_spec

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from clips import tone, write_clip
from conftest import REPO, golden
from reeltag.core.errors import UsageError
from reeltag.data.pca import Moments, load_projections, save_projections
from reeltag.data.video import decode
from reeltag.data.video.extractors import registry
from reeltag.data.video.extractors.registry import image_extractor, register_encoder
from reeltag.data.video.extractors.vision import read_preprocessing, unit_scale
from reeltag.data.video.features import Pipeline

RNG = np.random.default_rng(0)
CLIP = {
    "crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3, "size": {"shortest_edge": 224}, "image_processor_type": "CLIPImageProcessor",
}  # fmt: skip
SIGLIP = {
    "do_rescale": True, "do_resize": True, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "resample": 3, "rescale_factor": 1 / 255, "size": {"height": 224, "width": 224},
}  # fmt: skip
DINOV2 = CLIP | {
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": {"shortest_edge": 256},
}  # fmt: skip
TEXT = [(name, TensorProto.INT64, ["texts", "length"]) for name in ("input_ids", "attention_mask")]


# --- preprocessing --------------------------------------------------------------------------------


def golden_pictures(arrays):
    """The pictures that the processors were given, [H, W, 3] each."""
    ends = np.cumsum(arrays["shapes"].prod(1))
    return [
        flat.reshape(shape)
        for flat, shape in zip(np.split(arrays["pictures"], ends[:-1]), arrays["shapes"], strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "file", "codes"),
    [
        # Those of transformers are computed by the same kernel, those of open_clip by Pillow's.
        *((name, "preprocessor_config.json", 0.01) for name in ("clip", "siglip", "dinov2", "bilinear", "unscaled")),
        ("open_clip", "open_clip_config.json", 2.01),
        ("open_clip_squash", "open_clip_config.json", 2.01),
    ],
)
def test_pictures_are_prepared_as_the_encoders_own_library_does(tmp_path, name, file, codes):
    arrays = golden("image_processors")
    (tmp_path / file).write_text(str(arrays[f"{name}.json"]))
    preprocessing = read_preprocessing(tmp_path / "model.onnx")
    for number, picture in enumerate(golden_pictures(arrays)):
        found = preprocessing.normalise(preprocessing.prepare(picture)[None])[0]
        step = preprocessing.factor / np.array(preprocessing.std)[:, None, None]  # of one code of a pixel
        assert (np.abs(found - arrays[f"{name}.{number}"]) / step).max() <= codes


def changed(config, **changes):
    return {key: value for key, value in (config | changes).items() if value is not ...}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (changed(CLIP, size=224, crop_size=224), ((224, 224), 224)),  # as OpenAI's own repository has it
        (changed(CLIP, do_center_crop=...), ((224, 224), 224)),
        (changed(SIGLIP, size=384, do_convert_rgb=None), ((384, 384), None)),
        ({"image_processor": SIGLIP, "processor_class": "SiglipProcessor"}, ((224, 224), None)),
        (DINOV2, ((224, 224), 256)),
    ],
)
def test_a_processor_is_understood_in_every_form(tmp_path, config, expected):
    name = "processor_config.json" if "image_processor" in config else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps(config))
    (tmp_path / "onnx").mkdir()
    found = read_preprocessing(tmp_path / "onnx" / "vision_model.onnx")
    assert (found.size, found.edge) == expected


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(CLIP, do_pad=True), "do_pad is not supported"),
        (changed(CLIP, do_resize=False), "not resized to one size"),
        (changed(CLIP, resample=1), "resample 1 is not supported"),
        (changed(CLIP, size={"shortest_edge": 224, "longest_edge": 400}), "makes no pictures of one size"),
        (changed(CLIP, size={"shortest_edge": 200}), "makes no pictures of one size"),
        (changed(CLIP, crop_size=...), "makes no pictures of one size"),
        (changed(CLIP, image_std=[0.5]), "image_std"),
        (changed(CLIP, image_mean=...), "image_mean"),
        ([], "is not a JSON object"),
    ],
)
def test_a_processor_with_other_steps_is_refused(tmp_path, config, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=message) as refused:
        read_preprocessing(tmp_path / "model.onnx")
    assert str(tmp_path / "preprocessor_config.json") in str(refused.value)


# --- graphs ---------------------------------------------------------------------------------------


def export(
    folder, outputs, *, config=CLIP, shape=("N", "C", "H", "W"), inputs=(), name="model.onnx", kind=None, half=False
):
    """Write an export: graph, preprocessing, and config.json with its type.

    The pixels of 14 x 14 squares are averaged to 256 tokens of 3 values. An output of two dimensions is their mean
    times a random matrix, one of three dimensions each token times it.

    Args:
        outputs: by name, the shape without the dimension of pictures.

    Returns:
        The random matrices by name.
    """
    nodes = [
        helper.make_node("Cast", ["pixel_values"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("AveragePool", ["pixels"], ["squares"], kernel_shape=[14, 14], strides=[14, 14]),
        helper.make_node("Reshape", ["squares", "as_tokens"], ["by_channel"]),
        helper.make_node("Transpose", ["by_channel"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["tokens"], ["mean"], axes=[1], keepdims=0),
    ]
    weights = {each: RNG.normal(size=(3, sides[-1])).astype(np.float32) for each, sides in outputs.items()}
    arrays = {"as_tokens": np.array([0, 3, -1])} | {f"w.{each}": array for each, array in weights.items()}
    for each, sides in outputs.items():
        nodes.append(helper.make_node("MatMul", ["tokens" if len(sides) == 2 else "mean", f"w.{each}"], [each]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT16 if half else TensorProto.FLOAT, shape)]
        + [helper.make_tensor_value_info(*each) for each in inputs],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", *sides]) for each, sides in outputs.items()],
        [numpy_helper.from_array(array, each) for each, array in arrays.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / name)
    if config is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(config))
    if kind is not None:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return weights


def expected_tokens(pixels, config):
    """The tokens of prepared pictures, written out."""
    x = (pixels / 255 - np.array(config["image_mean"])) / np.array(config["image_std"])
    return x.reshape(len(x), 16, 14, 16, 14, 3).mean((2, 4)).reshape(len(x), 256, 3)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


PIXELS = RNG.integers(0, 256, (3, 224, 224, 3), np.uint8)


VISION = {"last_hidden_state": [256, 768], "pooler_output": [768]}
JOINT = {"logits_per_image": [1], "text_embeds": [512], "image_embeds": [512]}


@pytest.mark.parametrize(
    ("family", "config", "kind", "outputs", "inputs", "shape", "output"),
    [
        ("clip", CLIP, "clip", JOINT, TEXT, None, "image_embeds"),
        ("clip", CLIP, "clip_vision_model", VISION, (), None, "pooler_output"),
        ("clip", CLIP, None, {"features": [640]}, (), [1, 3, 224, 224], "features"),
        ("siglip", SIGLIP, "siglip", JOINT, TEXT[:1], None, "image_embeds"),
        ("siglip", SIGLIP, "siglip_vision_model", VISION, (), None, "pooler_output"),
        ("dinov2", DINOV2, "dinov2", {"last_hidden_state": [256, 384]}, (), ["N", 3, 224, 224], "last_hidden_state"),
    ],
)
def test_the_vector_of_an_export_is_found(tmp_path, family, config, kind, outputs, inputs, shape, output):
    weights = export(tmp_path, outputs, config=config, kind=kind, inputs=inputs, shape=shape or ("N", "C", "H", "W"))
    extractor = image_extractor(f"{family}:{tmp_path}")
    tokens = expected_tokens(PIXELS, config)
    pooled = tokens[:, 0] if output == "last_hidden_state" else tokens.mean(1)
    np.testing.assert_allclose(extractor.values(PIXELS), unit(pooled @ weights[output]), atol=1e-5)
    assert extractor.identity["settings"]["output"] == output
    assert (extractor.name, extractor.width) == (f"{family}:{tmp_path.name}", outputs[output][-1])
    assert (extractor.offset, extractor.scale) == (0, pytest.approx(2 / 3 * extractor.width**0.5))


def test_the_scale_of_unit_vectors_uses_the_codes():
    vectors = unit(RNG.normal(size=(200, 512)))
    scaled = vectors * unit_scale(512)
    assert (np.abs(scaled) > 2).mean() < 0.005
    assert len(np.unique(np.floor((scaled.clip(-2, 2) + 2) * 255 / 4))) > 240


def test_settings_change_the_output_the_scale_and_nothing_else(tmp_path):
    export(tmp_path, {"image_embeds": [8], "pooler_output": [16]})
    default, other = (
        image_extractor(f"clip:{tmp_path}{query}") for query in ("", "?output=pooler_output&scale=3&offset=1")
    )
    assert (default.width, other.width, other.scale, other.offset) == (8, 16, 3, 1)
    assert default.origin(None).hash != other.origin(None).hash
    inside = image_extractor(f"clip:{tmp_path / 'model.onnx'}")
    assert inside.origin(None).hash == default.origin(None).hash
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(changed(CLIP, resample=2)))
    assert image_extractor(f"clip:{tmp_path}").origin(None).hash != default.origin(None).hash


def test_a_pca_that_was_learned_with_an_encoder_is_for_it(tmp_path):
    export(tmp_path, {"image_embeds": [8]})
    extractor = image_extractor(f"clip:{tmp_path}")
    moments = Moments(8)
    moments.add(extractor.values(RNG.integers(0, 256, (9, 224, 224, 3), np.uint8)))
    save_projections(tmp_path / "pca", {"rgb": moments.projection(2)}, {"rgb": extractor.identity})
    assert load_projections(tmp_path / "pca", {"rgb": extractor.identity})["rgb"].widths == (8, 2)


def test_weights_in_a_file_of_their_own_are_part_of_the_hash(tmp_path):
    hashes = set()
    for folder, name in (("a", "model.onnx_data"), ("b", "model.onnx_data"), ("c", None)):
        export(tmp_path / folder, {"image_embeds": [8]})
        if name:
            loaded = onnx.load(tmp_path / folder / "model.onnx")
            onnx.save(
                loaded, tmp_path / folder / "model.onnx", save_as_external_data=True, location=name, size_threshold=64
            )
        hashes.add(image_extractor(f"clip:{tmp_path / folder}").origin(None).hash)
    assert len(hashes) == 3
    graphs = {(tmp_path / folder / "model.onnx").read_bytes() for folder in "ab"}
    assert len(graphs) == 1  # of the same bytes: the weights alone differ


def test_a_reference_is_compared_with_the_values(tmp_path):
    export(tmp_path, {"image_embeds": [8]})
    pictures = RNG.integers(0, 256, (2, 240, 320, 3), np.uint8)
    plain = image_extractor(f"clip:{tmp_path}")
    values = plain.values(np.stack([plain.prepare(picture) for picture in pictures]))
    np.savez(tmp_path / "r.npz", inputs=pictures, values=values)
    assert image_extractor(f"clip:{tmp_path}?reference={tmp_path / 'r.npz'}").width == 8
    np.savez(tmp_path / "r.npz", inputs=pictures[::-1], values=values)
    with pytest.raises(UsageError, match="differs from its reference"):
        image_extractor(f"clip:{tmp_path}?reference={tmp_path / 'r.npz'}")


EMBEDS = {"outputs": {"image_embeds": [8]}}


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        (
            "clip",
            EMBEDS | {"shape": ["N", 3, 336, 336]},
            "reads pictures of 336 x 336, and its preprocessing makes 224 x",
        ),
        ("clip", EMBEDS | {"config": None}, "has none of preprocessor_config.json"),
        ("clip", EMBEDS | {"kind": "siglip"}, "of the type 'siglip', not of clip; give siglip:PATH"),
        ("dinov2", EMBEDS | {"kind": "vit"}, "of the type 'vit', not of dinov2; give onnx:PATH"),
        (
            "clip",
            {"outputs": {"last_hidden_state": [256, 8]}},
            "has no output image_embeds or pooler_output, but last_",
        ),
        ("dinov2", {"outputs": {"logits": [1000]}}, "name the one with a vector a picture"),
        ("clip", {"outputs": {"a": [8], "b": [8]}}, "name the one with a vector a picture"),
        ("clip", EMBEDS | {"shape": ["N", 1, "H", "W"]}, "not pictures, float"),
        ("clip", EMBEDS | {"inputs": [("scales", TensorProto.FLOAT, [3])]}, "has the input scales"),
        ("clip", EMBEDS | {"name": "other.onnx"}, "holds none of vision_model.onnx"),
    ],
)
def test_graphs_that_do_not_fit_are_refused_in_one_message(tmp_path, family, given, message):
    export(tmp_path, **given)
    with pytest.raises(UsageError, match=re.escape(message)):
        image_extractor(f"{family}:{tmp_path}")


def test_an_output_without_vectors_is_refused(tmp_path):
    export(tmp_path, {"image_embeds": [8], "last_hidden_state": [256, 8]})
    with pytest.raises(UsageError, match=r"is \[2, 256, 8\] for 2 pictures, not one vector each"):
        image_extractor(f"clip:{tmp_path}?output=last_hidden_state")
    with pytest.raises(UsageError, match="has no output 'more', but image_embeds, last_hidden_state"):
        image_extractor(f"clip:{tmp_path}?output=more")


def test_an_encoder_that_gives_nan_is_refused_before_any_video(tmp_path):
    export(tmp_path, {"image_embeds": [8]}, config=changed(CLIP, image_std=[1e-45, 1, 1]))
    with pytest.raises(UsageError, match="gives NaN or infinite values for plain pictures"), np.errstate(all="ignore"):
        image_extractor(f"clip:{tmp_path}")


def test_a_standard_deviation_of_0_is_refused(tmp_path):
    export(tmp_path, {"image_embeds": [8]}, config=changed(CLIP, image_std=[1, 0, 1]))
    with pytest.raises(UsageError, match=r"image_std\.1: must be more than 0, not 0"):
        image_extractor(f"clip:{tmp_path}")


def test_a_clip_becomes_the_values_of_its_pictures(tmp_path):
    pictures = [np.broadcast_to(RNG.integers(0, 256, (1, 90, 3), np.uint8), (60, 90, 3)).copy() for _ in range(3)]
    clip = write_clip(tmp_path / "c.mkv", 3, 1, codec="ffv1", pictures=pictures)
    weights = export(tmp_path / "m", {"image_embeds": [8]})
    extractor = image_extractor(f"clip:{tmp_path / 'm'}")
    found = Pipeline(extractor, None).extract(clip).values["rgb"]
    prepared = np.stack([extractor.prepare(picture) for picture in pictures])
    np.testing.assert_allclose(
        found, unit(expected_tokens(prepared, CLIP).mean(1) @ weights["image_embeds"]), atol=1e-5
    )


def test_a_graph_in_half_precision_gets_its_input_in_it(tmp_path):
    halves = export(tmp_path, {"image_embeds": [8]}, half=True)
    found = image_extractor(f"clip:{tmp_path}").values(PIXELS)
    expected = unit(expected_tokens(PIXELS, CLIP).mean(1) @ halves["image_embeds"])
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_pictures_of_oblong_pixels_come_with_square_ones(tmp_path):
    with av.open(str(tmp_path / "c.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    (first, _) = decode.pictures(tmp_path / "c.mkv", None, decode.Damage())
    assert first.shape == (48, 85, 3)


# --- the page -------------------------------------------------------------------------------------


def rows(page, heading):
    """Cells of the first table below a heading."""
    lines = page.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| `\w", line)]


@pytest.mark.parametrize(("table", "heading"), [(registry.IMAGE, "Pictures"), (registry.SOUND, "Sound")])
def test_the_page_has_a_row_for_each_encoder(table, heading):
    page = (REPO / "docs" / "encoders.md").read_text()
    found = {}
    for name, width, reads, licence, *_ in rows(page, heading):
        kind, _, argument = name.split("`")[1].partition(":")
        found[kind] = (argument, width, reads, licence)
    assert found == {kind: (each.argument, each.width, each.reads, each.licence) for kind, each in table.items()}
    sources = {name.strip("`"): re.sub("[`<>]", "", source) for name, source in rows(page, "Where to get them")}
    own = {"onnx", "tflite", "efficientnet-lite0", "logmel"}
    assert {kind: sources.get(kind) for kind in table.keys() - own} == {
        kind: each.source for kind, each in table.items() if kind not in own
    }


def test_the_example_of_the_page_runs(registered, tmp_path, monkeypatch):
    page = (REPO / "docs" / "encoders.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "register_encoder" in block]
    write_clip(tmp_path / "beach.mp4", 2, 1, sound=tone(2))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    assert namespace["found"].values["rgb"].shape == (2, 16)


# --- torch ----------------------------------------------------------------------------------------


class Means(torch.nn.Module):
    """Means of the channels, times a weight."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.9)
        self.weight = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, pictures):
        return self.dropout(pictures.float().mean((2, 3)) * self.weight)


def channels_first(picture):
    return torch.from_numpy(picture[:24, :24].copy()).permute(2, 0, 1) / 255


@pytest.fixture
def registered(monkeypatch):
    """The registry as it was, after the test."""
    monkeypatch.setattr(registry, "IMAGE", dict(registry.IMAGE))


def test_a_module_is_an_encoder_by_its_name(registered, tmp_path):
    module = Means()
    made = register_encoder("means", module, channels_first)
    assert image_extractor("means").origin(None) == made.origin(None)
    assert image_extractor("means?scale=2").scale == 2
    pictures = RNG.integers(0, 256, (2, 30, 40, 3), np.uint8)
    found = made.values(np.stack([made.prepare(picture) for picture in pictures]))
    np.testing.assert_allclose(found, pictures[:, :24, :24].mean((1, 2)) / 255 * [1, 2, 3], atol=1e-5)
    before = made.origin(None).hash
    with torch.no_grad():
        module.weight += 1
    assert register_encoder("means", module, channels_first).origin(None).hash != before
    clip = write_clip(tmp_path / "c.mkv", 2, 1)
    assert Pipeline(image_extractor("means"), None).extract(clip).values["rgb"].shape == (2, 3)


def test_pictures_that_are_prepared_to_another_shape_are_named(registered):
    made = register_encoder("means", Means(), lambda picture: channels_first(picture)[:, : len(picture) // 10])
    with pytest.raises(
        UsageError, match=r"means: a picture of 100 x 90 is prepared to \[3, 10, 24\], and a black one to"
    ):
        made.prepare(np.zeros((100, 90, 3), np.uint8))


def test_what_is_no_encoder_is_not_registered(registered):
    mean = lambda pictures: pictures.mean((2, 3))  # noqa: E731
    assert register_encoder("mean", mean, channels_first, version="1").width == 3
    for name, function, version, message in (
        ("clip", mean, "1", "is no name that is free"),
        ("a:b", mean, "1", "is no name that is free"),
        ("mean", mean, "", "give its version"),
        ("mean", torch.nn.Flatten(), "", "give its version"),
        ("mean", lambda pictures: pictures, "1", r"returns \[2, 3, 24, 24\] for 2 pictures, not a vector each"),
        ("mean", lambda pictures: None, "1", "returns NoneType for 2 pictures"),
        ("mean", lambda pictures: pictures.mean((2, 3)) / 0, "1", "gives NaN or infinite values for a black picture"),
        ("mean", lambda pictures: pictures.reshape(7, 7), "1", "fails for black pictures"),
    ):
        with pytest.raises(UsageError, match=message):
            register_encoder(name, function, channels_first, version=version)


def test_timm_models_are_prepared_as_timm_does(tmp_path):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed: it needs the torchvision of torch's own build, which `dev` cannot ask for")
    timm, image = import_module("timm"), import_module("PIL.Image")
    network = timm.create_model("test_vit.r160_in1k", pretrained=False).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    extractor = image_extractor(f"timm:test_vit.r160_in1k?weights={tmp_path / 'w.pth'}")
    picture = RNG.integers(0, 256, (200, 320, 3), np.uint8)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    with torch.no_grad():
        features = network.forward_features(transform(image.fromarray(picture))[None])
        expected = network.forward_head(features, pre_logits=True).numpy()
    np.testing.assert_allclose(extractor.values(extractor.prepare(picture)[None]), unit(expected), atol=1e-5)
    with pytest.raises(UsageError, match="there is no file"):
        image_extractor(f"timm:test_vit.r160_in1k?weights={tmp_path / 'none.pth'}")
    with pytest.raises(UsageError, match="timm cannot open it"):
        image_extractor("timm:no_such_model")


def test_without_timm_its_models_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm is not installed; `pip install .*\[timm\]'`"):
        image_extractor("timm:resnet18")
