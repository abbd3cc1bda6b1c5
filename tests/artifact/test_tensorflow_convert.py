"""Checkpoints of the authors' program: read without TensorFlow, same probabilities, damaged ones refused."""

import shutil

import numpy as np
import pytest

import reeltag
from bundles import write_bundle
from conftest import DATA, REPO
from reeltag.artifact.file import Artifact, load_artifact
from reeltag.artifact.quantization.encodings import CodebookTensor
from reeltag.artifact.tensorflow.bundle import read_checkpoint
from reeltag.artifact.tensorflow.convert import import_checkpoint
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError, DataError
from reeltag.data.schema import Feature, Schema
from reeltag.inference.predictor import Predictor
from reeltag.models.families import parse_config
from slow_models import slow_tag

OWN = REPO / "tests" / "golden" / "tf_checkpoints"
SHARED = DATA.parent / "golden" / "tf_checkpoints"
WIDTHS, CLASSES = (16, 8), 10
SCHEMA = Schema(features=(Feature(name="rgb", width=16), Feature(name="audio", width=8)), dtype="float32", classes=10)


def peer_checkpoint(name):
    """Return the folder of a checkpoint; skip the test if it is the large one, which is not in the repository."""
    folder = OWN / name if (OWN / name).is_dir() else SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no checkpoint in {folder}")
    return folder


