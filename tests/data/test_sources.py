"""Sources: each written by the library of its format, and read back."""

import json

import numpy as np
import pytest

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
        file["labels"] = h5py.Empty("f") if False else np.arange(3)
        del file["labels"]
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
    import gzip

    payloads = [frame_record(_message(*each)) for each in videos.items()]
    with (folder / "films.tfrecord.gz").open("wb") as file:  # joined streams
        for payload in payloads:
            file.write(gzip.compress(payload))
    return folder / "films.tfrecord.gz"


def _write_zlib(folder, videos):
    import zlib

    content = b"".join(frame_record(_message(*each)) for each in videos.items())
    (folder / "films.tfrecord").write_bytes(zlib.compress(content))
    return folder / "films.tfrecord"


def _write_mediapipe(folder, videos):
    keys = {"rgb": "RGB/feature/floats", "audio": "AUDIO/feature/floats"}
    for name, features in videos.items():
        (folder / name).mkdir()
        (folder / name / "features.pb").write_bytes(_message(name, features, keys))
    return folder


WRITERS = [
    *(_write_npz, _write_hdf5_groups, _write_hdf5_padded, _write_parquet, _write_feather, _write_arrow_stream),
    *(_write_datasets, _write_webdataset, _write_lines, _write_frames, _write_gzip, _write_zlib, _write_mediapipe),
]
FLOATS_ALONE = (_write_lines, _write_frames, _write_mediapipe)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
@pytest.mark.parametrize("write", WRITERS)
def test_the_same_features_are_read_from_every_format(write, dtype, tmp_path):
    if dtype == "uint8" and write in FLOATS_ALONE:
        pytest.skip("the format has no bytes")
    videos = _features(dtype)
    read = list(read_videos(open_source(write(tmp_path, videos))))
    assert [video.id for video in read] == list(NAMES)
    for video in read:
        assert video.labels == LABELS[video.id]
        assert sorted(video.features) == ["audio", "rgb"]
        for key, values in video.features.items():
            assert values.dtype == dtype
            assert values.flags.c_contiguous
            assert np.array_equal(values, videos[video.id][key])
