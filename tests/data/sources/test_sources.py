"""Sources: each written by the library of its format, and read back."""

import gzip
import json
import pickle
import sys
import zlib

import numpy as np
import pytest

from reeltag.core.errors import DataError, UsageError
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import frame_record
from reeltag.data.sources.source import open_source, read_videos

NAMES = ("a", "b", "c")


def _features(dtype="float32"):
    random = np.random.default_rng(3)
    return {
        name: {
            "rgb": (random.normal(size=(3 + number, 8)) * 100).astype(dtype),
            "audio": (random.normal(size=(3 + number, 4)) * 100).astype(dtype),
        }
        for number, name in enumerate(NAMES)
    }


LABELS = {"a": [0, 2], "b": [1], "c": [3]}


def _write_npz(folder, videos):
    for name, features in videos.items():
        np.savez(folder / f"{name}.npz", **features, labels=LABELS[name])
    return folder


def _write_hdf5_groups(folder, videos):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "films.h5", "w") as file:
        for name, features in videos.items():
            group = file.create_group(name)
            group.attrs["labels"] = LABELS[name]
            for key, values in features.items():
                group.create_dataset(key, data=values, chunks=True, compression="gzip")
    return folder / "films.h5"


def _write_hdf5_padded(folder, videos):
    h5py = pytest.importorskip("h5py")
    longest = max(len(features["rgb"]) for features in videos.values())
    with h5py.File(folder / "padded.h5", "w") as file:
        file["video_name"] = [name.encode() for name in videos]
        file["lengths"] = [len(features["rgb"]) for features in videos.values()]
        for key in ("rgb", "audio"):
            padded = [np.pad(each[key], ((0, longest - len(each[key])), (0, 0))) for each in videos.values()]
            file[key] = np.stack(padded)
        vlen = file.create_dataset("labels", (3,), h5py.vlen_dtype(np.int64))
        for row, name in enumerate(videos):
            vlen[row] = LABELS[name]
    return folder / "padded.h5"


def _table(videos):
    rows = [{"video_id": name, "labels": LABELS[name], **features} for name, features in videos.items()]
    return {key: [row[key] if key in ("video_id", "labels") else row[key].tolist() for row in rows] for key in rows[0]}


def _arrow_table(videos, inner=None):
    pa = pytest.importorskip("pyarrow")
    dtype = pa.from_numpy_dtype(videos["a"]["rgb"].dtype)
    kinds = inner or {"rgb": pa.list_(pa.list_(dtype)), "audio": pa.list_(pa.list_(dtype, 4))}
    schema = pa.schema({"video_id": pa.string(), "labels": pa.list_(pa.int64()), **kinds})
    return pa.table(_table(videos), schema)


def _write_parquet(folder, videos):
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(_arrow_table(videos), folder / "films.parquet", row_group_size=2)
    return folder / "films.parquet"


def _write_feather(folder, videos):
    feather = pytest.importorskip("pyarrow.feather")
    feather.write_feather(_arrow_table(videos), folder / "films.feather", compression="zstd")
    return folder / "films.feather"


def _write_arrow_stream(folder, videos):
    pa = pytest.importorskip("pyarrow")
    table = _arrow_table(videos)
    with pa.ipc.new_stream(folder / "films.arrows", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder / "films.arrows"


def _write_datasets(folder, videos):
    datasets = pytest.importorskip("datasets")
    kind = str(videos["a"]["rgb"].dtype)
    features = datasets.Features(
        {
            "video_id": datasets.Value("string"),
            "labels": datasets.Sequence(datasets.Value("int64")),
            "rgb": datasets.Array2D((None, 8), kind),
            "audio": datasets.Sequence(datasets.Sequence(datasets.Value(kind), 4)),
        }
    )
    datasets.Dataset.from_dict(_table(videos), features).save_to_disk(folder / "films")
    return folder / "films"


def _write_webdataset(folder, videos):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(folder / "films-000.tar.gz"), compress=True) as writer:
        for name, features in videos.items():
            arrays = {f"{key}.npy": values for key, values in features.items()}
            writer.write({"__key__": name, **arrays, "json": {"labels": LABELS[name]}})
    return folder / "films-000.tar.gz"


