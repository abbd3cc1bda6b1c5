"""`.npy` and `.npz` files, written by NumPy."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from reeltag.core.errors import DataError
from reeltag.data.formats.example import MAX_VALUE
from reeltag.data.sources.conversion import to_feature
from reeltag.data.sources.npy import read_arrays
from sources import error_of, read

FRAMES = np.arange(12, dtype=np.float32).reshape(3, 4) - 5


def test_an_array_is_the_only_feature_in_any_order_of_bytes_and_axes(tmp_path):
    np.save(tmp_path / "big.npy", FRAMES.astype(">f8"))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(FRAMES))
    np.save(tmp_path / "half.npy", FRAMES.astype("<f2"))
    np.save(tmp_path / "slice.npy", np.repeat(FRAMES, 2, axis=1)[:, ::2])
    for video in read(tmp_path):
        assert video.features["features"].dtype == np.float32
        assert np.array_equal(video.features["features"], FRAMES)


def test_ids_are_paths_in_the_folder_in_one_unicode_form(tmp_path):
    (tmp_path / "été").mkdir()
    np.save(tmp_path / "été/a.b 1.npy", FRAMES)
    np.save(tmp_path / "e\N{COMBINING ACUTE ACCENT}.npy", FRAMES[0])
    videos = read(tmp_path)
    assert [video.id for video in videos] == ["é", "été/a.b 1"]
    assert videos[0].features["features"].shape == (4,)


def test_an_archive_may_hold_id_labels_and_times(tmp_path):
    np.savez(tmp_path / "x.npz", rgb=FRAMES, timestamps=np.arange(3), id="clip7", labels=["cat", "dog"], note="n", n=3)
    (video,) = read(tmp_path)
    assert (video.id, video.labels, list(video.features)) == ("clip7", ["cat", "dog"], ["rgb"])


def test_an_archive_may_be_a_table_of_videos(tmp_path):
    padded = np.stack([FRAMES, FRAMES + 1])
    np.savez(tmp_path / "all.npz", rgb=padded, video_id=["a", "b"], num_frames=[3, 2], y=np.eye(2, dtype=bool))
    videos = read(tmp_path / "all.npz")
    assert [(video.id, video.labels) for video in videos] == [("a", [True, False]), ("b", [False, True])]
    assert np.array_equal(videos[1].features["rgb"], FRAMES[:2] + 1)
    np.savez(tmp_path / "all.npz", rgb=padded, label=["x", "y"])
    assert [(video.id, video.labels) for video in read(tmp_path / "all.npz")] == [("all:0", "x"), ("all:1", "y")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rgb": np.stack([FRAMES, FRAMES])}, ": has videos without ids; add an array video_id with an entry a row"),
        (
            {"rgb": np.stack([FRAMES, FRAMES]), "who": ["a", "b"], "y": [1, 2]},
            ": has videos without ids; are they",
        ),
        ({"rgb": np.stack([FRAMES, FRAMES]), "id": ["a"]}, ": 'rgb' has 2 rows, but 'id' has 1"),
        (
            {"rgb": np.stack([FRAMES]), "id": ["a"], "length": [4]},
            ", row 0: is said to have 4 frames, but 'rgb' is [3,",
        ),
        ({"rgb": np.stack([FRAMES]), "id": ["a"], "length": [0]}, ", row 0: its number of frames is 0"),
        ({"rgb": np.stack([FRAMES]), "id": [1.5]}, ", row 0: its id in 'id' is neither text nor a whole number"),
        ({"rgb": FRAMES, "mean": FRAMES[0]}, ": mean [4], rgb [3, 4]: some are of frames and some of the video"),
        ({"note": "none"}, ": has no features, arrays [T, D]; it has note"),
        ({"rgb": FRAMES[None, None]}, ": 'rgb' is [1, 1, 3, 4]; expected [T, D] or [D]"),
        ({"rgb": FRAMES[:0]}, ": 'rgb' has 0 frames; leave the video out"),
        ({"rgb": FRAMES[:, :0]}, ": 'rgb' is [3, 0], without values"),
        ({"rgb": FRAMES.astype(int)}, ": 'rgb' holds int64; store uint8 codes or floats"),
        ({"rgb": FRAMES > 0}, ": 'rgb' holds bool; store"),
        ({"rgb": FRAMES + 1j}, ": 'rgb' holds complex64; store"),
        ({"rgb": np.where(FRAMES == 0, np.nan, FRAMES)}, ": frame 1 of 'rgb' holds NaN"),
        (
            {"rgb": FRAMES.astype(float) * 1e200},
            ": frame 0 of 'rgb' holds NaN or infinite values, or some beyond ±1e+15",
        ),
    ],
)
def test_arrays_that_are_no_features_are_refused(fields, message, tmp_path):
    np.savez(tmp_path / "x.npz", **fields)
    assert error_of(tmp_path / "x.npz").startswith(message)


class _Unpickled:
    def __reduce__(self):
        return pytest.fail, ("was unpickled",)


@pytest.mark.parametrize("save", [np.save, np.savez])
def test_objects_are_never_unpickled(save, tmp_path):
    path = tmp_path / ("x.npy" if save is np.save else "x.npz")
    save(path, np.array([_Unpickled()], object), allow_pickle=True)
    assert error_of(path).startswith(": holds Python objects, which are never unpickled")
    path.write_bytes(pickle.dumps(_Unpickled()))
    assert error_of(path).startswith(": is a pickle")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_no_cut_or_changed_file_is_read_as_another(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    if suffix == ".npy":
        np.save(path, FRAMES)
    else:
        np.savez_compressed(path, rgb=FRAMES)
    content = path.read_bytes()
    for size in range(60, len(content), 7):
        path.write_bytes(content[:size])
        assert "cannot be read" in error_of(path)


def test_bytes_in_memory_are_read_like_a_file(tmp_path):
    np.savez(tmp_path / "x.npz", rgb=FRAMES)
    found = read_arrays((tmp_path / "x.npz").read_bytes(), "the body")
    assert np.array_equal(found["rgb"], FRAMES)
    with pytest.raises(DataError, match="the body: cannot be read"):
        read_arrays(b"\x93NUMPY\x01", "the body")


@settings(max_examples=40)
@given(arrays.arrays(st.sampled_from(["f2", "f4", "f8", ">f4", "u1"]), arrays.array_shapes(min_dims=1, max_dims=2)))
def test_values_keep_their_meaning_or_are_refused(values):
    known = values.astype(np.float64)
    if np.isfinite(known).all() and (np.abs(known) <= MAX_VALUE).all():
        feature = to_feature(values, "rgb", "here")
        assert feature.dtype == (np.uint8 if values.dtype == np.uint8 else np.float32)
        assert np.array_equal(feature, values.astype(feature.dtype))
    else:
        with pytest.raises(DataError, match="holds NaN or infinite values"):
            to_feature(values, "rgb", "here")
