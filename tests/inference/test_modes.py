"""The modes of a loaded model: exact, bf16, small and fast."""

import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import reeltag
from reeltag.artifact.file import save_artifact
from reeltag.artifact.quantization.encodings import CodedTensor, QuantizedTensor
from reeltag.artifact.quantization.linear import (
    INT8_ROWS,
    Int8Weight,
    QuantizedWeight,
    dequantized_state,
    int8_products_gain,
    int8_state,
    multiply_int8,
    quantized_state,
)
from reeltag.artifact.quantization.quantize import quantize_tensor
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.inference.engines.ways import WEIGHTS
from reeltag.inference.predictor import Predictor
from small_models import battery, in_mode, small_artifact, stored_in, videos

needs_int8 = pytest.mark.skipif(not int8_products_gain(), reason="8-bit products of this CPU are slow or not exact")


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@battery
@pytest.mark.parametrize("encoding", ["uniform-8", "group-4", "coded"])
def test_small_equals_exact_and_fast_is_close_for_every_family(family, form, encoding, everything_is_large):
    ensemble = small_artifact(family, form, encoding)
    weights = quantized_state(ensemble.members[0].state).values()
    assert any(isinstance(weight, QuantizedWeight) for weight in weights)
    frames, lengths = videos()[0].numpy(), np.array([7, 3, 7, 1, 5, 2])
    exact, small, fast = (in_mode(ensemble, mode).predict(frames, lengths) for mode in ("exact", "small", "fast"))
    np.testing.assert_allclose(small, exact, atol=2e-6)
    assert np.abs(fast - exact).max() < 0.2 * exact.std()


@battery
def test_coded_models_compute_with_the_values_of_their_codes(family, form, everything_is_large):
    """Compare with a model of plain weights, each the product of its code and its step."""
    ensemble = small_artifact(family, form, "coded")
    (member,) = ensemble.members
    plain = {
        name: torch.from_numpy(each.codes.numpy() * each.steps.numpy().astype(np.float32))
        if isinstance(each, CodedTensor)
        else each
        for name, each in member.state.items()
    }
    plain = replace(ensemble, members=(replace(member, state=plain),))
    frames, lengths = videos()[0].numpy(), np.array([7, 3, 7, 1, 5, 2])
    for mode, tolerance in (("exact", 0), ("bf16", 0.05), ("small", 2e-6)):
        expected = in_mode(plain, "exact").predict(frames, lengths)
        np.testing.assert_allclose(in_mode(ensemble, mode).predict(frames, lengths), expected, rtol=0, atol=tolerance)


@battery
def test_fast_keeps_coded_weights_exactly(family, form, everything_is_large):
    """Also those whose outputs come first, which are in no 8-bit product."""
    state = small_artifact(family, form, "coded").members[0].state
    matrices = [name for name, value in state.items() if isinstance(value, CodedTensor) and len(value.size) == 2]
    prepared = int8_state(state)
    for name in matrices:
        expected = state[name].dequantize()
        torch.testing.assert_close(prepared[name].stored.dequantize(), expected, rtol=1e-7, atol=0)
        assert (type(prepared[name]) is Int8Weight) == (not state[name].outputs_first)
    if family in ("attention", "nextvlad"):
        assert any(state[name].outputs_first for name in matrices)


@pytest.mark.parametrize("build", [dequantized_state, quantized_state, int8_state])
def test_small_matrices_beside_coded_weights_are_dequantized_once(build):
    """They are stored in float16, and 8 bits would change them."""
    small = stored_in("float16", matrix(20, 30))
    prepared = build({"head.gates": small, "hidden.weight": small})
    for weight in prepared.values():
        assert type(weight) is torch.Tensor and torch.equal(weight, small.dequantize())
    bf16 = dequantized_state({"hidden.weight": small}, torch.bfloat16)["hidden.weight"]
    assert torch.equal(bf16, small.dequantize()) and bf16.dtype == torch.float32


