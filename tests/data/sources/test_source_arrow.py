"""Parquet, Arrow, Feather and folders of `datasets`, written by pyarrow and datasets."""

import numpy as np
import pytest

from sources import error_of, read

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

IDS = ["a", "b", "c"]
ROWS = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], [[7.0, 8.0]]]
FLOAT, DOUBLE = pa.float32(), pa.float64()


def _parquet(folder, columns):
    parquet.write_table(pa.table(columns), folder / "x.parquet", row_group_size=2)
    return folder / "x.parquet"


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.list_(DOUBLE)),
        pa.list_(pa.list_(FLOAT, 2)),
        pa.large_list(pa.large_list(pa.float16())),
        pa.large_list(pa.list_(FLOAT)),
    ],
)
def test_lists_of_lists_are_frames(kind, tmp_path):
    videos = read(_parquet(tmp_path, {"video_id": IDS, "rgb": pa.array(ROWS, kind)}))
    assert [video.id for video in videos] == IDS
    assert [video.features["rgb"].tolist() for video in videos] == ROWS


@pytest.mark.parametrize("kind", [pa.list_view(pa.list_view(FLOAT)), pa.large_list_view(pa.list_(FLOAT, 2))])
def test_views_and_slices_are_frames(kind, tmp_path):
    table = pa.table({"id": IDS, "rgb": pa.array(ROWS, kind)}).slice(1)
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    assert [video.features["rgb"].tolist() for video in read(tmp_path / "x.arrow")] == ROWS[1:]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": ["a"], "rgb": [[1.0, 2.0, 3.0, 4.0]], "num_frames": [2]}, [("a", None, [[1.0, 2.0], [3.0, 4.0]])]),
        ({"id": ["a"], "rgb": [[1.0, 2.0]]}, [("a", None, [1.0, 2.0])]),  # video level
        ({"name": ["a"], "rgb": [[[1.0]]], "label": [3]}, [("a", [3], [[1.0]])]),
        ({"id": [7], "rgb": [[[1.0]]], "labels": [["x", "y"]]}, [("7", ["x", "y"], [[1.0]])]),
        ({"rgb": [[[1.0]], [[2.0]]], "labels": ["x;y", None]}, [("x:0", "x;y", [[1.0]]), ("x:1", None, [[2.0]])]),
        ({"id": pa.array(["a"]).dictionary_encode(), "rgb": [[[1.0]]], "title": ["t"], "words": [["u"]]}, "one"),
        ({"id": ["a"], "rgb": [[[1.0]]], "seconds": [2.5], "on": [True], "flow": [None]}, "one"),
    ],
)
def test_columns_are_ids_labels_and_features(columns, expected, tmp_path):
    found = [(video.id, video.labels, video.features["rgb"].tolist()) for video in read(_parquet(tmp_path, columns))]
    assert found == ([("a", None, [[1.0]])] if expected == "one" else expected)


def test_tensors_and_fields_of_structs_are_features(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6, dtype=np.float32).reshape(1, 2, 3))
    (video,) = read(_parquet(tmp_path, {"id": ["a"], "rgb": tensors, "more": [{"audio": [[1.0]]}]}))
    assert {name: values.tolist() for name, values in video.features.items()} == {
        "rgb": [[0, 1, 2], [3, 4, 5]],
        "more.audio": [[1.0]],
    }
    (video,) = read(tmp_path / "x.parquet", "more.audio")
    assert list(video.features) == ["more.audio"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"rgb": ROWS}, ": has no column of ids, such as video_id; it has rgb"),
        ({"id": ["a", None, "c"], "rgb": ROWS}, ", row 1: has no id in the column 'id'"),
        ({"id": ["a", "b", "a"], "rgb": ROWS}, ", row 2: id 'a' occurs already before"),
        ({"id": IDS, "rgb": [*ROWS[:2], [[1.0, 2.0], [3.0]]]}, ", row 2: 'rgb' has frames of 1 and 2 values"),
        ({"id": IDS, "rgb": [*ROWS[:2], [[1.0, None]]]}, ", row 2: 'rgb' has a null among its values"),
        ({"id": IDS, "rgb": [*ROWS[:2], [[1.0, 2.0], None]]}, ", row 2: 'rgb' has a frame that is null"),
        (
            {"id": IDS, "rgb": pa.array([*ROWS[:2], [[1.0, 2.0], None]], pa.list_(pa.list_(FLOAT, 2)))},
            ", row 2: 'rgb' has a frame that is null",
        ),
        ({"id": IDS, "rgb": [*ROWS[:2], []]}, ", row 2: 'rgb' has 0 frames"),
        ({"id": IDS, "rgb": [*ROWS[:2], None]}, ", row 2: has no features"),
        ({"id": IDS, "rgb": [*ROWS[:2], [[1.0, float("inf")]]]}, ", row 2: frame 0 of 'rgb' holds NaN or infinite"),
        ({"id": IDS, "rgb": [[[1, 2]]] * 3}, ", row 0: 'rgb' holds int64; store uint8 codes or floats"),
        ({"id": IDS, "rgb": [[[True]]] * 3}, ", row 0: the column 'rgb' holds list<"),
        ({"id": IDS, "rgb": [[[[1.0]]]] * 3}, ", row 0: 'rgb' is [1, 1, 1]; expected [T, D]"),
        ({"id": IDS, "rgb": [b"ab"] * 3, "audio": ROWS}, ": the column 'rgb' holds binary, which does not say"),
        ({"id": IDS, "rgb": pa.array([b"ab"] * 3, pa.binary(2))}, ": the column 'rgb' holds fixed_size_binary[2]"),
        ({"id": IDS, "rgb": [[b"ab"]] * 3}, ", row 0: the column 'rgb' holds list<"),
        ({"id": IDS, "rgb": [[{"x": 1.0}]] * 3, "audio": ROWS}, ", row 0: the column 'rgb' holds list<"),
        ({"id": ["a"], "rgb": [[1.0, 2.0, 3.0]], "length": [2]}, ", row 0: is said to have 2 frames, but 'rgb' is [3]"),
    ],
)
def test_rows_that_are_no_videos_are_refused(columns, message, tmp_path):
    assert error_of(_parquet(tmp_path, columns)).startswith(message)


