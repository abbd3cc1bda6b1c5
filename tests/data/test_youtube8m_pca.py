"""YouTube-8M's image features: Inception's 2048 values → 1024, as far as the published files reach.

There are the mean, the eigenvalues and one frame before and after, of google/youtube-8m; the eigenvectors are missing.
The frames fix their product with one vector, so that any orthonormal ones with that product have to give the reference.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import DATA
from reeltag.data.pca import load_projections, to_codes
from reeltag.data.video.extractors.registry import image_extractor

FILES = DATA / "extractors"


@pytest.fixture(scope="module")
def frame():
    """Mean, eigenvalues, and the frame before and after, in float64."""
    if not (FILES / "sports1m_frame.npz").is_file():
        pytest.skip(f"no files of YouTube-8M in {FILES}")
    mean, variances = (
        np.load(FILES / f"yt8m_pca_{name}.npy").astype(np.float64).ravel() for name in ("mean", "eigenvals")
    )
    with np.load(FILES / "sports1m_frame.npz") as file:
        return mean, variances, file["original"], file["pca"]


def reflection(before, after):
    """The orthogonal matrix that mirrors one vector to another of the same length."""
    normal = (before - after) / np.linalg.norm(before - after)
    return np.eye(len(before)) - 2 * np.outer(normal, normal)


def test_the_files_are_of_one_pca(frame):
    mean, variances, original, projected = frame
    kept = (projected**2 * (variances[:1024] + 1e-4)).sum()  # whitening undone
    assert kept / ((original - mean) ** 2).sum() == pytest.approx(0.9974, abs=1e-4)


def test_a_frame_becomes_the_published_one(frame, tmp_path):
    mean, variances, original, projected = frame
    centred = original - mean
    target = np.zeros(2048)
    target[:1024] = projected * np.sqrt(variances[:1024] + 1e-4)
    target[1024] = np.sqrt(centred @ centred - target @ target)  # what the 1024 components leave out
    arrays = {"mean": mean[:, None], "eigenvals": variances[:, None], "eigenvecs": reflection(centred, target)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array.astype(np.float32))

    nodes = [
        helper.make_node("ReduceMean", ["x"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["colour", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "frame"], ["pool"]),
    ]
    constants = {"nothing": np.zeros((3, 2048), np.float32), "frame": original.astype(np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 299, 299])],
        [helper.make_tensor_value_info("pool", TensorProto.FLOAT, ["N", 2048])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "inception.onnx")

    extractor = image_extractor(f"inception:{tmp_path / 'inception.onnx'}")
    values = extractor.values(np.zeros((1, 299, 299, 3), np.uint8))
    projection = load_projections(tmp_path, {"rgb": extractor.identity})["rgb"]
    assert projection.widths == (2048, 1024)
    np.testing.assert_allclose(projection(values)[0], projected, atol=1e-3)
    # The codes of the data set: values of [-2, 2] cut off to 8 bits.
    published = ((projected.clip(-2, 2) + 2) * (255 / 4)).astype(np.uint8)
    assert (to_codes(projection(values))[0] != published).mean() < 0.01