@pytest.mark.parametrize("build", [quantized_state, int8_state])
def test_a_coded_weight_whose_outputs_come_first_is_applied_exactly(build):
    codes = torch.randint(-127, 128, (90, 200), dtype=torch.int8)
    stored = CodedTensor(codes, torch.linspace(0.001, 0.02, 90).half()[:, None])
    weight, x = build({"w": stored})["w"], matrix(3, 200)
    expected = x.double() @ (codes.double() * stored.steps.double()).T
    torch.testing.assert_close(torch.nn.functional.linear(x, weight).double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(matrix(3, 90) @ weight, matrix(3, 90) @ stored.dequantize())


@pytest.mark.parametrize(
    ("mode", "kind"), [("small", QuantizedWeight), pytest.param("fast", Int8Weight, marks=needs_int8)]
)
def test_the_large_products_use_the_codes(mode, kind, everything_is_large, monkeypatch):
    """Check all products of a NetVLAD with a mixture of experts but the pooling's, which scales its weights."""
    predictor, shapes = in_mode(small_artifact("netvlad", {"clusters": 4}), mode), []
    product = kind.left_multiply
    monkeypatch.setattr(kind, "left_multiply", lambda self, x: shapes.append(tuple(self.shape)) or product(self, x))
    predictor.predict(videos()[0].numpy())
    assert shapes == [(56, 8), (8, 8), (8, 27), (8, 18)]


@pytest.mark.parametrize("encoding", [encoding for encoding in ENCODINGS if encoding != "float32"])
def test_rows_of_a_quantized_matrix_dequantize_to_the_same_rows(encoding):
    stored = stored_in(encoding, matrix(200, 24))
    assert isinstance(stored, QuantizedTensor) and stored.size == (200, 24)
    torch.testing.assert_close(stored.rows(slice(64, 192)).dequantize(), stored.dequantize()[64:192], rtol=0, atol=0)
    torch.testing.assert_close(stored.rows(slice(192, 448)).dequantize(), stored.dequantize()[192:], rtol=0, atol=0)


@pytest.mark.parametrize(("encoding", "loss"), [("uniform-8", 2e-6), ("channel-8", 2e-6), ("kmeans-8", 0.02)])
def test_int8_weights_keep_evenly_spaced_codes_and_approximate_others(encoding, loss):
    stored = quantize_tensor(matrix(200, 90), encoding)
    weight = int8_state({"w": stored})["w"]
    assert 0 < (weight.stored.dequantize() - stored.dequantize()).abs().max() <= loss


@needs_int8
def test_int8_products_equal_exact_products_of_rounded_inputs():
    """Compare with float64: only x is rounded, to 255 steps for each part of each row."""
    weight = int8_state({"w": quantize_tensor(matrix(INT8_ROWS + 100, 5), "channel-8")})["w"]
    x = matrix(3, INT8_ROWS + 100, seed=1) * torch.tensor([[1.0], [1e-3], [50.0]])
    floats = weight.stored.dequantize().double().numpy()
    rounded = np.empty(x.shape)
    for part in (slice(0, INT8_ROWS), slice(INT8_ROWS, None)):
        step = np.abs(x[:, part].numpy()).max(1, keepdims=True) / np.float32(127)
        rounded[:, part] = np.rint(x[:, part].numpy() / step) * step
    zero = weight.stored.zero.double().numpy()
    # The zero point of the weights is multiplied by x itself, not by the rounded x.
    expected = rounded @ (floats - zero) + x.double().numpy().sum(1, keepdims=True) * zero
    np.testing.assert_allclose((x @ weight).numpy(), expected, rtol=1e-4, atol=1e-3 * np.abs(expected).mean())


@needs_int8
def test_torch_multiplies_8_bit_integers_with_exact_sums():
    assert hasattr(torch, "_int_mm"), "this torch has no _int_mm: mode fast needs another int8 product (multiply_int8)"
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((3, INT8_ROWS), (INT8_ROWS, 5)))
    for rows in (a, a[:1]):
        expected = rows.numpy().astype(np.int64) @ b.numpy().astype(np.int64)
        np.testing.assert_array_equal(multiply_int8(rows, b.t().contiguous().t()).numpy(), expected)


@pytest.mark.parametrize("build", [quantized_state, int8_state])
def test_other_operations_use_the_dequantized_weight(build):
    weight = build({"w": quantize_tensor(matrix(200, 90), "channel-8")})["w"]
    floats, x = weight.stored.dequantize(), matrix(90, 3)
    torch.testing.assert_close(weight.T, floats.T, rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([weight, weight]), torch.cat([floats, floats]), rtol=0, atol=0)
    torch.testing.assert_close(torch.nn.functional.linear(x.T, weight), x.T @ floats.T, rtol=0, atol=0)
    torch.testing.assert_close(weight @ x, floats @ x, rtol=0, atol=0)
    parameter = torch.nn.Parameter(weight, requires_grad=False)
    assert isinstance(parameter, torch.nn.Parameter) and parameter.stored is weight.stored
    assert (parameter.shape, parameter.dtype, parameter.device.type) == ((200, 90), torch.float32, "cpu")
    assert not any(type(each) is not torch.Tensor for each in (weight.T, weight + 1, weight[0], weight.clone()))


