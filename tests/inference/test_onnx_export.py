"""Models exported as ONNX: onnxruntime computes the same probabilities as the model."""

import builtins
import importlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import onnx_alone
from conftest import REPO
from reeltag.artifact.file import Artifact, Member, quantize_artifact, save_artifact
from reeltag.artifact.quantization.encodings import CodedTensor
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.cli.main import main
from reeltag.core.environment import install_command
from reeltag.core.errors import ArtifactError, BudgetError, UsageError
from reeltag.core.storage import find_files
from reeltag.data.loader import Batch, stream_batches
from reeltag.data.schema import Feature, Schema
from reeltag.data.shards import read_examples
from reeltag.inference.ensemble import predict_batches
from reeltag.models import shapes
from reeltag.models.families import FAMILIES, parse_config
from reeltag.models.tagger import POOLINGS, build_tagger
from small_models import (
    CLASSES,
    SCHEMA,
    battery,
    in_encoding,
    in_mode,
    small_artifact,
    small_tagger,
    stirred,
    stored_in,
    videos,
    with_options,
)

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
from onnx import TensorProto  # noqa: E402

from reeltag.artifact.onnx import model as onnx_model  # noqa: E402
from reeltag.artifact.onnx import poolings  # noqa: E402
from reeltag.artifact.onnx import weights as onnx_weights  # noqa: E402
from reeltag.artifact.onnx.graph import OPSET, Graph  # noqa: E402
from reeltag.artifact.onnx.weights import Weights  # noqa: E402
from reeltag.inference import onnx_export  # noqa: E402
from reeltag.inference.onnx_export import generated_batches, save_onnx  # noqa: E402
from reeltag.inference.onnx_session import DISABLED, ENTRIES, open_onnx  # noqa: E402

FRAMES, LENGTHS = videos()[0].numpy(), np.array([7, 3, 7, 1, 5, 2])


def onnx_file(ensemble, folder, top=None):
    path = folder / "model.onnx"
    path.write_bytes(onnx_model.build_onnx(ensemble, top).SerializeToString())
    return path


def probabilities(path, mode, frames=FRAMES, lengths=LENGTHS):
    (outputs,) = open_onnx(path, mode, threads=1).run(None, {"frames": frames, "lengths": lengths})
    return outputs


@battery
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_family_in_every_encoding_and_mode(family, form, encoding, everything_is_large, tmp_path):
    ensemble = small_artifact(family, form, encoding)
    path, expected = onnx_file(ensemble, tmp_path), in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    onnx.checker.check_model(str(path), full_check=True)
    for mode, tolerance in (("exact", 1e-5), ("small", 1e-5), ("fast", 0.2 * expected.std())):
        np.testing.assert_allclose(probabilities(path, mode), expected, atol=tolerance, rtol=0)


@battery
@with_options
def test_every_option_of_every_family(family, form, options, everything_is_large, tmp_path):
    ensemble = small_artifact(family, form, "uniform-8", **options)
    outputs = probabilities(onnx_file(ensemble, tmp_path), "exact")
    np.testing.assert_allclose(outputs, in_mode(ensemble, "exact").predict(FRAMES, LENGTHS), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "head",
    [{"kind": "logistic"}, {"kind": "moe", "experts": 2}, {"kind": "moe", "experts": 2, "prob_gating": True}],
    ids=["logistic", "mixture", "gated"],
)
def test_rare_classes_rank_as_in_the_model(head, tmp_path):
    """Probabilities down to 1e-13 are right relative to themselves; see onnxruntime-sigmoid-ties-rare-classes.sh."""
    config = parse_config({"family": "mean", "head": head}, SCHEMA.widths)
    schema = SCHEMA.model_copy(update={"classes": 1000})
    tagger = build_tagger(config, SCHEMA.widths, 1000, 0)
    bias = tagger.state_dict()["head.bias"]
    bias += torch.linspace(-30, 30, 1000).repeat_interleave(len(bias) // 1000)
    ensemble = Artifact(schema, None, (Member("a", config, 1.0, tagger.state_dict()),), {})
    expected = in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    found = probabilities(onnx_file(ensemble, tmp_path), "exact")
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=0)
    assert found.min() < 1e-12 and len(np.unique(found[0])) > 600


