"""Artifact files: saving and loading, the byte budget, and refusal of damaged files."""

import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reeltag.artifact.file import (
    Artifact,
    Member,
    artifact_header,
    average_artifacts,
    load_artifact,
    quantize_artifact,
    save_artifact,
    stored_bytes,
)
from reeltag.artifact.quantization.quantize import dequantize_state
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.core import tensorfile
from reeltag.core.errors import ArtifactError, BudgetError, UsageError
from reeltag.data.schema import Feature, Schema
from reeltag.inference.predictor import Predictor, load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from small_models import in_encoding

SCHEMA = Schema(features=(Feature(name="rgb", width=48), Feature(name="audio", width=8)), classes=20)
NAMES = tuple(f"class {number}" for number in range(20))


def member(name, weight=1.0, hidden=40, seed=0):
    config = parse_config({"family": "netvlad", "clusters": 16, "hidden": hidden})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, seed).state_dict()
    return Member(name, config, weight, {key: t for key, t in state.items() if t.is_floating_point()})


@pytest.fixture(scope="module")
def ensemble():
    members = (member("a", 0.25), member("b", 0.75, hidden=56, seed=1))
    return quantize_artifact(Artifact(SCHEMA, NAMES, members, {"recipe": "test"}))


@pytest.fixture(scope="module")
def file(ensemble, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model.reeltag"
    save_artifact(path, ensemble)
    return path


FRAMES = np.random.default_rng(0).integers(0, 256, (5, 7, 56), dtype=np.uint8)


def probabilities(artifact):
    return Predictor(artifact, artifact.members).predict(FRAMES)


def test_loading_returns_the_saved_artifact(ensemble, file):
    back = load_artifact(file)
    assert artifact_header(back) == artifact_header(ensemble)
    assert back.label_names == NAMES
    np.testing.assert_array_equal(probabilities(back), probabilities(ensemble))


def test_equal_artifacts_have_equal_bytes(ensemble, file, tmp_path):
    save_artifact(tmp_path / "again.reeltag", ensemble)
    assert (tmp_path / "again.reeltag").read_bytes() == file.read_bytes()


def test_the_file_predicts_the_weighted_mean_of_its_members(ensemble, file):
    alone = [probabilities(replace(ensemble, members=(replace(m, weight=1.0),))) for m in ensemble.members]
    expected = 0.25 * alone[0] + 0.75 * alone[1]
    np.testing.assert_allclose(load(file).predict(FRAMES), expected, atol=1e-6)


def test_large_weights_are_stored_in_8_bits(ensemble):
    floats = Artifact(SCHEMA, None, (member("a"),), {})
    large = {n: t.numel() for n, t in floats.members[0].state.items() if t.numel() > 17_000}
    assert large
    whole, quantized = (held_bytes(each.members[0].state) for each in (floats, ensemble))
    assert whole - quantized == sum(3 * count - 1024 for count in large.values())


def held_bytes(state):
    """Return the bytes of a state's tensors before entropy coding."""
    return sum(value.nbytes for value in state.values())


def test_a_member_takes_fewer_bytes_than_its_codes_and_the_rest_of_the_file_is_its_header(ensemble, file):
    sizes = stored_bytes(file)
    (header,) = struct.unpack("<Q", file.read_bytes()[:8])
    assert 8 + header + sum(sizes.values()) == file.stat().st_size
    assert list(sizes) == ["a", "b"]
    for each in ensemble.members:
        assert 0.7 < sizes[each.name] / held_bytes(each.state) < 0.95


def test_a_file_of_exactly_the_budget_is_written_and_one_byte_less_is_refused(ensemble, file, tmp_path):
    size = file.stat().st_size
    assert save_artifact(tmp_path / "fits.reeltag", ensemble, budget=size) == size
    with pytest.raises(BudgetError, match=r"1 bytes over the budget .* b would fit"):
        save_artifact(tmp_path / "over.reeltag", ensemble, budget=size - 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fits.reeltag"]


def test_a_budget_too_small_for_every_member_is_an_error(ensemble, tmp_path):
    with pytest.raises(BudgetError, match="no single member would fit"):
        save_artifact(tmp_path / "over.reeltag", ensemble, budget=1000)


def test_every_flipped_bit_and_every_cut_is_refused(file, tmp_path):
    content = file.read_bytes()
    rng = np.random.default_rng(0)
    header = struct.unpack("<Q", content[:8])[0] + 8
    places = np.concatenate([np.arange(64), rng.integers(0, header, 250), rng.integers(header, len(content), 100)])
    broken = tmp_path / "broken.reeltag"
    for place in places.tolist():
        mutant = bytearray(content)
        mutant[place] ^= 1 << int(rng.integers(0, 8))
        broken.write_bytes(mutant)
        with pytest.raises(ArtifactError):
            load(broken)
    for length in [0, 1, 7, 8, 100, header, len(content) - 1]:
        broken.write_bytes(content[:length])
        with pytest.raises(ArtifactError):
            load(broken)


def test_a_header_that_claims_more_bytes_than_the_file_is_refused(tmp_path):
    path = tmp_path / "forged.reeltag"
    entry = {"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    header = json.dumps(entry).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ArtifactError):
        load_artifact(path)


def rewrite(ensemble, path, change):
    """Write a file with a changed header and valid checksums, as a newer reeltag might."""
    save_artifact(path, ensemble)
    tensors, content = tensorfile.load_tensors(path)
    change(content)
    tensorfile.save_tensors(path, tensors, content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=4), "another version"),
        (lambda c: c["members"][0]["config"].update(family="transformer"), "another version"),
        (lambda c: c["members"][0].update(weight=0.9), "sum to 1"),
        (lambda c: c["label_names"].pop(), "19 label names for 20 classes"),
        (lambda c: c["members"][0]["config"].update(hidden=41), "do not fit"),
        (lambda c: c["members"][1].update(name="a"), "belongs to no member|same name"),
    ],
)
def test_an_inconsistent_header_is_refused(ensemble, tmp_path, change, message):
    path = tmp_path / "odd.reeltag"
    rewrite(ensemble, path, change)
    with pytest.raises(ArtifactError, match=message):
        load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(ArtifactError, match="not a reeltag file"):
        load_artifact(path)
    with pytest.raises(ArtifactError, match="nowhere"):
        load_artifact(tmp_path / "nowhere.reeltag")
    with pytest.raises(ArtifactError, match="is a folder; give the path"):
        load_artifact(tmp_path)


