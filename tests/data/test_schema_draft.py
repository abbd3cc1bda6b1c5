"""The schema that `data inspect` drafts reads the very records that it was drafted from."""

import json
import sys

import numpy as np
import pytest

from conftest import data_file, make_video
from reeltag.cli.main import main
from reeltag.data.formats.example import decode, encode
from reeltag.data.formats.protos import SequenceExample
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.ratings import Ratings
from reeltag.data.schema import Feature, Schema, preset_schema
from reeltag.data.schema_draft import draft
from reeltag.data.shards import scan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WIDE = (Feature(name="seen", width=9), Feature(name="heard", width=4))


@pytest.mark.parametrize(
    "schema",
    [
        Schema(features=WIDE, classes=6, max_frames=5),
        Schema(features=WIDE, classes=6, max_frames=5, dtype="float32", labels="label", ids=("clip_id",)),
        Schema(features=WIDE, classes=6, level="video", dtype="float32", max_frames=300),
        Schema(features=WIDE[:1], classes=6, labels="topic_labels", ids=("name",), max_frames=5),
    ],
)
def test_a_draft_is_the_schema_that_records_were_written_by(schema, tmp_path, capsys):
    lengths = (1, 1, 1) if schema.level == "video" else (3, 5, 2)
    videos = [
        make_video(schema, length, labels, str(length))
        for length, labels in zip(lengths, [(1,), (5, 0), None], strict=True)
    ]
    records = [encode(video, schema) for video in videos]
    drafted = draft(records)
    assert Schema.model_validate(drafted.schema) == schema
    assert (drafted.records, drafted.highest_label, drafted.unlabelled, drafted.remarks) == (3, 5, 1, [])
    assert [decode(record, schema).length for record in records] == list(lengths)
    write_shard(tmp_path / "s", records)
    assert main(["data", "inspect", str(tmp_path / "s")]) == 0
    printed = capsys.readouterr().out
    assert "from the first shard's 3 records (highest label 5, " in printed
    assert Schema.model_validate(tomllib.loads(printed[printed.index("[data.schema]") :])["data"]["schema"]) == schema
    assert main(["data", "inspect", str(tmp_path / "s"), "--json"]) == 0
    assert Schema.model_validate(json.loads(capsys.readouterr().out)["draft"]["schema"]) == schema


def test_only_the_first_shard_is_read(tmp_path, tiny_shards, tiny_schema, capsys):
    paths = sorted(tiny_shards.glob("train-*"))
    first = scan(paths[:1], tiny_schema)
    assert main(["data", "inspect", *map(str, paths), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["records"] == 24
    assert told["draft"]["records"] == len(first)
    assert told["draft"]["most_frames"] == first.frames.max()
    assert told["draft"]["highest_label"] == np.flatnonzero(first.class_counts).max()


def test_segments_are_drafted_with_the_classes_that_were_rated():
    schema = Schema(features=WIDE, classes=8, max_frames=10, segments=5)
    ratings = Ratings(np.array([0, 5]), np.array([7, 2]), np.array([True, False]))
    video = make_video(schema, 10, (1,))
    record = encode(type(video)(video.id, video.labels, video.features, 0, ratings), schema)
    assert Schema.model_validate(draft([record]).schema) == schema


def test_what_does_not_fit_is_remarked_upon():
    message = SequenceExample()
    message.context.feature["size"].int64_list.value.extend([3])
    message.context.feature["other"].int64_list.value.extend([3])
    for name, widths in (("even", [4, 4]), ("odd", [4])):
        for width in widths:
            message.feature_lists.feature_list[name].feature.add().float_list.value.extend([0.5] * width)
    message.feature_lists.feature_list["codes"].feature.add().bytes_list.value.append(b"ab")
    remarks = " ".join(draft([message.SerializeToString(), b"These are notes."]).remarks)
    for told in ("even is left out: it holds floats, and the others bytes", "no labels were found", "no id"):
        assert told in remarks
    assert "different numbers of frames" not in remarks  # of features that are left out
    message.feature_lists.feature_list["more"].feature.add().bytes_list.value.append(b"ab")
    message.feature_lists.feature_list["more"].feature.add().bytes_list.value.append(b"ab")
    assert 'different numbers of frames; unequal = "cut"' in " ".join(draft([message.SerializeToString()]).remarks)
    del message.feature_lists.feature_list["more"]
    assert "1 record could not be read" in remarks
    other = SequenceExample()
    other.feature_lists.feature_list["codes"].feature.add().bytes_list.value.append(b"abc")
    uneven = draft([message.SerializeToString(), other.SerializeToString()])
    assert "codes is left out: frames have 2 bytes or 3 bytes" in " ".join(uneven.remarks)
    assert [feature["name"] for feature in uneven.schema["features"]] == ["even", "odd"]


def test_the_public_data_sets_are_recognised(capsys):
    for path, name in (
        ("audioset/eval-00000-of-00016.tfrecord", "audioset"),
        ("yt8m_video/validate0000.tfrecord", "yt8m-video"),
    ):
        shard = data_file(path)
        assert main(["data", "inspect", str(shard)]) == 0
        assert f'or schema = "{name}"' in capsys.readouterr().out
        scan([shard], preset_schema(name))
