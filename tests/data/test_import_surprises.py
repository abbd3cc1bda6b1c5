"""Surprises of the libraries that features are read with, shown by the scripts in findings/: none may pass a reader."""

import gzip
import io
import os
import random
import tarfile
import warnings
import zipfile

import numpy as np
import pytest

from reeltag.core.errors import DataError, ReeltagError, UsageError
from reeltag.data.import_features import import_features
from reeltag.data.label_table import read_labels
from reeltag.data.sources.source import open_source, read_videos


def _videos(path):
    return {video.id: video for video in read_videos(open_source(path))}


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)


@pytest.fixture
def parts(x):
    """Return two parts of a data set that number the classes cat, dog and bird in different orders."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def part(names, labels):
        kinds = {"video_id": datasets.Value("string"), "rgb": datasets.Array2D((4, 2), "float32")}
        features = datasets.Features(**kinds, label=datasets.ClassLabel(names=names))
        rows = {"video_id": [f"{name} {names[0]}" for name in labels], "label": labels, "rgb": x[: len(labels)]}
        return datasets.Dataset.from_dict(rows, features)

    return [part(["dog", "cat", "bird"], ["cat", "dog"]), part(["bird", "dog", "cat"], ["cat", "dog", "bird"])]


def _check_names(found):
    assert {name: video.labels for name, video in found.items()} == {name: [name.split()[0]] for name in found}
    assert len(found) == 5


def test_class_names_of_each_parquet_file(tmp_path, parts):
    """findings/datasets-class-names-of-first-file.sh: datasets itself takes the names of the first file."""
    for number, part in enumerate(parts):
        part.to_parquet(tmp_path / f"{number}.parquet")
    _check_names(_videos(tmp_path))


def test_class_names_of_each_datasets_folder(tmp_path, parts):
    for number, part in enumerate(parts):
        part.shuffle(seed=1).save_to_disk(tmp_path / str(number))
    _check_names(_videos(tmp_path / "0") | _videos(tmp_path / "1"))
    _check_names(
        {name: video for each in "01" for name, video in _videos(next((tmp_path / each).glob("*.arrow"))).items()}
    )


def test_class_names_of_label_files(tmp_path, parts):
    found = {}
    for number, part in enumerate(parts):
        part.remove_columns("rgb").to_parquet(tmp_path / f"{number}.parquet")
        table = read_labels(tmp_path / f"{number}.parquet")
        found |= {name: [table.names[label] for label in labels] for name, labels in table.labels.items()}
    assert found == {name: [name.split()[0]] for name in found}
    assert len(found) == 5


def test_integers_that_datasets_renumbered(tmp_path):
    """findings/datasets-class-encode-renumbers.sh: class_encode_column stores class 10 as 2; its names say 10."""
    datasets = pytest.importorskip("datasets")
    rows = {"id": [f"v{number}" for number in range(12)], "label": list(range(12))}
    datasets.Dataset.from_dict(rows).class_encode_column("label").to_parquet(tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet")
    assert table.labels == {f"v{number}": (number,) for number in range(12)}


def test_class_without_a_name_or_unknown(tmp_path, x):
    datasets = pytest.importorskip("datasets")
    kinds = {"id": datasets.Value("string"), "rgb": datasets.Array2D((4, 2), "float32")}
    features = datasets.Features(**kinds, labels=datasets.List(datasets.ClassLabel(names=["a", "b"])))
    rows = datasets.Dataset.from_dict({"id": ["v", "w"], "labels": [[-1], [0, 1]], "rgb": x[:2]}, features)
    rows.to_parquet(tmp_path / "a.parquet")
    assert [video.labels for video in _videos(tmp_path).values()] == [None, ["a", "b"]]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    table = table.set_column(1, table.schema.field(1), pa.array([[2], [0]]))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 0.*label 2 is none of the 2 classes"):
        _videos(tmp_path)


def test_groups_of_unequal_length(tmp_path):
    """findings/datasets-hdf5-cuts-longer-groups.sh: datasets cuts all videos to the length of the first."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "videos.h5", "w") as file:
        for name, frames in (("a", 3), ("b", 5), ("c", 8)):
            file[f"{name}/x"] = np.ones((frames, 2), np.float32)
    assert [len(video.features["x"]) for video in _videos(tmp_path).values()] == [3, 5, 8]


