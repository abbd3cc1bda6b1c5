"""Files that earlier versions wrote, in `tests/golden/written_before`.

Those of format 2 are by reeltag 0.1.0, before its modules moved into packages; those of format 3 by the first version
with the encoding `coded`. Each holds two members (a NetVLAD with a mixture of experts, a GRU or an LSTM) in one
encoding. `expected.npz` has frames, the probabilities that that version computed for them, and the SHA-256 of each
member's tensors as they were dequantized before they were saved.
"""

import hashlib

import numpy as np
import pytest
import torch

import reeltag
from conftest import REPO
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.artifact.quantization.quantize import dequantize_state, stored_as
from reeltag.artifact.quantization.sizes import DATA_FREE, ENCODINGS
from reeltag.core import tensorfile

FOLDER = REPO / "tests" / "golden" / "written_before"
EXPECTED = {number: dict(np.load(FOLDER / f"format_{number}" / "expected.npz")) for number in (2, 3)}
FILES = [*((2, encoding) for encoding in DATA_FREE), *((3, encoding) for encoding in ENCODINGS)]
every_file = pytest.mark.parametrize(("number", "encoding"), FILES)


def written(number, encoding):
    return FOLDER / f"format_{number}" / f"{encoding}.reeltag"


def test_every_encoding_has_a_file():
    assert sorted(FOLDER.glob("*/*.reeltag")) == sorted(written(*each) for each in FILES)


def test_some_codes_are_stored_in_fewer_bytes():
    for encoding, least in (("float16", 1), ("coded", 4)):
        file = tensorfile.TensorFile(written(3, encoding))
        assert sum(map(file.is_coded, file.names)) >= least


@every_file
def test_the_tensors_have_the_same_bits(number, encoding, tmp_path):
    artifact = load_artifact(written(number, encoding))
    names = {"kmeans-8": "kmeans-8 or quantile-8", "quantile-8": "kmeans-8 or quantile-8", "coded": "coded and float16"}
    for member in artifact.members:
        assert stored_as(member.state) == names.get(encoding, encoding)
        state = dequantize_state(member.state)
        digest = hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).digest()
        assert digest == EXPECTED[number][f"sha256:{encoding}:{member.name}"].tobytes()
    assert tensorfile.TensorFile(written(number, encoding)).content["format"] == number
    save_artifact(tmp_path / "again.reeltag", artifact)
    (tensors, header), (before, old_header) = map(
        tensorfile.load_tensors, (tmp_path / "again.reeltag", written(number, encoding))
    )
    assert header == old_header | {"format": 3}
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], before[name]) for name in before)


@every_file
@pytest.mark.parametrize("mode", ["exact", "small"])
def test_the_probabilities_are_the_same(number, encoding, mode):
    expected = EXPECTED[number]
    model = reeltag.load(written(number, encoding), mode, "cpu")
    probabilities = model.predict(expected["frames"], expected["lengths"])
    # Other CPUs sum in another order, which changes the last bits.
    np.testing.assert_allclose(probabilities, expected[f"probabilities:{encoding}"], atol=1e-6, rtol=0)


@every_file
def test_the_onnx_export_gives_the_same_probabilities(number, encoding, tmp_path):
    pytest.importorskip("onnx", reason="needs the extra onnx")
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    reeltag.export_onnx(written(number, encoding), tmp_path / "m.onnx")
    expected = EXPECTED[number]
    session = reeltag.open_onnx(tmp_path / "m.onnx", threads=1)
    (probabilities,) = session.run(None, {name: expected[name] for name in ("frames", "lengths")})
    np.testing.assert_allclose(probabilities, expected[f"probabilities:{encoding}"], atol=1e-5, rtol=0)
