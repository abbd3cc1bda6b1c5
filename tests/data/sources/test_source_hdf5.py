"""HDF5 files, written by h5py."""

import numpy as np
import pytest

from sources import error_of, read

h5py = pytest.importorskip("h5py")

FRAMES = np.arange(40, dtype=np.float32).reshape(5, 8) / 8


def _write(path, content):
    """Write datasets by name; a dict is the attributes of the group of that name."""
    with h5py.File(path, "w") as file:
        for name, values in content.items():
            if isinstance(values, dict):
                file.require_group(name).attrs.update(values)
            else:
                file[name] = values
    return path


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"b/rgb": FRAMES, "a/rgb": FRAMES[:2], "b": {"labels": [1]}}, {"a": None, "b": [1]}),
        ({"train/a/rgb": FRAMES, "test/a/rgb": FRAMES}, {"test/a": None, "train/a": None}),
        ({"a/rgb": FRAMES, "a/label": 3, "a/timestamps": np.arange(5), "a/title": "x"}, {"a": [3]}),
        ({"a/rgb": FRAMES, "b/rgb": FRAMES, "a/labels": ["cat", "dog"]}, {"a": ["cat", "dog"], "b": None}),
        ({"a/rgb": FRAMES, "b/rgb": FRAMES, "class_names": ["cat"]}, {"a": None, "b": None}),  # beside the videos
        ({"a": FRAMES, "b": FRAMES[:2]}, {"a": None, "b": None}),
        ({"train/a": FRAMES, "test/b": FRAMES}, {"test/b": None, "train/a": None}),
        ({"rgb": FRAMES, "audio": FRAMES[:, :3], "labels": [0, 2]}, {"x": [0, 2]}),
        ({"resnet": FRAMES, "vggish": FRAMES[:, :3]}, {"x": None}),
        ({"features": FRAMES}, {"x": None}),
        ({"clip9": FRAMES}, {"clip9": None}),
        ({"a": FRAMES[0], "b": FRAMES[1]}, {"a": None, "b": None}),  # video level
    ],
)
def test_groups_datasets_or_files_are_videos(content, expected, tmp_path):
    assert {video.id: video.labels for video in read(_write(tmp_path / "x.h5", content))} == expected


def test_files_with_the_same_datasets_are_videos(tmp_path):
    for name in "ab":
        _write(tmp_path / f"{name}.h5", {"resnet": FRAMES})
    assert [(video.id, list(video.features)) for video in read(tmp_path)] == [("a", ["resnet"]), ("b", ["resnet"])]


def test_a_table_pads_videos_to_one_length_and_has_n_hot_labels(tmp_path):
    content = {
        "audio_name": np.array(["a.wav", "b.wav"], "S20"),
        "x": np.stack([FRAMES, FRAMES]),
        "lengths": np.array([5, 2]),
        "target": np.array([[1, 0, 1], [0, 0, 1]], bool),
        "notes": ["first", "second"],
    }
    first, second = read(_write(tmp_path / "x.h5", content))
    assert (first.id, first.labels, second.labels) == ("a.wav", [True, False, True], [False, False, True])
    assert np.array_equal(second.features["x"], FRAMES[:2])
    del content["audio_name"], content["notes"]
    assert [video.id for video in read(_write(tmp_path / "x.h5", content))] == ["x:0", "x:1"]


def test_a_table_holds_video_level_features_or_lists_of_frames_one_after_the_other(tmp_path):
    read_back = read(_write(tmp_path / "x.h5", {"video_id": [7, 8], "x": FRAMES[:2].astype("f2")}))
    assert [(video.id, video.features["x"].shape) for video in read_back] == [("7", (8,)), ("8", (8,))]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["id"], file["num_frames"] = ["a", "b"], [5, 2]
        lists = file.create_dataset("rgb", (2,), h5py.vlen_dtype(np.float32))
        lists[0], lists[1] = FRAMES.ravel(), FRAMES[:2].ravel()
    for video, length in zip(read(tmp_path / "x.h5"), (5, 2), strict=True):
        assert np.array_equal(video.features["rgb"], FRAMES[:length])


