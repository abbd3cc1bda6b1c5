"""CSV and JSON Lines of frames."""

import csv
import json
import random

import numpy as np
import pytest

from reeltag.core.errors import ReeltagError
from sources import error_of, read


def _features(path):
    return [(video.id, {key: values.tolist() for key, values in video.features.items()}) for video in read(path)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "id,frame,rgb_0,rgb_1\na,0,1,2\na,1,3,4\nb,0,5,6\n",
            [("a", {"rgb": [[1, 2], [3, 4]]}), ("b", {"rgb": [[5, 6]]})],
        ),
        ('video_id;rgb\na;"[1,2]"\na;"3, 4"\n', [("a", {"rgb": [[1, 2], [3, 4]]})]),
        ("ytid\trgb\taudio\na\t1 2\t3e1 -.5\n", [("a", {"audio": [[30, -0.5]], "rgb": [[1, 2]]})]),
        ("id,frame,time,x,y\na,0,0.5,1,2\na,1,0.7,3,4\n", [("a", {"features": [[1, 2], [3, 4]]})]),
        ("id,f.2,f.1,f.10,f.3,f.4,f.5,f.6,f.7,f.8,f.9\na,2,1,10,3,4,5,6,7,8,9\n", [("a", {"f": [list(range(1, 11))]})]),
        ("\ufeffid,title,v[0],v[1]\r\n7,x,1,2\r\n", [("7", {"v": [[1, 2]]})]),
        ("id,note1,note2,resnet50\na,x,y,1 2\n", [("a", {"resnet50": [[1, 2]]})]),
    ],
)
def test_values_are_in_numbered_columns_or_in_lists(text, expected, tmp_path):
    (tmp_path / "x.csv").write_text(text, newline="")
    assert _features(tmp_path / "x.csv") == expected


def test_a_single_number_beside_a_feature_is_asked_about(tmp_path):
    (tmp_path / "x.csv").write_text("id,rgb,brightness\na,1 2,3\n")
    message = ": the column 'brightness' holds single numbers beside rgb; name it brightness_0 if it is a feature"
    assert error_of(tmp_path / "x.csv").startswith(message)
    (video,) = read(tmp_path / "x.csv", "rgb")
    assert video.features["rgb"].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,frame,f0\na,1,1\na,0,1\n", ", line 2: frame 0 of the video comes after frame 1; sort the rows"),
        ("id,frame,f0\na,1,1\na,1,1\n", ", line 2: frame 1 of the video comes after frame 1"),
        ("id,f0\na,1\nb,1\na,1\n", ", line 4: id 'a' occurs already before"),
        ("id,f0,f1\na,1,2\na,x,2\n", ", line 3: 'f' has a cell that is no number"),
        ("id,f0,f1\na,1,2\na,,2\n", ", line 3: 'f' has a cell that is no number"),
        ("id,f0,f1\na,x,2\na,1,2\n", ", line 2: 'f' has a cell that is no number"),
        ("id,f0,f1\na,,2\na,1,2\n", ", line 2: 'f' has a cell that is no number"),
        ("id,x,z\na,,2\na,1,2\n", ", line 2: 'features' has a cell that is no number"),
        ("id,f0,f1\na,1,2\na,nan,2\n", ", line 2: frame 1 of 'f' holds NaN"),
        ("id,f0,f2\na,1,2\n", ": the columns of 'f' are not numbered from 0 or 1 without a gap"),
        ("id,f0,f1\na,1,2,3\n", ", line 2: has 4 cells, and the header 3 columns"),
        ("id,rgb\na,1 2\na,1 2 3\n", ", line 2: 'rgb' has frames of 2 and 3 values"),
        ("f0,f1\n1,2\n", ": has no column of ids, such as video_id; it has f0, f1"),
        ("id,f0\na,1\n,1\n", ", line 3: the cell in the column 'id' is empty"),
        ("id;f0;f1\na;0,5;1,5\n", ", line 2: 'f0' has the cell '0,5': a decimal comma, or values of their own?"),
        ("id;rgb\na;0,5 1,5\n", ", line 2: 'rgb' has the cell '0,5 1,5': a decimal comma"),
        ("id,f0,label\na,1,3\na,1,4\n", ", line 2: its frames have different labels"),
        ("id,frame,f0\na,one,1\n", ", line 2: a frame's number is no number"),
        ("id,title\na,x\n", ", line 2: has no features"),
    ],
)
def test_tables_that_are_no_frames_are_refused(text, message, tmp_path):
    (tmp_path / "x.csv").write_text(text)
    assert error_of(tmp_path / "x.csv").startswith(message)


def _lines(folder, *objects):
    lines = [each if isinstance(each, str) else json.dumps(each) for each in objects]
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder / "x.jsonl"