def test_an_exported_ensemble_is_the_weighted_mean_without_unused_members(everything_is_large, tmp_path):
    parts = [small_artifact(family, form).members[0] for family, form in (("netvlad", {"clusters": 4}), ("mean", {}))]
    members = [
        replace(part, name=name, weight=w) for part, name, w in zip(parts * 2, "abc", (0.7, 0.3, 0.0), strict=False)
    ]
    ensemble = Artifact(SCHEMA, None, tuple(members), {})
    path = onnx_file(ensemble, tmp_path)
    expected = in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    np.testing.assert_allclose(probabilities(path, "exact"), expected, atol=1e-6)
    assert not any(each.name.startswith("c/") for each in onnx.load(path).graph.initializer)


@pytest.mark.parametrize("encoding", ["uniform-8", "coded"])
def test_large_weights_are_multiplied_in_pieces(encoding, everything_is_large, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_weights, "PIECE", 300)
    monkeypatch.setattr(onnx_weights, "PIECE_ROWS", 16)
    ensemble = small_artifact("netvlad", {"clusters": 4}, encoding)
    path, expected = onnx_file(ensemble, tmp_path), in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    stored = [each.name for each in onnx.load(path).graph.initializer if "hidden.weight@" in each.name]
    assert {name.partition("#")[0] for name in stored} == {f"m/hidden.weight@{begin}" for begin in (0, 32)}
    for mode in ("exact", "small"):
        np.testing.assert_allclose(probabilities(path, mode), expected, atol=1e-5)


@battery
def test_codes_are_exported_as_int8_with_a_scale_for_each_output(family, form, everything_is_large, tmp_path):
    ensemble = small_artifact(family, form, "coded")
    path, (member,) = onnx_file(ensemble, tmp_path), ensemble.members
    arrays = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    names = [name for name, value in member.state.items() if isinstance(value, CodedTensor) and len(value.size) > 1]
    for name in names:
        codes, steps = member.state[name].codes, member.state[name].steps.float().flatten()
        # A matrix that is multiplied and added has two initializers; `@0` is the first piece of one for products.
        stored = [each for each in (f"m/{name}", f"m/{name}@0") if each in arrays]
        assert stored
        for each in stored:
            assert arrays[each].dtype == np.int8
            np.testing.assert_array_equal(arrays[each], codes.numpy())
            np.testing.assert_array_equal(arrays[f"{each}#scale"], steps.numpy())
            assert not arrays.get(f"{each}#zero", np.zeros(1)).any()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_not_a_number_stays_one(encoding, everything_is_large, tmp_path):
    """No mode turns the NaN of any feature into probabilities."""
    schema = Schema(level="video", dtype="float32", features=(Feature(name="x", width=16),), classes=CLASSES)
    tagger = stirred(build_tagger(parse_config({"family": "mean", "hidden": 8}), [16], CLASSES, 0))
    member = Member("m", tagger.config, 1.0, tagger.state_dict())
    ensemble = in_encoding(Artifact(schema, None, (member,), {}), encoding)
    frames = np.random.default_rng(0).normal(size=(16, 1, 16)).astype(np.float32)
    frames[range(16), 0, range(16)] = np.nan
    path, lengths = onnx_file(ensemble, tmp_path), np.ones(16, np.int64)
    batch = Batch(("",) * 16, torch.from_numpy(frames), torch.from_numpy(lengths), None)
    for mode in ("exact", "small", "fast"):
        assert np.isnan(probabilities(path, mode, frames, lengths)).all(), mode
        (predicted,) = predict_batches(in_mode(ensemble, mode).model, [batch])
        assert predicted.probabilities.isnan().all(), mode


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mode", ["exact", "small", "fast"])
def test_a_product_is_not_a_number_where_one_input_is(mode, encoding, tmp_path):
    """findings/onnxruntime-int8-product-drops-nan.sh: the 8-bit kernel alone loses it, unless all inputs are NaN."""
    graph = Graph()
    weights = Weights(graph, {"w": stored_in(encoding, torch.randn(16, 9))}, "m")
    product = weights.product(graph.input("frames", TensorProto.FLOAT, ["B", 16]), "w")
    graph.output("y", product, TensorProto.FLOAT, ["B", 9])
    graph.model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    (tmp_path / "m.onnx").write_bytes(graph.model.SerializeToString())
    x = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    (finite,) = open_onnx(tmp_path / "m.onnx", mode, threads=1).run(None, {"frames": x})
    x[range(16), range(16)] = np.nan
    (outputs,) = open_onnx(tmp_path / "m.onnx", mode, threads=1).run(None, {"frames": x})
    assert np.isfinite(finite).all() and np.isnan(outputs).all()