@pytest.mark.parametrize("name", ["netvlad", "netvlad_quant", "bilstm"])
def test_an_imported_checkpoint_tags_as_the_authors_program_does(name, tmp_path, capsys):
    folder, out = peer_checkpoint(name), tmp_path / f"{name}.reeltag"
    assert main(["import-tf", str(folder / "inference_model"), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    expected = np.load(folder / "expected.npz")
    ours = reeltag.load(out).predict(expected["frames"], expected["num_frames"])
    np.testing.assert_allclose(ours, expected["predictions"], atol=1e-5)


def test_imported_quantized_weights_keep_their_codes(tmp_path):
    folder, out = peer_checkpoint("netvlad_quant"), tmp_path / "small.reeltag"
    main(["import-tf", str(folder), "--out", str(out)])
    (member,) = load_artifact(out).members
    value = member.state["hidden.weight"]
    peer = read_checkpoint(folder)
    assert isinstance(value, CodebookTensor)
    np.testing.assert_array_equal(value.codes, peer["tower/hidden1_weights_quants"])
    np.testing.assert_array_equal(value.codebook, peer["tower/hidden1_weights_space"])
    twice = tmp_path / "twice.reeltag"
    assert main(["quantize", str(out), "--out", str(twice)]) == 2
    assert not twice.exists()
    assert out.stat().st_size < 1.01 * (folder / "inference_model.data-00000-of-00001").stat().st_size


def norm(name, size):
    return {f"{name}/{part}": (size,) for part in ("beta", "gamma", "moving_mean", "moving_variance")}


def stack(path, inputs, cells, kind):
    shapes = {}
    for layer, i, h in (
        ("bidirectional_rnn/fw", inputs, cells // 2),
        ("bidirectional_rnn/bw", inputs, cells // 2),
        ("rnn", cells, cells),
    ):
        cell = f"{path}{layer}/multi_rnn_cell/cell_0/{kind}_cell"
        if kind == "gru":
            shapes |= {f"{cell}/gates/kernel": (i + h, 2 * h), f"{cell}/gates/bias": (2 * h,)}
            shapes |= {f"{cell}/candidate/kernel": (i + h, h), f"{cell}/candidate/bias": (h,)}
        else:
            shapes |= {f"{cell}/kernel": (i + h, 4 * h), f"{cell}/bias": (4 * h,)}
    return shapes


def moe(inputs, experts=2):
    return {
        "gates/weights": (inputs, CLASSES * (experts + 1)),
        "experts/weights": (inputs, CLASSES * experts),
        "experts/biases": (CLASSES * experts,),
    }


def logistic(inputs, scope="fully_connected"):
    return {f"{scope}/weights": (inputs, CLASSES), f"{scope}/biases": (CLASSES,)}


def hidden(inputs, outputs, relu=False):
    after = norm("hidden1_bn", outputs) if relu else {"hidden1_biases": (outputs,)}
    return {"hidden1_weights": (inputs, outputs), **after}


def dbof(scope, features, clusters):
    return {f"{scope}/cluster_weights": (features, clusters), **norm(f"{scope}/cluster_bn", clusters)}


# Names and shapes of the program's variables for models without a golden checkpoint (frame_level_models.py,
# devel_models.py and video_level_models.py of the published code), and the configuration that is expected.
PROGRAMS = {
    "gated GRU": (
        stack("", 24, 6, "gru") | {"gating_weights_2": (6, 6), "gating_biases": (6,)} | logistic(6),
        {"family": "rnn", "cell": "gru", "cells": 6, "gating": {"kind": "context", "norm": False}},
    ),
    "dual-path GRU": (
        norm("video_input_bn", 16) | norm("audio_input_bn", 8)
        | {"fully_connected/weights": (16, 16), "fully_connected_1/weights": (8, 8)}
        | norm("video_cluster_bn", 16) | norm("audio_cluster_bn", 8)
        | stack("video/", 16, 16, "gru") | stack("audio/", 8, 2, "gru") | logistic(18, "fully_connected_2"),
        {"family": "rnn", "cell": "gru", "cells": 16, "paths": "dual"},
    ),
    "SoftDBoF with the maximum": (
        norm("input_bn", 24) | dbof("video_DBOF", 16, 16) | dbof("audio_DBOF", 8, 2) | hidden(36, 6) | moe(6),
        {"family": "dbof", "pooling": "soft+max", "clusters": 16, "hidden": 6},
    ),
    "NetFV, coupled, relu": (
        norm("input_bn", 24) | dbof("video_FV", 16, 4) | dbof("audio_FV", 8, 2)
        | {"video_FV/covar_weights": (16, 4), "audio_FV/covar_weights": (8, 2)} | hidden(160, 6, relu=True) | moe(6, 3),
        {"family": "netfv", "clusters": 4, "centres": "coupled", "hidden": 6, "activation": "relu6",
         "head": {"experts": 3}, "gating": {"kind": "none"}},
    ),
    "video-level mixture, gates of low rank, gated by the input": (
        {name: shape for name, shape in moe(24).items() if name != "gates/weights"}
        | {"gates1/weights": (24, 3), "gates2/weights": (3, 30), "gating_prob_weights": (24, 10)}
        | norm("gating_prob_bn", 10),
        {"family": "mean", "head": {"gate_rank": 3, "prob_gating": True, "prob_gating_input": "hidden"}},
    ),
    "video-level logistic": (logistic(24), {"family": "mean"}),
    "classic DBoF": (
        norm("input_bn", 24) | {"cluster_weights": (24, 16)} | norm("cluster_bn", 16)
        | hidden(16, 6, relu=True) | moe(6),
        {"family": "dbof", "pooling": "max", "clusters": 16, "hidden": 6, "activation": "relu6"},
    ),
}  # fmt: skip


def variables(shapes, seed=0):
    rng = np.random.default_rng(seed)
    made = {name: (0.3 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    return {f"tower/{name}": abs(a) + 0.5 if name.endswith("variance") else a for name, a in made.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_model_of_the_authors_is_recognised_by_its_variables(name, tmp_path):
    shapes, table = PROGRAMS[name]
    arrays = variables(shapes) | {"global_step": np.array(7, np.int64), "beta1_power": np.array(0.5, np.float32)}
    arrays |= {f"{key}/Adam": array for key, array in variables(shapes).items()}
    member = import_checkpoint(write_bundle(tmp_path / "model", arrays), SCHEMA, "m", parse_config)
    kind = "moe" if "experts/weights" in shapes else "logistic"
    head = {"kind": kind, "l2": 1e-6 if kind == "moe" else 1e-8} | table.get("head", {})
    expected = {"gating": {"kind": "none"}, "input_norm": "input_bn/beta" in shapes, **table, "head": head}
    assert member.config == parse_config(expected, WIDTHS)
    # The probabilities verify that every weight was assigned to its place.
    frames = np.random.default_rng(1).standard_normal((2, 5, 24)).astype(np.float32)
    artifact = Artifact(SCHEMA, None, (member,), {})
    slow = np.stack([slow_tag(member.config, WIDTHS, member.state, row) for row in frames])
    np.testing.assert_allclose(Predictor(artifact, artifact.members).predict(frames), slow, atol=1e-5)


def test_float16_and_short_codebooks_are_imported_as_float32(tmp_path):
    arrays = variables(logistic(24))
    arrays["tower/fully_connected/weightsfloat16"] = arrays.pop("tower/fully_connected/weights").astype(np.float16)
    member = import_checkpoint(write_bundle(tmp_path / "half", arrays), SCHEMA, "m", parse_config)
    np.testing.assert_array_equal(
        member.state["head.weight"], arrays["tower/fully_connected/weightsfloat16"].astype(np.float32)
    )
    codes = np.random.default_rng(0).integers(0, 16, (24, 10)).astype(np.uint8)
    arrays = variables(logistic(24)) | {
        "tower/fully_connected/weights_quants": codes,
        "tower/fully_connected/weights_space": np.linspace(-1, 1, 16, dtype=np.float32),
    }
    del arrays["tower/fully_connected/weights"]
    member = import_checkpoint(write_bundle(tmp_path / "kmeans", arrays), SCHEMA, "m", parse_config)
    np.testing.assert_array_equal(member.state["head.weight"], np.linspace(-1, 1, 16, dtype=np.float32)[codes])


def test_options_that_leave_no_trace_in_the_variables_can_be_set(tmp_path, capsys):
    prefix = write_bundle(tmp_path / "dbof", variables(PROGRAMS["classic DBoF"][0]))
    recipe = tmp_path / "recipe.toml"
    features = '[{ name = "rgb", width = 16 }, { name = "audio", width = 8 }]'
    recipe.write_text(
        'name = "r"\nbudget_mb = 1\n[data]\ntrain = ["t"]\ntest = ["t"]\n[data.schema]\n'
        f'features = {features}\nclasses = 10\n[models.a]\nfamily = "mean"\n'
    )
    out = tmp_path / "mean.reeltag"
    arguments = ["import-tf", str(prefix), "--schema", str(recipe), "--out", str(out)]
    assert main([*arguments, "--set", "pooling=mean"]) == 0
    assert load_artifact(out).members[0].config.pooling == "mean"
    assert main([*arguments[:-1], str(tmp_path / "b.reeltag"), "--set", "pooling=median", "--set", "clustres=3"]) == 2
    message = capsys.readouterr().err
    assert "2 faults" in message
    assert "pooling: must be 'max', 'mean', 'soft', 'soft+max' or 'gated', not 'median'" in message
    assert "clustres: unknown key; did you mean 'clusters'?" in message


# --- errors -----------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_program_is_refused_with_its_variables(tmp_path):
    prefix = write_bundle(tmp_path / "other", variables({"conv1/kernel": (3, 3)}))
    with pytest.raises(ArtifactError, match="no classifier of the authors' program; its variables: conv1/kernel"):
        import_checkpoint(prefix, SCHEMA, "m", parse_config)
    prefix = write_bundle(tmp_path / "more", variables(logistic(24) | {"extra/kernel": (3, 3)}))
    with pytest.raises(ArtifactError, match="variables extra/kernel belong to no model"):
        import_checkpoint(prefix, SCHEMA, "m", parse_config)


def test_variables_of_unexpected_shapes_are_an_error(tmp_path):
    flat = variables(logistic(24) | {"hidden1_weights": (24,)})
    beyond = variables(logistic(24)) | {
        "tower/more_quants": np.full((2, 3), 200, np.uint8),
        "tower/more_space": np.zeros(16, np.float32),
    }
    for name, arrays in {"flat": flat, "beyond": beyond}.items():
        with pytest.raises(ArtifactError, match=f"{name}.index: its variables do not have the shapes"):
            import_checkpoint(write_bundle(tmp_path / name, arrays), SCHEMA, "m", parse_config)


def test_a_checkpoint_for_other_data_is_refused_with_every_shape(tmp_path):
    prefix = write_bundle(tmp_path / "wide", variables(logistic(30)))
    with pytest.raises(ArtifactError) as caught:
        import_checkpoint(prefix, SCHEMA, "m", parse_config)
    assert "16 + 8 values a frame and 10 classes as mean" in str(caught.value)
    assert "head.weight is [30, 10] and not [24, 10]" in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001", ".meta"])
def test_a_checkpoint_opens_by_any_of_its_files(tmp_path, suffix):
    write_bundle(tmp_path / "model.ckpt-12", variables(logistic(24)))
    assert len(read_checkpoint(tmp_path / f"model.ckpt-12{suffix}")) == 2
    assert len(read_checkpoint(tmp_path)) == 2


def test_missing_and_ambiguous_checkpoints_are_errors(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.index: no such file; a TensorFlow checkpoint is"):
        read_checkpoint(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no \.index file"):
        read_checkpoint(tmp_path)
    for name in ("a", "b"):
        write_bundle(tmp_path / name, variables(logistic(24)))
    with pytest.raises(DataError, match="holds a, b; give the path of one"):
        read_checkpoint(tmp_path)
    (tmp_path / "a.data-00000-of-00001").unlink()
    with pytest.raises(DataError, match=r"cannot be read \(No such file or directory\); it belongs to a\.index"):
        read_checkpoint(tmp_path / "a")


def test_unsupported_checkpoints_are_errors(tmp_path):
    arrays = variables(logistic(24))
    with pytest.raises(DataError, match="a block is compressed"):
        read_checkpoint(write_bundle(tmp_path / "snappy", arrays, compression=1))
    with pytest.raises(DataError, match="has TensorFlow's type 7, which is not a number"):
        read_checkpoint(write_bundle(tmp_path / "strings", arrays, dtype=7))


def test_every_damaged_byte_is_detected(tmp_path):
    good = tmp_path / "good"
    prefix = write_bundle(good, variables(logistic(24)))
    expected = read_checkpoint(prefix)
    for suffix in (".index", ".data-00000-of-00001"):
        content = (tmp_path / f"good{suffix}").read_bytes()
        damaged = [content[:at] for at in range(0, len(content), 7)]
        for at in range(len(content)):
            damaged.append(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        for other in (".index", ".data-00000-of-00001"):
            shutil.copy(tmp_path / f"good{other}", tmp_path / f"bad{other}")
        for bad in damaged:
            (tmp_path / f"bad{suffix}").write_bytes(bad)
            try:
                arrays = read_checkpoint(tmp_path / "bad")
            except DataError:
                continue
            # Only the padding of the footer has no checksum.
            assert arrays.keys() == expected.keys()
            assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