def test_fast_computes_as_exact_where_8_bit_products_are_wrong():
    """findings/torch-int8-product-hidden-vnni.sh: torch's own product is wrong where VNNI is hidden."""
    program = """
import torch
from reeltag.artifact.quantization.linear import dequantized_state, fast_state
from reeltag.artifact.quantization.quantize import quantize_tensor
for seed in range(2):
    state = {"w": quantize_tensor(torch.randn(200, 90, generator=torch.Generator().manual_seed(seed)), "channel-8")}
    weight = fast_state(state)["w"]
    assert type(weight) is torch.Tensor and torch.equal(weight, dequantized_state(state)["w"])
"""
    paths = os.pathsep.join(sys.path)
    environment = os.environ | {"PYTHONPATH": paths, "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("mode fast computes as exact") == 1, "one remark, however many weights"


@needs_int8
def test_int8_sums_of_extreme_codes_do_not_overflow():
    rows = 9 * INT8_ROWS
    weight = int8_state({"w": quantize_tensor(matrix(rows, 2), "channel-8")})["w"]
    for part in weight.stored.parts:
        part.fill_(-128)
    expected = weight.stored.dequantize().double().sum(0)
    np.testing.assert_allclose((torch.ones(5, rows) @ weight).double(), expected.expand(5, 2), rtol=1e-5)


def test_fast_results_do_not_depend_on_the_rest_of_the_batch(everything_is_large):
    predictor = in_mode(small_artifact("netvlad", {"clusters": 4}), "fast")
    frames = videos()[0].numpy()
    together = predictor.predict(frames)
    for number, video in enumerate(frames):
        np.testing.assert_allclose(predictor.predict(video), together[number], atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "small", "fast"])
def test_several_threads_can_share_a_predictor(mode, everything_is_large):
    predictor = in_mode(small_artifact("netfv", {"clusters": 4}), mode)
    batches = [videos(seed=seed)[0].numpy() for seed in range(16)]
    alone = [predictor.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for expected, probabilities in zip(alone, pool.map(predictor.predict, batches), strict=True):
            np.testing.assert_array_equal(probabilities, expected)


def test_predict_each_equals_predict_and_reads_one_batch_ahead(monkeypatch):
    monkeypatch.setattr("reeltag.inference.predictor.BATCH_SIZE", 3)
    predictor = in_mode(small_artifact("netvlad", {"clusters": 4}), "exact")
    frames = [video[:length] for video, length in zip(videos(8)[0].numpy(), (7, 1, 3, 7, 2, 5, 6, 4), strict=True)]
    read = []
    results = predictor.predict_each(read.append(len(video)) or video for video in frames)
    first = next(results)
    assert read == [7, 1, 3]  # one batch of three
    for alone, each in zip(map(predictor.predict, frames), [first, *results], strict=True):
        np.testing.assert_allclose(each, alone, atol=1e-6)
    assert list(predictor.predict_each([])) == []
    for bad in (frames[0][:, :3], frames[0].astype(np.float32), frames[0][:0], np.uint8(3)):
        with pytest.raises(UsageError, match=r"video 1: frames (are|hold)"):
            list(predictor.predict_each([frames[0], bad]))


def test_loading_holds_the_stored_weights_of_one_member_at_a_time(tmp_path, monkeypatch, everything_is_large):
    single = small_artifact("netvlad", {"clusters": 4})
    members = tuple(replace(single.members[0], name=f"m{number}", weight=0.25) for number in range(4))
    path = tmp_path / "four.reeltag"
    save_artifact(path, replace(single, members=members))
    stored, alive = [], []

    def count(state):
        stored.extend(weakref.ref(value) for value in state.values() if isinstance(value, QuantizedTensor))
        alive.append(sum(reference() is not None for reference in stored))
        return dequantized_state(state)

    monkeypatch.setitem(WEIGHTS, "exact", count)
    predictor = reeltag.load(path)
    assert len(predictor.model.taggers) == 4
    assert alive[0] > 0
    assert alive == [len(stored) // 4] * 4
    assert not any(reference() for reference in stored)


def test_a_damaged_member_of_weight_0_is_refused(tmp_path):
    single = small_artifact("mean", {})
    unused = replace(small_artifact("mean", {}).members[0], name="unused", weight=0.0)
    path = tmp_path / "m.reeltag"
    save_artifact(path, replace(single, members=(*single.members, unused)))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="damaged"):
        reeltag.load(path)


def test_unknown_modes_and_devices_are_refused(tmp_path):
    ensemble = small_artifact("mean", {})
    with pytest.raises(UsageError, match="no 'tiny'; use auto, exact, bf16, small, fast"):
        in_mode(ensemble, "tiny")
    with pytest.raises(UsageError, match="'fast' runs on CPUs only"):
        Predictor(ensemble, ensemble.members, "fast", "cuda")
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(UsageError, match=f"device: '{device}' is not available"):
            Predictor(ensemble, ensemble.members, "exact", device)


def test_inputs_that_are_not_frames_are_refused():
    predictor = in_mode(small_artifact("mean", {}), "exact")
    for bad in (3, None, [[1, 2], [3]], np.zeros((2, 2, 2, 16), np.uint8)):
        with pytest.raises(UsageError, match="frames are"):
            predictor.predict(bad)


def test_an_artifact_without_weights_is_not_saved(tmp_path):
    predictor = in_mode(small_artifact("mean", {}), "exact")
    with pytest.raises(UsageError, match="m has no weights"):
        save_artifact(tmp_path / "m.reeltag", predictor.artifact)