@pytest.mark.parametrize("encoding", ["uniform-8", "coded"])
@pytest.mark.parametrize("mode", ["exact", "small", "fast"])
def test_onnxruntime_fuses_the_kernels_of_each_mode(mode, encoding, everything_is_large, tmp_path):
    ensemble = small_artifact("netvlad", {"clusters": 8}, encoding)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(tmp_path / "optimised.onnx")
    for key, value in ENTRIES[mode].items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(
        str(onnx_file(ensemble, tmp_path)), options, ["CPUExecutionProvider"], disabled_optimizers=DISABLED[mode]
    )
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    centres = 2  # of two features; used in a sum, not in a product
    products = 6  # assignments of two features, hidden layer, gate, and gates and experts of the head
    expected = {"exact": (0, 0), "small": (centres + products, 0), "fast": (centres, products)}[mode]
    assert (nodes["DequantizeLinear"], nodes["MatMulNBits"]) == expected


def test_export_of_the_most_probable_classes_only(tmp_path):
    ensemble = small_artifact("netvlad", {"clusters": 4})
    classes, scores = open_onnx(onnx_file(ensemble, tmp_path, top=4)).run(None, {"frames": FRAMES, "lengths": LENGTHS})
    expected = in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    np.testing.assert_array_equal(classes, np.argsort(-expected, axis=1)[:, :4])
    np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :4], atol=1e-6)
    with pytest.raises(UsageError, match=f"from 1 to {CLASSES}"):
        onnx_model.build_onnx(ensemble, top=CLASSES + 1)


def test_frames_beyond_the_limit_are_cut(tmp_path):
    ensemble = small_artifact("netvlad", {"clusters": 4})
    ensemble = replace(ensemble, schema=SCHEMA.model_copy(update={"max_frames": 4}))
    path, expected = onnx_file(ensemble, tmp_path), in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    np.testing.assert_allclose(probabilities(path, "exact"), expected, atol=1e-6)
    np.testing.assert_allclose(probabilities(path, "exact", FRAMES[:, :4], LENGTHS.clip(max=4)), expected, atol=1e-6)


def test_padding_of_video_level_floats_is_ignored(tmp_path):
    schema = Schema(
        level="video", dtype="float32", features=(Feature(name="x", width=16),), classes=CLASSES, max_frames=3
    )
    tagger = stirred(build_tagger(parse_config({"family": "mean"}, [16]), [16], CLASSES, 0))
    ensemble = Artifact(schema, None, (Member("m", tagger.config, 1.0, tagger.state_dict()),), {})
    frames = np.random.default_rng(0).normal(size=(3, 2, 16)).astype(np.float32)
    expected = in_mode(ensemble, "exact").predict(frames, np.array([2, 1, 1]))
    frames[1:, 1] = np.nan
    outputs = probabilities(onnx_file(ensemble, tmp_path), "exact", frames, np.array([2, 1, 1]))
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_exports_are_reproducible_and_hold_metadata(tmp_path):
    ensemble = replace(small_artifact("mean", {}), label_names=tuple("äbcdefghi"), provenance={"recipe": "r"})
    sizes = [save_onnx(tmp_path / name, ensemble, generated_batches(SCHEMA)) for name in ("a.onnx", "b.onnx")]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert sizes[0][0] == (tmp_path / "a.onnx").stat().st_size and sizes[0][1] < 1e-5
    known = open_onnx(tmp_path / "a.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(known["reeltag.label_names"]) == list("äbcdefghi")
    assert Schema.model_validate_json(known["reeltag.schema"]) == SCHEMA


def test_an_export_with_other_probabilities_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "hidden", lambda layer, x, weights: weights.product(x * 1.01, "weight"))
    with pytest.raises(ArtifactError, match="not kept, since its probabilities differ by"):
        save_onnx(tmp_path / "m.onnx", small_artifact("netvlad", {"clusters": 4}), generated_batches(SCHEMA))
    assert not list(tmp_path.iterdir())