def test_nan_that_a_filter_lost(tmp_path, x):
    """findings/hdf5-scaleoffset-hides-nan.sh: a chunk that begins with NaN is written, and can never be read."""
    h5py = pytest.importorskip("h5py")
    x[0, 0] = np.nan
    with h5py.File(tmp_path / "videos.h5", "w") as file:
        file.create_dataset("a/rgb", data=x[0], chunks=x[0].shape, scaleoffset=3)
    with pytest.raises(DataError, match=r"videos\.h5: cannot be read \(.*filter"):
        _videos(tmp_path)


def _write_netcdf(file, x):
    """Write a video as netCDF does: with dimensions, of which one has no values and is never written."""
    for number, (name, values) in enumerate({"time": np.arange(4.0), "feature": None}.items()):
        scale = file.create_dataset(name, (4, 2)[number : number + 1], "f8", data=values)
        scale.make_scale(name if values is not None else "This is a netCDF dimension but not a netCDF variable.")
    file["rgb"] = x
    for number, name in enumerate(("time", "feature")):
        file["rgb"].dims[number].attach_scale(file[name])


def test_dimensions_of_netcdf(tmp_path, x):
    h5py = pytest.importorskip("h5py")
    for name, values in zip("ab", x[:2], strict=True):
        with h5py.File(tmp_path / f"{name}.nc", "w") as file:
            _write_netcdf(file, values)
    found = _videos(tmp_path)
    assert {name: set(video.features) for name, video in found.items()} == {"a": {"rgb"}, "b": {"rgb"}}
    np.testing.assert_array_equal(found["b"].features["rgb"], x[1])


def test_ids_as_a_dimension_of_netcdf(tmp_path, x):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "videos.nc", "w") as file:
        file["rgb"], file["video_id"] = x, ["a", "b", "c"]
        file["video_id"].make_scale("video_id")
        file["rgb"].dims[0].attach_scale(file["video_id"])
    assert list(_videos(tmp_path)) == ["a", "b", "c"]