def test_an_object_is_a_video_or_a_frame(tmp_path):
    rows = [{"id": "a", "rgb": [[1, 2.5], [3, 4]], "title": "x"}, {"id": "b", "rgb": [[5, 6]], "title": None}]
    expected = [("a", {"rgb": [[1, 2.5], [3, 4]]}), ("b", {"rgb": [[5, 6]]})]
    assert _features(_lines(tmp_path, *rows)) == expected
    frames = [{"id": row["id"], "rgb": frame} for row in rows for frame in row["rgb"]]
    assert _features(_lines(tmp_path, *frames)) == expected
    numbered = [frame | {"frame": number} for number, frame in enumerate(frames)]
    assert _features(_lines(tmp_path, *reversed(numbered[2:]))) == expected[1:]
    assert _features(_lines(tmp_path, {"id": 1, "rgb": [1, 2]}, {"id": 2, "rgb": [3, 4]})) == [
        ("1", {"rgb": [1, 2]}),  # video level
        ("2", {"rgb": [3, 4]}),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "a", "rgb": [[1, 2], [3]]}'], ", line 1: 'rgb' has frames of different widths"),
        (['{"id": "a", "rgb": [[1, null]]}'], ", line 1: 'rgb' holds something else than numbers"),
        (['{"id": "a", "rgb": [[true, false]]}'], ", line 1: 'rgb' holds something else than numbers"),
        (['{"id": "a", "rgb": [[1, "2"]]}'], ", line 1: 'rgb' holds something else than numbers"),
        (['{"id": "a", "rgb": [[NaN]]}'], ", line 1: frame 0 of 'rgb' holds NaN"),
        (['{"id": "a", "rgb": [[1e400]]}'], ", line 1: frame 0 of 'rgb' holds NaN or infinite"),
        (['{"id": "a", "rgb": []}'], ", line 1: 'rgb' has 0 frames"),
        (['{"id": "a", "rgb": [[1]], "rgb": [[2]]}'], ", line 1: is not JSON (the key 'rgb' occurs twice)"),
        (['{"id": "a", "rgb": [[1]]}', "{"], ", line 2: is not JSON"),
        (['{"id": "a", "rgb": ' + "[" * 9999], ", line 1: is not JSON"),
        (['{"rgb": [[1]]}'], ", line 1: has no id, a text such as video_id; it has rgb"),
        (['[{"id": "a"}]'], ", line 1: is a JSON list, not an object"),
        (['{"id": "a", "rgb": [1]}', '{"id": "a", "rgb": [1, 2]}'], ", line 1: 'rgb' has frames of 1 and 2 values"),
        (
            ['{"id": "a", "rgb": [1]}', '{"id": "a", "flow": [1]}'],
            ", line 2: has id, flow, but the frame before id, rgb",
        ),
        (
            ['{"id": "a", "t": 1, "rgb": [1]}', '{"id": "a", "t": 0, "rgb": [1]}'],
            ", line 1: frame 0 of the video comes",
        ),
    ],
)
def test_lines_that_are_no_videos_are_refused(lines, message, tmp_path):
    assert error_of(_lines(tmp_path, *lines)).startswith(message)


def _mutants(content, count):
    generator = random.Random(7)
    for _ in range(count):
        mutant = bytearray(content)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(mutant))
            kind = generator.randrange(3)
            if kind == 0:
                mutant[at] = generator.choice(b'\x00\n\r",;[]{}x1-\xe9\t ')
            elif kind == 1:
                del mutant[at]
            else:
                mutant[at:at] = mutant[generator.randrange(len(mutant)) :][: generator.randint(1, 9)]
        yield bytes(mutant)


@pytest.mark.slow
def test_mutants_of_text_are_read_whole_or_refused(tmp_path):
    table = b"id,frame,rgb_0,rgb_1\n" + b"".join(b"v%d,%d,%d,0.5\n" % (row // 3, row % 3, row) for row in range(12))
    lines = b"".join(b'{"id": "v%d", "rgb": [[%d, 2], [3, 4], [5, 6]]}\n' % (row, row) for row in range(4))
    for content, name in [(table, "x.csv"), (lines, "x.jsonl")]:
        accepted = 0
        for mutant in _mutants(content, 500):
            (tmp_path / name).write_bytes(mutant)
            try:
                videos = read(tmp_path / name)
            except ReeltagError as error:
                assert str(error).startswith(str(tmp_path / name))
                continue
            accepted += 1
            text = mutant.decode("utf-8-sig").replace("\r", "\n").split("\n")
            rows = [row for row in csv.reader(text) if any(map(str.strip, row))]
            if name == "x.csv":  # every row is a frame
                assert sum(len(next(iter(video.features.values()))) for video in videos) == len(rows) - 1
            else:
                assert len(videos) == len(rows)
            assert all(np.isfinite(values).all() for video in videos for values in video.features.values())
        assert 30 < accepted < 450