def test_quantizing_twice_changes_nothing(ensemble):
    again = quantize_artifact(ensemble)
    for name, value in ensemble.members[0].state.items():
        other = again.members[0].state[name]
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other)
        else:
            torch.testing.assert_close(other.dequantize(), value.dequantize(), rtol=0, atol=1e-6)


def test_a_member_takes_the_same_bytes_alone_and_in_an_ensemble(ensemble, file, tmp_path):
    for each in ensemble.members:
        save_artifact(tmp_path / "alone", replace(ensemble, members=(replace(each, weight=1.0),)))
        assert stored_bytes(tmp_path / "alone") == {each.name: stored_bytes(file)[each.name]}


def test_a_coded_tensor_that_the_model_does_not_need_is_not_decoded(ensemble, tmp_path, monkeypatch):
    path, rng = tmp_path / "forged.reeltag", np.random.default_rng(0)
    save_artifact(path, ensemble)
    tensors, content = tensorfile.load_tensors(path)
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    monkeypatch.setattr(tensorfile, "decode", None)
    for name, message in [("a/hidden.weight", "do not fit its architecture"), ("#pca/rgb.mean", "incomplete PCA")]:
        forged = rng.integers(0, 9, (50, 300), dtype=np.uint8)
        tensorfile.write(path, arrays | {name: forged}, content, compress=True)
        assert tensorfile.TensorFile(path).is_coded(name)
        with pytest.raises(ArtifactError, match=message):
            load_artifact(path)
    pca = {
        f"#pca/rgb.{name}": rng.integers(0, 9, (50, 300), dtype=np.uint8) for name in ("mean", "components", "scale")
    }
    tensorfile.write(path, arrays | pca, content, compress=True)
    with pytest.raises(ArtifactError, match=r"its PCA, .*, is not in float32"):
        load_artifact(path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_survives_saving_and_loading(tmp_path, encoding):
    config = parse_config({"family": "mean", "hidden": 400})
    state = build_tagger(config, SCHEMA.widths, 20, 0).state_dict()
    artifact = in_encoding(Artifact(SCHEMA, None, (Member("m", config, 1.0, state),), {}), encoding)
    save_artifact(tmp_path / "m.reeltag", artifact)
    back = load_artifact(tmp_path / "m.reeltag")
    for name, value in dequantize_state(artifact.members[0].state).items():
        if value.is_floating_point():
            assert torch.equal(dequantize_state(back.members[0].state)[name], value)
    assert held_bytes(back.members[0].state) == held_bytes(artifact.members[0].state)


def test_an_unknown_encoding_is_refused(tmp_path):
    config = parse_config({"family": "mean", "hidden": 400})
    state = dict(build_tagger(config, SCHEMA.widths, 20, 0).state_dict())
    state["hidden.weight"] = state["hidden.weight"].double()
    save_artifact(tmp_path / "m.reeltag", Artifact(SCHEMA, None, (Member("m", config, 1.0, state),), {}))
    with pytest.raises(ArtifactError, match=r"is stored as hidden.weight torch.float64 .* does not know"):
        load_artifact(tmp_path / "m.reeltag")


def test_averaging_needs_several_models_of_one_architecture(tmp_path):
    config, other = parse_config({"family": "mean", "hidden": 8}), parse_config({"family": "mean", "hidden": 9})
    made = {
        name: Artifact(SCHEMA, None, (Member("m", c, 1.0, build_tagger(c, SCHEMA.widths, 20, seed).state_dict()),), {})
        for name, c, seed in (("a", config, 0), ("b", config, 1), ("c", other, 0))
    }
    mean = average_artifacts({name: made[name] for name in "ab"})
    weights = [made[name].members[0].state["hidden.weight"] for name in "ab"]
    torch.testing.assert_close(mean.members[0].state["hidden.weight"], (weights[0] + weights[1]) / 2)
    with pytest.raises(UsageError, match="two or more"):
        average_artifacts({"a": made["a"]})
    with pytest.raises(UsageError, match="c: has another architecture or other data than a"):
        average_artifacts(made)
    two = replace(made["b"], members=made["b"].members * 2)
    with pytest.raises(UsageError, match="b: is an ensemble of 2 members"):
        average_artifacts({"a": made["a"], "b": two})