def test_an_export_that_computes_nan_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "hidden", lambda layer, x, weights: weights.product(x * float("nan"), "weight"))
    with pytest.raises(ArtifactError, match="not kept, since its probabilities differ by nan"):
        save_onnx(tmp_path / "m.onnx", small_artifact("netvlad", {"clusters": 4}), generated_batches(SCHEMA))
    assert not list(tmp_path.iterdir())


def test_an_export_beyond_the_limit_of_protobuf_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "LARGEST", onnx_export.ROOM)
    with pytest.raises(BudgetError, match=r"m.onnx: would have 16.78 MB, .* over 16.78 MB"):
        save_onnx(tmp_path / "m.onnx", small_artifact("mean", {}), [])


def test_the_command_says_both_sizes_and_the_budget_that_an_export_exceeds(tmp_path, capsys, everything_is_large):
    ensemble = small_artifact("mean", {}, "coded", hidden=600)
    file, out, sizes = tmp_path / "m.reeltag", tmp_path / "m.onnx", {}
    for budget in (10**6, 20_000):
        save_artifact(file, replace(ensemble, provenance={"budget": budget}), budget)
        assert main(["export", str(file), "--out", str(out)]) == 0
        said, sizes = capsys.readouterr().out, {path: path.stat().st_size for path in (file, out)}
        assert f"m.onnx: {sizes[out]:,} bytes, from {sizes[file]:,} bytes" in said
        assert ("beyond the budget of its recipe, 20,000 bytes" in said) == (budget == 20_000)
        out.unlink()
    codes = sum(each.codes.numel() for each in ensemble.members[0].state.values() if isinstance(each, CodedTensor))
    assert codes < sizes[out] < 1.5 * codes and sizes[out] > 2 * sizes[file]


def test_a_family_without_an_onnx_form_is_an_error(monkeypatch):
    ensemble = small_artifact("mean", {})
    tagger = small_tagger("mean", {})
    tagger.pooling = torch.nn.Identity()
    monkeypatch.setattr(onnx_model, "meta_tagger", lambda *arguments: tagger)
    with pytest.raises(UsageError, match="m: Identity has no ONNX form"):
        onnx_model.build_onnx(ensemble)


