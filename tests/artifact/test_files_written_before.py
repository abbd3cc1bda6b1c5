"""Files of format 2 that reeltag 0.1.0 wrote before its modules moved into packages, in `tests/golden/written_before`.

Each holds two members (a NetVLAD with a mixture of experts, a GRU) in one encoding. `expected.npz` has frames, the
probabilities that the old code computed for them, and the SHA-256 of each member's dequantized tensors.
"""

import hashlib

import numpy as np
import pytest
import torch

import reeltag
from conftest import REPO
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.artifact.quantization.quantize import dequantize_state, stored_as
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.core import tensorfile

FOLDER = REPO / "tests" / "golden" / "written_before"
EXPECTED = dict(np.load(FOLDER / "expected.npz"))
FRAMES, LENGTHS = EXPECTED["frames"], EXPECTED["lengths"]


def written(encoding):
    return FOLDER / f"{encoding}.reeltag"


def test_every_encoding_has_a_file():
    assert sorted(path.stem for path in FOLDER.glob("*.reeltag")) == sorted(ENCODINGS)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_tensors_have_the_same_bits(encoding, tmp_path):
    artifact = load_artifact(written(encoding))
    names = {"kmeans-8": "kmeans-8 or quantile-8", "quantile-8": "kmeans-8 or quantile-8"}
    for member in artifact.members:
        assert stored_as(member.state) == names.get(encoding, encoding)
        state = dequantize_state(member.state)
        digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).digest()
        assert digest == EXPECTED[f"sha256:{encoding}:{member.name}"].tobytes()
    assert tensorfile.TensorFile(written(encoding)).content["format"] == 2
    save_artifact(tmp_path / "again.reeltag", artifact)
    (tensors, header), (before, old_header) = map(
        tensorfile.load_tensors, (tmp_path / "again.reeltag", written(encoding))
    )
    assert header == old_header | {"format": 3}
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mode", ["exact", "small"])
def test_the_probabilities_are_the_same(encoding, mode):
    probabilities = reeltag.load(written(encoding), mode, "cpu").predict(FRAMES, LENGTHS)
    # Other CPUs sum in another order, which changes the last bits.
    np.testing.assert_allclose(probabilities, EXPECTED[f"probabilities:{encoding}"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_onnx_export_gives_the_same_probabilities(encoding, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    reeltag.export_onnx(written(encoding), tmp_path / "m.onnx")
    session = reeltag.open_onnx(tmp_path / "m.onnx", threads=1)
    (probabilities,) = session.run(None, {"frames": FRAMES, "lengths": LENGTHS})
    np.testing.assert_allclose(probabilities, EXPECTED[f"probabilities:{encoding}"], atol=1e-5, rtol=0)