def _write_lines(folder, videos):
    table = _table(videos)
    lines = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    (folder / "films.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "films.jsonl"


def _write_frames(folder, videos):
    with (folder / "frames.jsonl").open("w") as file:
        for name, features in videos.items():
            for number, (rgb, audio) in enumerate(zip(features["rgb"], features["audio"], strict=True)):
                frame = {"video_id": name, "frame": number, "rgb": rgb.tolist(), "audio": audio.tolist()}
                file.write(json.dumps(frame | {"labels": LABELS[name]}) + "\n")
    return folder / "frames.jsonl"


def _message(name, features, keys=None):
    message = SequenceExample()
    message.context.feature["id"].bytes_list.value.append(name.encode())
    message.context.feature["labels"].int64_list.value.extend(LABELS[name])
    for key, values in features.items():
        items = message.feature_lists.feature_list[(keys or {}).get(key, key)]
        for frame in values:
            if frame.dtype == np.uint8:
                items.feature.add().bytes_list.value.append(frame.tobytes())
            else:
                items.feature.add().float_list.value.extend(frame.tolist())
    return message.SerializeToString()


def _write_gzip(folder, videos):
    payloads = [frame_record(_message(*each)) for each in videos.items()]
    with (folder / "films.tfrecord.gz").open("wb") as file:  # joined streams
        for payload in payloads:
            file.write(gzip.compress(payload))
    return folder / "films.tfrecord.gz"


def _write_zlib(folder, videos):
    content = b"".join(frame_record(_message(*each)) for each in videos.items())
    (folder / "films.tfrecord").write_bytes(zlib.compress(content))
    return folder / "films.tfrecord"


def _write_mediapipe(folder, videos):
    keys = {"rgb": "RGB/feature/floats", "audio": "AUDIO/feature/floats"}
    for name, features in videos.items():
        (folder / name).mkdir()
        (folder / name / "features.pb").write_bytes(_message(name, features, keys))
    return folder


def _write_csv(folder, videos):
    header = [*(f"rgb_{number}" for number in range(8)), *(f"audio_{number}" for number in range(4))]
    lines = [",".join(["video_id", "frame", "labels", *header])]
    for name, features in videos.items():
        frames = np.concatenate([features["rgb"], features["audio"]], axis=1)
        lines += [
            ",".join([name, str(t), f'"{LABELS[name]}"', *map(repr, frame.tolist())]) for t, frame in enumerate(frames)
        ]
    (folder / "frames.csv").write_text("\n".join(lines).replace('"[0, 2]"', '"[0, 2]"'))
    return folder / "frames.csv"


FORMATS = [
    *(_write_npz, _write_hdf5_groups, _write_hdf5_padded, _write_parquet, _write_feather, _write_arrow_stream),
    *(_write_datasets, _write_webdataset, _write_gzip, _write_zlib),
]
FLOATS_ALONE = [_write_lines, _write_frames, _write_csv, _write_mediapipe]


@pytest.mark.parametrize(
    ("write", "dtype"),
    [(write, "float32") for write in FORMATS + FLOATS_ALONE] + [(write, "uint8") for write in FORMATS],
)
def test_the_same_features_are_read_from_every_format(write, dtype, tmp_path):
    videos = _features(dtype)
    source = open_source(write(tmp_path, videos))
    read = list(read_videos(source))
    assert [video.id for video in read] == list(NAMES)
    for video in read:
        labels = json.loads(video.labels) if isinstance(video.labels, str) else video.labels
        assert labels == LABELS[video.id]
        assert sorted(video.features) == ["audio", "rgb"]
        for key, values in video.features.items():
            assert values.dtype == dtype
            assert values.flags.c_contiguous
            assert np.array_equal(values, videos[video.id][key])


@pytest.mark.parametrize("write", [_write_npz, _write_hdf5_groups, _write_parquet, _write_webdataset, _write_frames])
def test_a_source_reads_its_parts_in_any_order_and_after_it_was_pickled(write, tmp_path):
    source = open_source(write(tmp_path, _features()))
    copy = pickle.loads(pickle.dumps(source))
    backwards = [[video.id for video in copy.read(part)] for part in reversed(source.parts())]
    assert [name for part in reversed(backwards) for name in part] == list(NAMES)


@pytest.mark.parametrize("write", [_write_npz, _write_hdf5_padded, _write_parquet, _write_webdataset, _write_csv])
def test_chosen_features_alone_are_read(write, tmp_path):
    source = open_source(write(tmp_path, _features()), ["audio"])
    assert {key for video in read_videos(source) for key in video.features} == {"audio"}
    none = open_source(source.root if write is _write_npz else source.root / source.names[0], ["flow"])
    with pytest.raises(DataError, match=r"has none of the features flow; it has"):
        list(read_videos(none))


def test_several_files_of_one_kind_are_one_source(tmp_path):
    _write_npz(tmp_path, _features())
    source = open_source([tmp_path / "b.npz", tmp_path / "a.npz"])
    assert [video.id for video in read_videos(source)] == ["b", "a"]


def test_a_folder_passes_over_hidden_files_and_text_beside_features(tmp_path):
    _write_npz(tmp_path, _features())
    (tmp_path / "._a.npz").write_bytes(b"\0\5\26\7")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/x.npz").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("id,labels\n")
    (tmp_path / "README.md").write_text("notes")
    assert len(list(read_videos(open_source(tmp_path)))) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!doctype html><title>404</title>", "download the file again"),
        (pickle.dumps([1]), "pickles can run any program"),
        (b"", "is empty; write it again"),
        (b"\1\2\3", "is no file of features"),
        (frame_record(b"x"), "needs no import; name it in data.train"),
        (gzip.compress(b"id,labels\n"), "decompress it"),
        (zlib.compress(b"id,labels\n"), "holds no TFRecords"),
    ],
    ids=["pointer", "page", "pickle", "empty", "unknown", "tfrecord", "gzip", "zlib"],
)
def test_a_file_of_another_kind_is_refused_alone_and_among_features(content, message, tmp_path):
    (tmp_path / "z.npz").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        open_source(tmp_path / "z.npz")
    _write_npz(tmp_path, _features())
    with pytest.raises(UsageError, match=rf"z\.npz: .*{message}"):
        open_source(tmp_path)