def test_damaged_and_missing_onnx_files_are_errors(tmp_path):
    path = onnx_file(small_artifact("mean", {}), tmp_path)
    data = path.read_bytes()
    for bad in (b"", data[: len(data) // 2], b"nothing"):
        path.write_bytes(bad)
        with pytest.raises(ArtifactError, match="export it again"):
            open_onnx(path)
    with pytest.raises(ArtifactError, match="nowhere"):
        open_onnx(tmp_path / "nowhere.onnx")
    with pytest.raises(UsageError, match="no 'bf16' for ONNX; use exact, small, fast"):
        open_onnx(path, "bf16")


def test_telemetry_is_off_before_onnxruntime_is_imported(tmp_path):
    """Import a stand-in for onnxruntime that prints the setting at the time of its import."""
    (tmp_path / "onnxruntime.py").write_text("import os; print(os.environ.get('ORT_DISABLE_TELEMETRY'))")
    code = "import reeltag\ntry: reeltag.open_onnx('m.onnx')\nexcept AttributeError: pass"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert run.stdout == "1\n", run.stderr
    sources = {path for path in (REPO / "src").rglob("*.py") if "import onnxruntime" in path.read_text()}
    assert [path.name for path in sources] == ["environment.py"]


def test_without_onnx_the_error_names_the_extra(tiny_model, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name.split(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *arguments, **keywords)

    for name in [
        name for name in sys.modules if name.startswith("reeltag.artifact.onnx") or name.split(".")[0] == "onnx"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["reeltag"], "export", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    assert main(["export", str(tiny_model), "--out", str(tmp_path / "m.onnx")]) == 2
    assert install_command("onnx") in capsys.readouterr().err


def test_onnxruntime_alone_reproduces_the_csv_of_predict(everything_is_large, tmp_path, tiny_shards, tiny_schema):
    """Cover padding, videos of different length and 8-bit weights, in a process without reeltag."""
    tagger = stirred(
        build_tagger(parse_config({"family": "netvlad", "clusters": 4}), tiny_schema.widths, tiny_schema.classes, 0)
    )
    member = Member("m", tagger.config, 1.0, tagger.state_dict())
    ensemble = quantize_artifact(Artifact(tiny_schema, None, (member,), {}))
    save_artifact(tmp_path / "m.reeltag", ensemble)
    pattern = str(tiny_shards / "test-*")
    assert main(["predict", str(tmp_path / "m.reeltag"), pattern, "--out", str(tmp_path / "tags.csv")]) == 0
    assert main(["export", str(tmp_path / "m.reeltag"), "--out", str(tmp_path / "m.onnx"), "--check", pattern]) == 0
    batches = list(stream_batches(read_examples(find_files([pattern]), tiny_schema), tiny_schema, 3))
    lines = onnx_alone.kaggle_csv(tmp_path / "m.onnx", batches, tmp_path)
    onnx_alone.assert_same_scores(lines, (tmp_path / "tags.csv").read_text().splitlines())


def python_blocks(page):
    """Return the Python examples of a page, in order."""
    return [part.partition("```")[0] for part in (REPO / "docs" / page).read_text().split("```python\n")[1:]]


def test_the_example_of_the_docs_runs_without_reeltag(tmp_path):
    ensemble = replace(small_artifact("mean", {}), label_names=tuple("äbcdefghi"))
    onnx_file(ensemble, tmp_path)
    (code,) = python_blocks("onnx.md")
    command = [sys.executable, "-c", onnx_alone.BLOCKED + code]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = in_mode(ensemble, "exact").predict(np.zeros((5, 16), np.uint8))
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [name for name, _ in lines] == ["äbcdefghi"[number] for number in np.argsort(-expected)[:5]]
    np.testing.assert_allclose([float(score) for _, score in lines], np.sort(expected)[::-1][:5], atol=1e-6)


def test_the_onnx_form_of_a_user_defined_family(tmp_path, monkeypatch):
    """Run the example of docs/models.md."""
    family, rule, form = python_blocks("models.md")[-3:]
    (tmp_path / "maximum_export.py").write_text(family)
    monkeypatch.syspath_prepend(tmp_path)
    maximum = importlib.import_module("maximum_export")
    monkeypatch.setitem(FAMILIES, "maximum", maximum.MaximumConfig)
    monkeypatch.setitem(POOLINGS, "maximum", maximum.Maximum)
    exec("from __future__ import annotations\n" + form, {**vars(poolings), "Maximum": maximum.Maximum})
    exec("from __future__ import annotations\n" + rule, {**vars(shapes), "MaximumConfig": maximum.MaximumConfig})
    tagger = stirred(build_tagger(maximum.MaximumConfig(family="maximum"), SCHEMA.widths, CLASSES, 0))
    sizes = shapes.tagger_shapes(tagger.config, SCHEMA.widths, CLASSES)
    assert sum(map(math.prod, sizes.parameters)) == sum(each.numel() for each in tagger.parameters())
    ensemble = Artifact(SCHEMA, None, (Member("m", tagger.config, 1.0, tagger.state_dict()),), {})
    expected = in_mode(ensemble, "exact").predict(FRAMES, LENGTHS)
    np.testing.assert_allclose(probabilities(onnx_file(ensemble, tmp_path), "exact"), expected, atol=1e-5)
