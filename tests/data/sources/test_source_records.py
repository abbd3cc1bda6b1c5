"""Compressed TFRecords, and MediaPipe's `features.pb`."""

import gzip
import zlib

import numpy as np
import pytest

from reeltag.core.errors import DataError
from reeltag.data.formats.protos import Example, SequenceExample
from reeltag.data.formats.tfrecord import frame_record
from reeltag.data.sources import tfrecords
from sources import error_of, read


def _message(name="a", frames=((1.0, 2.0), (3.0, 4.0)), feature="rgb"):
    message = SequenceExample()
    if name is not None:
        message.context.feature["video_id"].bytes_list.value.append(name.encode())
    for frame in frames:
        item = message.feature_lists.feature_list[feature].feature.add()
        if isinstance(frame, bytes):
            item.bytes_list.value.append(frame)
        elif isinstance(frame[0], int):
            item.int64_list.value.extend(frame)
        else:
            item.float_list.value.extend(frame)
    return message


def _gzip(folder, *messages, compress=gzip.compress):
    records = b"".join(frame_record(message.SerializeToString()) for message in messages)
    (folder / "x.tfrecord").write_bytes(compress(records))
    return folder / "x.tfrecord"


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, lambda content: zlib.compress(content, 1)])
def test_records_are_decompressed(compress, tmp_path):
    first, second = read(_gzip(tmp_path, _message(), _message(None, [b"ab"]), compress=compress))
    assert (first.id, first.features["rgb"].tolist()) == ("a", [[1, 2], [3, 4]])
    assert (second.id, second.features["rgb"].tolist()) == ("x.tfrecord:1", [[97, 98]])
    assert second.features["rgb"].dtype == np.uint8


def test_examples_hold_video_level_features(tmp_path):
    message = Example()
    message.features.feature["id"].bytes_list.value.append(b"a")
    message.features.feature["labels"].int64_list.value.extend([3, 1])
    message.features.feature["mean_rgb"].float_list.value.extend([0.5, 1.5])
    (video,) = read(_gzip(tmp_path, message))
    assert (video.id, video.labels, video.features["mean_rgb"].tolist()) == ("a", [3, 1], [0.5, 1.5])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([_message(frames=[(1.0, 2.0), (3.0,)])], ", record 0: 'rgb' has frames of different widths"),
        ([_message(), _message("b", [(1.0, 2.0), b"ab"])], ", record 1: 'rgb' has frames of different kinds"),
        ([_message(frames=[(1, 2)])], ", record 0: 'rgb' holds int64; store uint8 codes or floats"),
        ([_message(frames=[(1.0, float("nan"))])], ", record 0: frame 0 of 'rgb' holds NaN"),
        ([_message(frames=[])], ", record 0: has no features"),
        ([_message(), _message()], ", record 1: id 'a' occurs already before"),
    ],
)
def test_records_that_are_no_videos_are_refused(messages, message, tmp_path):
    assert error_of(_gzip(tmp_path, *messages)).startswith(message)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_a_cut_or_damaged_file_is_refused(compress, tmp_path):
    path = _gzip(tmp_path, _message(), _message("b"), compress=compress)
    content = path.read_bytes()
    for size in range(40, len(content), 5):
        path.write_bytes(content[:size])
        assert "ends early" in error_of(path)
    for damaged in (content[:60] + b"\xff" + content[61:], content[:-3] + b"abc", content + b"more"):
        path.write_bytes(damaged)
        assert error_of(path)
    records = zlib.decompress(content, 47)
    path.write_bytes(compress(records[:-9]))
    assert error_of(path) == ", record 1: truncated; fetch the file again"
    path.write_bytes(compress(records[:30] + b"\xff" + records[31:]))
    assert error_of(path) == ", record 0: CRC of the payload does not match; fetch the file again"


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "MAX_RECORD", 1 << 16)
    record = frame_record(bytes(1 << 17))
    (tmp_path / "x.gz").write_bytes(gzip.compress(record))
    assert error_of(tmp_path / "x.gz").startswith(", record 0: is 131,072 bytes long")
    with (tmp_path / "x.gz").open("rb") as file:
        stream = tfrecords.Decompressed(file, "x.gz")
        assert stream.read(5) == record[:5]
        assert stream.read(1 << 20) == record[5:]
        assert stream.read(1) == b""


def test_mediapipes_messages_are_named_by_their_files_or_folders(tmp_path):
    for name in ("clips/one/features.pb", "clips/two.pb"):
        message = _message(None, feature="RGB/feature/floats")
        message.MergeFrom(_message(None, [(5.0,), (6.0,)], "AUDIO/feature/floats"))
        message.MergeFrom(_message(None, [(0,), (1,)], "RGB/feature/timestamp"))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(message.SerializeToString())
    videos = read(tmp_path)
    assert [video.id for video in videos] == ["clips/one", "clips/two"]
    assert {key: values.tolist() for key, values in videos[0].features.items()} == {
        "audio": [[5], [6]],
        "rgb": [[1, 2], [3, 4]],
    }
    assert [video.id for video in read(tmp_path / "clips/one/features.pb")] == ["one"]


def test_a_damaged_message_is_refused(tmp_path):
    path = tmp_path / "x.pb"
    path.write_bytes(_message().SerializeToString())
    source = tfrecords.MessageFiles(tmp_path, ("x.pb",))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match="is neither an Example nor a SequenceExample"):
        list(source.read("x.pb"))