def test_a_folder_of_two_kinds_or_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="has no file of features"):
        open_source(tmp_path)
    _write_npz(tmp_path, _features())
    _write_parquet(tmp_path, _features())
    with pytest.raises(UsageError, match="has files of NumPy and Parquet; name those of one kind"):
        open_source(tmp_path)


def test_an_id_that_occurs_twice_is_refused(tmp_path):
    _write_npz(tmp_path, _features())
    np.save(tmp_path / "b.npy", np.ones((2, 3), np.float32))
    with pytest.raises(DataError, match=r"b\.npz: id 'b' occurs already before"):
        list(read_videos(open_source(tmp_path)))


@pytest.mark.parametrize(
    ("write", "module", "message"),
    [
        (_write_hdf5_groups, "h5py", "HDF5 needs h5py"),
        (_write_parquet, "pyarrow", "Parquet and Arrow need pyarrow"),
        (_write_datasets, "datasets", "data of Hugging Face datasets needs datasets"),
        (_write_webdataset, "webdataset", "WebDataset needs webdataset"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(write, module, message, tmp_path, monkeypatch):
    path = write(tmp_path, _features())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"{message} .*: pip install .*\[import\]"):
        list(read_videos(open_source(path)))


def test_a_feature_may_be_called_video(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    h5py = pytest.importorskip("h5py")
    frames = [[1.0, 2.0], [3.0, 4.0]]
    row = {"video": frames, "name": "a"}
    parquet.write_table(pa.table({key: [value] for key, value in row.items()}), tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_text(json.dumps(row))
    (tmp_path / "x.csv").write_text('name,video\na,"1 2"\na,"3 4"\n')
    np.savez(tmp_path / "x.npz", video=np.array([frames]), name=["a"])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["video"], file["name"] = [frames], ["a"]
    for path in sorted(tmp_path.iterdir()):
        (video,) = read_videos(open_source(path))
        assert (video.id, video.features["video"].tolist()) == ("a", frames)


def test_pictures_beside_the_chosen_feature_do_not_matter(tmp_path):
    h5py = pytest.importorskip("h5py")
    arrays = {"rgb": np.ones((3, 2), np.float32), "pictures": np.zeros((3, 8, 8), np.uint8)}
    np.savez(tmp_path / "a.npz", **arrays)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for key, values in arrays.items():
            file[f"a/{key}"] = values
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(DataError, match="has videos without ids"):
            list(read_videos(open_source(path)))
        (video,) = read_videos(open_source(path, ["rgb"]))
        assert (video.id, list(video.features)) == ("a", ["rgb"])