def test_features_that_netcdf_packed_or_filled(tmp_path, x):
    """findings/masked-frames-lose-their-mask.sh: frames that netCDF never wrote are 9.97e36."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "videos.nc", "w") as file:
        packed = file.create_dataset("rgb", data=np.ones((4, 2), np.uint8))
        packed.attrs["scale_factor"] = 0.1
    with pytest.raises(DataError, match="'rgb' is packed by the attribute 'scale_factor'"):
        _videos(tmp_path)
    x[0, 3] = 9.969209968386869e36
    with h5py.File(tmp_path / "videos.nc", "w") as file:
        _write_netcdf(file, x[0])
    with pytest.raises(DataError, match="frame 3 of 'rgb'"):
        _videos(tmp_path)


def test_dataset_that_holds_nothing(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "videos.h5", "w") as file:
        file["a/rgb"] = h5py.Empty("f4")
    with pytest.raises(DataError, match="/a: 'rgb' holds nothing"):
        _videos(tmp_path)


@pytest.mark.parametrize("tars", [1, 2])
def test_member_that_comes_late(tmp_path, tars):
    """findings/datasets-webdataset-drops-late-members.sh: datasets reads the members of the first samples alone."""
    webdataset = pytest.importorskip("webdataset")
    for tar in range(tars):
        with webdataset.TarWriter(str(tmp_path / f"{tar}.tar")) as writer:
            for number in range(tar * 10 // tars, (tar + 1) * 10 // tars):
                sound = {"sound.npy": np.ones((3, 1), np.float32)} if number >= 5 else {}
                writer.write({"__key__": f"v{number}", "rgb.npy": np.ones((3, 2), np.float32), **sound})
    assert sum("sound" in video.features for video in _videos(tmp_path).values()) == 5


def _npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _tar(path, names, x, link=None):
    with tarfile.open(path, "w") as tar:
        for name, values in zip(names, x, strict=False):
            member = tarfile.TarInfo(name)
            content = _npy(values)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.LNKTYPE, names[0]
            tar.addfile(member)


def test_members_that_webdataset_passes_over(tmp_path, x):
    """GNU tar stores the second of two hard links without content; webdataset then has one video less."""
    webdataset = pytest.importorskip("webdataset")
    _tar(tmp_path / "a.tar", ["a.npy", "b.npy"], x, link="c.npy")
    assert len(list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))) == 2
    with pytest.raises(DataError, match=r"the member c\.npy is a link"):
        _videos(tmp_path)


def test_two_tars_in_one_file(tmp_path, x):
    webdataset = pytest.importorskip("webdataset")
    for name in "ab":
        _tar(tmp_path / f"{name}.tar", [f"{name}.npy"], x)
    both = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(both)
    assert len(list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))) == 1
    with pytest.raises(DataError, match="goes on after its end"):
        _videos(tmp_path / "a.tar")


def test_tar_of_a_folder(tmp_path, x):
    """Names begin with ./ then, and macOS adds files of its own."""
    pytest.importorskip("webdataset")
    _tar(tmp_path / "a.tar", ["./a.npy", "./._a.npy", "./sub/b.NPY"], x)
    found = _videos(tmp_path)
    assert list(found) == ["a", "sub/b"]
    np.testing.assert_array_equal(found["sub/b"].features["features"], x[2])


def test_damaged_gzip_of_a_tar(tmp_path):
    """findings/webdataset-gzip-without-checksum.sh: webdataset gives changed features for most of these."""
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar"), mtime=0) as writer:
        for number in range(5):
            frames = np.random.default_rng(number).standard_normal((30, 16)).astype(np.float32)
            writer.write({"__key__": f"v{number}", "rgb.npy": frames})
    whole = gzip.compress((tmp_path / "a.tar").read_bytes(), mtime=0)
    shard = tmp_path / "a.tar.gz"
    shard.write_bytes(whole)
    assert len(_videos(shard)) == 5
    flips = random.Random(0)
    for _ in range(40):
        copy = bytearray(whole)
        copy[flips.randrange(10, len(copy))] ^= 1 << flips.randrange(8)
        shard.write_bytes(copy)
        with pytest.raises((DataError, UsageError), match=r"a\.tar\.gz"):
            _videos(shard)


def test_tensors_in_the_order_of_memory(tmp_path, x):
    """findings/pyarrow-tensor-scalar-wrong-strides.sh: a row of the column, read alone, has values of other places."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.stack([np.ascontiguousarray(each.T).T for each in x]))
    assert tensors.type.permutation == [1, 0]
    rows = tensors.take(pa.array([2, None, 0, 1]))
    audio = pa.array([[[1.0]]] * 4, pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({"video_id": list("cnab"), "rgb": rows, "audio": audio}), tmp_path / "a.parquet")
    found = _videos(tmp_path)
    for name, expected in zip("abc", x, strict=True):
        np.testing.assert_array_equal(found[name].features["rgb"], expected)
    assert set(found["n"].features) == {"audio"}


def test_null_within_a_tensor(tmp_path):
    """pyarrow's to_numpy_ndarray gives any value in its place."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    storage = pa.array([[1, None, 3, 4], [5, 6, 7, 8]], pa.list_(pa.float32(), 4))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2, 2)), storage)
    pq.write_table(pa.table({"video_id": ["a", "b"], "rgb": tensors}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="'rgb' has a null among its values"):
        _videos(tmp_path)


def test_files_of_different_types(tmp_path):
    """findings/pyarrow-first-file-rounds-the-rest.sh: pyarrow rounds float32 to the float16 of the first file."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    values = {"a": (pa.float16(), 0.5), "b": (pa.float32(), 70000.1), "c": (pa.float64(), 0.1), "d": (pa.uint8(), 200)}
    for name, (kind, value) in values.items():
        column = pa.array([[[value]]], pa.list_(pa.list_(kind)))
        pq.write_table(pa.table({"video_id": [name], "rgb": column}), tmp_path / f"{name}.parquet")
    found = {name: video.features["rgb"] for name, video in _videos(tmp_path).items()}
    assert {name: each.item() for name, each in found.items()} == {
        name: (int if kind == pa.uint8() else np.float32)(value) for name, (kind, value) in values.items()
    }
    assert {name: str(each.dtype) for name, each in found.items()} == {**dict.fromkeys("abc", "float32"), "d": "uint8"}