def test_damaged_files_are_refused(tmp_path):
    content = _parquet(tmp_path, {"id": IDS, "rgb": ROWS}).read_bytes()
    for damaged in (content[:-9], content[:60]):
        (tmp_path / "x.parquet").write_bytes(damaged)
        assert error_of(tmp_path / "x.parquet").startswith(": cannot be read (Parquet magic bytes not found")
    plain = {"compression": "none", "use_dictionary": False}
    parquet.write_table(pa.table({"id": IDS, "rgb": ROWS}), tmp_path / "x.parquet", write_page_checksum=True, **plain)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[content.index(np.float64(6.0).tobytes())] ^= 1
    (tmp_path / "x.parquet").write_bytes(content)
    assert "checksum" in error_of(tmp_path / "x.parquet").lower()


@pytest.mark.slow
def test_folders_of_datasets_keep_selections_shards_and_arrays(tmp_path):
    datasets = pytest.importorskip("datasets")
    columns = {"id": IDS, "rgb": ROWS, "label": [0, 1, 2]}
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "rgb": datasets.Array2D((None, 2), "float32"),
            "label": datasets.ClassLabel(names=["x", "y", "z"]),
        }
    )
    plain, arrays = datasets.Dataset.from_dict(columns), datasets.Dataset.from_dict(columns, features)
    joined = datasets.concatenate_datasets([plain.select([number]) for number in range(3)])
    for number, data in enumerate([plain, arrays, joined]):
        data.select([2, 0]).save_to_disk(tmp_path / f"selected{number}")
        data.save_to_disk(tmp_path / f"shards{number}", num_shards=3)
        selected = read(tmp_path / f"selected{number}")
        labels = [["z"], ["x"]] if data is arrays else [[2], [0]]
        assert [(video.id, video.labels) for video in selected] == [("c", labels[0]), ("a", labels[1])]
        assert [video.features["rgb"].tolist() for video in read(tmp_path / f"shards{number}")] == ROWS
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    assert error_of(tmp_path / "both") == f": holds the splits test, train; name one, such as {tmp_path}/both/test"
    assert len(read(tmp_path / "both/train")) == 3
    next((tmp_path / "both/train").glob("*.arrow")).write_bytes(b"abc")
    assert error_of(tmp_path / "both/train").startswith(": cannot be read")


def test_damaged_offsets_and_names_are_refused(tmp_path):
    table = pa.table({"id": IDS, "rgb": pa.array(ROWS, pa.list_(pa.list_(FLOAT)))})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    content = (tmp_path / "x.arrow").read_bytes()
    offsets = np.array([0, 2, 3, 4], np.int32).tobytes()
    (tmp_path / "x.arrow").write_bytes(content.replace(offsets, np.array([0, 2, 99, 4], np.int32).tobytes()))
    assert error_of(tmp_path / "x.arrow").startswith(": cannot be read (")
    path = _parquet(tmp_path, {"id": IDS, "rgb": ROWS})
    path.write_bytes(path.read_bytes().replace(b"rgb", b"r\x80b"))
    assert error_of(path).startswith(": cannot be read ('utf-8' codec")
