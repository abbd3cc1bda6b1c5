"""Models that come with reeltag: found by name, unchanged, described, and for sounds through VGGish."""

import json
import logging
import shutil

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

import reeltag
from clips import tone, write_clip
from conftest import DATA, REPO
from reeltag.artifact import shipped
from reeltag.artifact.file import load_artifact, resolve_artifact
from reeltag.artifact.shipped import MODELS
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.data.shards import read_examples
from reeltag.data.video.extractors.registry import sound_extractor

NAME = "audioset-vggish"
PCA = DATA / "extractors" / "vggish_pca_params.npz"


@pytest.mark.parametrize("name", MODELS)
def test_a_name_is_the_packaged_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifact = load_artifact(resolve_artifact(name))
    assert len(set(artifact.label_names)) == artifact.schema.classes == 527
    assert resolve_artifact(name).stat().st_size <= 4e6
    frames = np.random.default_rng(0).integers(0, 256, (10, 128), dtype=np.uint8)
    by_name, by_path = reeltag.from_pretrained(name, mode="exact"), reeltag.load(resolve_artifact(name), "exact")
    np.testing.assert_array_equal(by_name.predict(frames), by_path.predict(frames))


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    changed = bytearray(shipped.path_of(NAME).read_bytes())
    changed[-1] ^= 1
    (tmp_path / f"{NAME}.reeltag").write_bytes(changed)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(ArtifactError, match="not the file that came with reeltag; install reeltag again"):
        reeltag.load(NAME)


def test_an_unknown_name_is_one_message_with_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in (["inspect", "audioset-vgish"], ["quantize", "audioset-vgish", "--out", "a.reeltag"]):
        assert main(command) == 2
        assert capsys.readouterr().err.strip().endswith("did you mean 'audioset-vggish'?")
    with pytest.raises(UsageError, match="there are audioset-vggish"):
        resolve_artifact("x")


def test_a_local_file_of_the_name_wins_with_a_warning(tiny_model, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_model, tmp_path / NAME)
    with caplog.at_level(logging.WARNING, logger="reeltag"):
        assert reeltag.load(NAME).schema.classes != 527
    assert "the file or folder here is used" in caplog.text


def test_a_name_of_the_hub_is_taken_by_every_command_unless_its_folder_is_here(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.chdir(tmp_path)

    def refuse(name):
        asked.append(name)
        raise UsageError(f"{name}: not there")

    monkeypatch.setattr("reeltag.artifact.file.download_from_hub", refuse)
    assert main(["inspect", "user/tagger"]) == 2
    (tmp_path / "runs").mkdir()
    for path in ("runs/tagger", "user/model.reeltag"):
        assert main(["inspect", path]) == 2
        assert "no such file" in capsys.readouterr().err
    assert asked == ["user/tagger"]


def test_the_list_agrees_with_the_card(capsys):
    assert main(["models", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    page = (REPO / "docs" / "pretrained.md").read_text()
    for name, about in found.items():
        card = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for figure in (f"{about['bytes'] / 1e6:.2f} MB", *(f"{value:.5f}" for value in about["test"].values())):
            assert figure in card
        assert about["licence"] in card and MODELS[name].command in card
    assert main(["models", "list"]) == 0
    assert "CC BY 4.0" in capsys.readouterr().out


def test_a_shared_copy_states_the_licence(tmp_path):
    assert main(["share", NAME, "--out", str(tmp_path / "shared")]) == 0
    assert "\n## Licence\n\nApache-2.0\n" in (tmp_path / "shared" / "README.md").read_text()


# --- sounds -----------------------------------------------------------------------------------------


@pytest.fixture
def clip(tmp_path):
    write_clip(tmp_path / "tone.m4a", pictures=(), sound=tone(4))
    return tmp_path / "tone.m4a"


def write_vggish(path):
    """Write a network of VGGish's shape: from log-mel patches [N, 96, 64] to 128 values."""
    weights = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["y"]),
    ]
    infos = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", ["N", 96, 64]), ("y", ["N", 128]))
    ]
    graph = helper.make_graph(nodes, "vggish", infos[:1], infos[1:], [numpy_helper.from_array(weights, "w")])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_without_the_encoder_it_says_which_file_is_missing_and_how_to_get_it(clip, capsys):
    assert main(["tag", NAME, str(clip), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "give --audio vggish:PATH,PCA" in message and "research/audioset/vggish" in message


@pytest.mark.skipif(not PCA.is_file(), reason=f"no published PCA in {PCA.parent}")
def test_sounds_are_tagged_as_their_codes_are(clip, tmp_path, capsys):
    vggish = f"vggish:{write_vggish(tmp_path / 'vggish.onnx')},{PCA}"
    command = ["tag", NAME, str(clip), "--audio", vggish, "--mode", "exact", "--json", "--quiet"]
    assert main(command) == 0
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    # `extract` writes the same codes by another way.
    out = tmp_path / "shards"
    assert main(["extract", str(clip), "--image", "none", "--audio", vggish, "--out", str(out), "--quiet"]) == 0
    schema = reeltag.load(NAME, "exact").schema
    renamed = schema.model_copy(update={"features": (schema.features[0].model_copy(update={"name": "audio"}),)})
    (stored,) = read_examples(sorted(out.glob("*.tfrecord")), renamed)
    expected = reeltag.load(NAME, "exact").predict(stored.frames())
    for tag in video["tags"]:
        assert abs(expected[tag["class"]] - tag["score"]) < 1e-6


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        ("logmel", "reads 'audio' from vggish, not from logmel"),
        ("vggish:{}/vggish.onnx,{}/other.npz", "went through the published vggish_pca_params.npz"),
    ],
)
def test_another_encoder_or_pca_is_refused(audio, message, clip, tmp_path, capsys):
    write_vggish(tmp_path / "vggish.onnx")
    np.savez(tmp_path / "other.npz", pca_eigen_vectors=np.eye(128), pca_means=np.zeros(128))
    assert main(["tag", NAME, str(clip), "--audio", audio.format(tmp_path, tmp_path), "--quiet"]) == 2
    assert message in capsys.readouterr().err
    assert sound_extractor(audio.format(tmp_path, tmp_path)).width == 128