def test_column_twice_and_unnamed_index(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rgb = pa.array([[[1.0]]], pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table([pa.array(["a"]), rgb, rgb], ["video_id", "rgb", "rgb"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the column 'rgb' twice"):
        _videos(tmp_path)
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"rgb": [[[1.0]]], "labels": [[1]]}, index=["a"]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="without ids; are they '__index_level_0__'"):
        _videos(tmp_path)


def test_a_feature_that_is_not_there(tmp_path, x):
    """The message names those that are, whatever the library reads."""
    h5py, pa = pytest.importorskip("h5py"), pytest.importorskip("pyarrow")
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        file["a/rgb"], file["b/rgb"] = x[:2]
    with h5py.File(tmp_path / "table.h5", "w") as file:
        file["rgb"], file["video_id"] = x, ["a", "b", "c"]
    rows = pa.table({"video_id": ["a"], "rgb": pa.array([[[1.0]]], pa.list_(pa.list_(pa.float32())))})
    pytest.importorskip("pyarrow.parquet").write_table(rows, tmp_path / "a.parquet")
    for name in ("groups.h5", "table.h5", "a.parquet"):
        with pytest.raises(DataError, match=r"has none of the features features; it has .*rgb"):
            list(read_videos(open_source(tmp_path / name, ["features"])))


def test_a_refused_import_leaves_nothing(tmp_path, x):
    np.save(tmp_path / "a.npy", x[0])
    (tmp_path / "labels.csv").write_text("id,labels\nb,cat\n")
    with pytest.raises(UsageError, match="1 video without labels"):
        import_features(tmp_path / "a.npy", tmp_path / "labels.csv", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "labels.csv"]


def test_more_in_a_file_than_numpy_reads(tmp_path, x):
    """np.load gives the first array of several in a file, and the last of several with one name in an archive."""
    with (tmp_path / "a.npy").open("wb") as file:
        np.save(file, x[0])
        np.save(file, x[1])
    with pytest.raises(DataError, match=r"a\.npy: has more behind its array"):
        _videos(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr("rgb.npy", _npy(x[0]))
        archive.writestr("rgb.npy", _npy(x[1]))
    with pytest.raises(DataError, match=r"a\.npz: has two arrays of one name"):
        _videos(tmp_path / "a.npz")


def test_names_of_arrays_and_other_members(tmp_path, x):
    """np.load gives the array "rgb" by the name "rgb.npy" too, and the bytes of a member that is no array."""
    np.savez(tmp_path / "a.npz", **{"rgb": x[0], "rgb.npy": x[1]})
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("notes.json", "{}")
    assert np.array_equal(np.load(tmp_path / "a.npz")["rgb.npy"], x[0])
    (video,) = _videos(tmp_path).values()
    assert set(video.features) == {"rgb", "rgb.npy"}
    np.testing.assert_array_equal(video.features["rgb.npy"], x[1])


def test_a_folder_of_shards(tmp_path, x):
    """Their manifest and label names are text, but no features."""
    items = [(name, values, ["cat"]) for name, values in zip("abc", x, strict=True)]
    import_features(items, None, tmp_path / "shards", test_share=0)
    with pytest.raises(UsageError, match=r"train-.*\.tfrecord: is a TFRecord file, which needs no import"):
        import_features(tmp_path / "shards", None, tmp_path / "out")


def test_masked_frames(tmp_path, x):
    """findings/masked-frames-lose-their-mask.sh: the values behind a mask are no features."""
    masked = np.ma.array(x[0], mask=x[0] > 0)
    with pytest.raises(DataError, match="video 0, 'a': 'features' has masked values"):
        import_features([("a", masked, [0])], None, tmp_path / "out")


def test_labels_of_some_videos(tmp_path, x):
    """The first video decides if labels are beside the features; those of others are not left out in silence."""
    items = [("a", x[0], None), ("b", x[1], [0])]
    for unlabelled in ("fail", "skip", "keep"):
        with pytest.raises(UsageError, match="video 1, 'b': has labels beside its features, although the first"):
            import_features(items, None, tmp_path / "out", test_share=0, unlabelled=unlabelled)
    done = import_features(items[::-1], None, tmp_path / "out", test_share=0, unlabelled="keep")
    assert done.train_videos == 2


def test_names_that_are_not_utf8(tmp_path, x):
    np.save(tmp_path / os.fsdecode(b"caf\xe9.npy"), x[0])
    with pytest.raises(DataError, match="its name is not UTF-8; rename it"):
        import_features(tmp_path, None, tmp_path / "out", unlabelled="keep")
    for item in (("a\ud800", x[0], [0]), ("a", x[0], ["cat\ud800"])):
        with pytest.raises(ReeltagError, match=r"ud800"):
            import_features([item], None, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [os.fsdecode(b"caf\xe9.npy")]