def test_links_and_virtual_datasets_are_followed(tmp_path):
    _write(tmp_path / "part.h5", {"rgb": FRAMES})
    layout = h5py.VirtualLayout((5, 8), np.float32)
    layout[:] = h5py.VirtualSource("part.h5", "rgb", (5, 8))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["a/rgb"] = h5py.ExternalLink("part.h5", "rgb")
        file.create_group("b").create_virtual_dataset("rgb", layout)
        file["c"] = h5py.SoftLink("/b")
    for video in read(tmp_path / "all.h5"):
        assert np.array_equal(video.features["rgb"], FRAMES)


def test_values_that_hdf5_would_make_up_are_refused(tmp_path):
    _write(tmp_path / "part.h5", {"rgb": FRAMES})
    for source, frames, message in [
        (("part.h5", "flow"), 5, "takes values from flow of part.h5, which is missing"),
        (("gone.h5", "rgb"), 5, "takes values from rgb of gone.h5, which is missing"),
        (("part.h5", "rgb"), 9, "takes only some of its values from other datasets"),
    ]:
        layout = h5py.VirtualLayout((frames, 8), np.float32)
        layout[:5] = h5py.VirtualSource(*source, (5, 8))
        with h5py.File(tmp_path / "all.h5", "w") as file:
            file.create_group("a").create_virtual_dataset("rgb", layout)
        assert message in error_of(tmp_path / "all.h5")
    for chunks in (None, (5, 8)):
        with h5py.File(tmp_path / "all.h5", "w") as file:
            dataset = file.create_dataset("a/rgb", (50, 8), "f4", chunks=chunks)
            if chunks:
                dataset[:10] = 1
        assert ": /a: 'rgb' was created, but some of it never written" in error_of(tmp_path / "all.h5")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"x": np.stack([FRAMES])}, ": /: has videos without ids"),
        ({"x": np.stack([FRAMES]), "target": np.eye(2)}, ": /: 'target' has 2 rows, but 'x' has 1"),
        ({"resnet": FRAMES, "vggish": FRAMES[:3, :3]}, ": resnet [5, 8], vggish [3, 3]: neither videos of one width"),
        ({"a/rgb": FRAMES, "flow": FRAMES}, ": /: has the dataset 'flow' beside groups"),
        ({"a/rgb": FRAMES, "a/self": h5py.SoftLink("/a")}, ": /a: has the dataset 'rgb' beside groups"),
        ({"a/b": h5py.SoftLink("/a")}, ": /a/b/b/b/b/b/b/b/b: groups lie more than 8 deep; does a link lead back?"),
        ({"a/rgb": h5py.ExternalLink("gone.h5", "rgb")}, ": cannot be read"),
        ({"a/rgb": np.zeros(3, [("x", "f4")])}, ": /a: 'rgb' holds [('x', '<f4')]; store uint8 codes or floats"),
        ({"a/rgb": FRAMES, "b/rgb": FRAMES[:0]}, ": /b: 'rgb' has 0 frames"),
        ({"a/rgb": FRAMES, "b/flow": FRAMES * np.nan, "b/rgb": FRAMES}, ": /b: frame 0 of 'flow' holds NaN"),
        ({}, ": has no datasets"),
    ],
)
def test_files_that_are_unclear_or_broken_are_refused(content, message, tmp_path):
    assert error_of(_write(tmp_path / "x.h5", content)).startswith(message)


def test_ragged_lists_and_cut_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        lists = file.create_dataset("a/rgb", (2,), h5py.vlen_dtype(np.float32))
        lists[0], lists[1] = [1, 2], [3]
    assert ": /a: 'rgb' holds objects or ragged lists" in error_of(tmp_path / "x.h5")
    content = _write(tmp_path / "x.h5", {"a/rgb": FRAMES}).read_bytes()
    (tmp_path / "x.h5").write_bytes(content[:-40])
    assert "cannot be read (Unable to synchronously open file (truncated file" in error_of(tmp_path / "x.h5")


def test_many_groups_are_read_in_parts_that_cover_them_once(tmp_path, monkeypatch):
    monkeypatch.setattr("reeltag.data.sources.hdf5.MIN_VIDEOS", 4)
    _write(tmp_path / "x.h5", {f"v{number:02}/rgb": FRAMES[: number % 5 + 1] for number in range(10)})
    assert [video.id for video in read(tmp_path / "x.h5")] == [f"v{number:02}" for number in range(10)]
