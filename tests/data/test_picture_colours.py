"""Pictures are means over areas of the frame, in brightness and in colour."""

import av
import numpy as np
import pytest

from reeltag.data.video import decode
from reeltag.data.video.decode import Damage

RED, BLUE = (81, 90, 240), (41, 240, 110)  # Y, U and V of BT.601


def write_frame(path, planes):
    """Write a video of one frame, [height, width] uint8 Y and half as large U and V, without loss."""
    height, width = planes[0].shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        flat = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, width)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(flat, format="yuv420p")))
        container.mux(stream.encode(None))
    return path


def picture(path, height, width):
    (found,) = decode.pictures(path, (height, width), Damage())
    return found.astype(float)


@pytest.mark.parametrize("width", [32, 33])
def test_neighbours_keep_their_colours(tmp_path, width):
    halves = (1, 2, 2)
    planes = [
        np.tile(np.where(np.arange(width) % 2, blue, red).astype(np.uint8).repeat(4 // half), (32 // half, 1))
        for red, blue, half in zip(RED, BLUE, halves, strict=True)
    ]
    found = picture(write_frame(tmp_path / "stripes.mkv", planes), 8, width)
    expected = np.where((np.arange(width) % 2)[None, :, None], [0, 0, 255], [254, 0, 0])
    assert np.abs(found - expected).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(24, 36), (17, 30), (50, 20)])
def test_pictures_are_means_of_areas(tmp_path, height, width):
    rng = np.random.default_rng(0)
    blocks = [rng.integers(90, 166, (10, 12), np.uint8).repeat(10, 0).repeat(10, 1) for _ in range(3)]
    planes = [blocks[0], blocks[1][::2, ::2], blocks[2][::2, ::2]]
    y, u, v = (_means(plane.astype(float), height, width) for plane in blocks)
    y, u, v = 255 / 219 * (y - 16), 255 / 224 * (u - 128), 255 / 224 * (v - 128)
    expected = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], -1).clip(0, 255)
    found = picture(write_frame(tmp_path / "blocks.mkv", planes), height, width)
    assert 10 * np.log10(255**2 / np.square(found - expected).mean()) > 45


def _means(plane, height, width):
    return _weights(plane.shape[0], height) @ plane @ _weights(plane.shape[1], width).T


def _weights(inputs, outputs):
    """Return the share of each input in each output, [outputs, inputs]."""
    edges = np.arange(outputs + 1) * inputs / outputs
    columns = np.arange(inputs)
    shares = np.minimum(edges[1:, None], columns + 1) - np.maximum(edges[:-1, None], columns)
    return shares.clip(0) * outputs / inputs
