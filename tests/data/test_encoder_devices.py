"""ONNX extractors use an NVIDIA GPU where onnxruntime has one, and say so; elsewhere the CPU."""

import logging

import numpy as np
import onnxruntime
import pytest

from mean_graph import write_mean_graph
from reeltag.cli.doctor import findings
from reeltag.data.video.extractors.onnx_graph import ImageModel

GPU = "CUDAExecutionProvider"


@pytest.fixture
def network(tmp_path):
    return write_mean_graph(tmp_path / "net.onnx")


@pytest.fixture
def with_gpu(monkeypatch):
    """A build of onnxruntime for GPUs, on a machine without one."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [GPU, "CPUExecutionProvider"])


class _OnGpu(onnxruntime.InferenceSession):
    """Stands in for a session on a GPU, and computes on the CPU."""

    def __init__(self, path, options, providers):
        (name, settings), last = providers
        assert (name, settings["use_tf32"], last) == (GPU, "0", "CPUExecutionProvider")
        super().__init__(path, options, providers=[last])

    def get_providers(self):
        return [GPU, "CPUExecutionProvider"]


def test_on_the_cpu_nothing_is_said(network, caplog):
    ImageModel(str(network))
    assert caplog.messages == []


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_that_cannot_start_is_named_once_and_the_cpu_computes(network, caplog, with_gpu):
    pictures = np.zeros((2, 8, 8, 3), np.uint8)
    with caplog.at_level(logging.WARNING):
        model = ImageModel(str(network))
        model(pictures)
    assert caplog.messages == [f"{network}: on the CPU, since onnxruntime's {GPU} cannot start here"]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_is_used_and_named_and_the_extractor_stays_the_same(network, caplog, with_gpu, monkeypatch):
    on_cpu = ImageModel(str(network)).identity
    caplog.clear()
    monkeypatch.setattr(onnxruntime, "InferenceSession", _OnGpu)
    model = ImageModel(str(network))
    assert caplog.messages == [f"{network}: on {GPU}, whose values differ from the CPU's in the last digits"]
    assert model.identity == on_cpu


def test_doctor_names_the_device(monkeypatch, with_gpu):
    (found,) = (finding for finding in findings() if finding.name == "ONNX encoders")
    assert (found.value, found.hint) == (f"{GPU}, if its libraries load", "")
