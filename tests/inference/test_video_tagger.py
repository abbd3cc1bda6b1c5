"""`reeltag tag`: scores equal those of extract and predict; timelines, output formats and unreadable files."""
# ruff: noqa: F811 - fixtures are arguments

import csv
import json
import os
import re
import sys
from dataclasses import replace
from io import BytesIO
from itertools import pairwise

import av
import numpy as np
import pytest

from clips import number_of, numbered, write_clip
from conftest import DATA
from decoders import crashes  # noqa: F401 - a fixture
from mean_graph import write_mean_graph
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.cli.main import main
from reeltag.core.storage import find_files
from reeltag.data.shards import read_examples
from reeltag.data.video.thumbnails import thumbnails
from reeltag.inference.predictor import load
from reeltag.inference.timeline import segment_spans, tag_spans
from reeltag.inference.video.tag_formats import as_lines
from tagged import NAMES, SECONDS, clips, model, schema_of, shards, write_untrained  # noqa: F401 - fixtures


def tag(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["tag", *map(str, arguments), "--quiet"]) == code
    return capsys.readouterr()


def tag_json(capsys, *arguments):
    return json.loads(tag(capsys, *arguments, "--json").out)


def fails(capsys, *arguments):
    return tag(capsys, *arguments, code=2).err


def predicted(model, shards):
    """Return the probabilities of `reeltag predict` for shards, by id."""
    parts = load(model).predict_shards([str(shards / "*.tfrecord")])
    return {name: row for part in parts for name, row in zip(part.ids, part.probabilities.numpy(), strict=True)}


def scores_of(video):
    return {tag["class"]: tag["score"] for tag in video["tags"]}


def agree(results, expected):
    """Assert that all scores of tagged videos, rounded to six decimals, equal the expected ones by id."""
    assert {video["id"] for video in results} == set(expected)
    for video in results:
        row = expected[video["id"]]
        scores = scores_of(video)
        assert len(scores) == len(row)
        np.testing.assert_allclose([scores[number] for number in range(len(row))], row, rtol=0, atol=1e-6)


def test_scores_equal_those_of_extract_and_predict(clips, shards, model, capsys):
    results = tag_json(capsys, clips, "--model", model)
    agree(results["videos"], predicted(model, shards))
    assert {video["id"]: video["frames"] for video in results["videos"]} == SECONDS
    assert {video["id"]: video["remarks"] for video in results["videos"]} == {
        "beach.mp4": [],
        "hall.mp4": [],
        "song.m4a": ["no pictures, taken as black"],
        "tram.mp4": ["no sound, taken as silence"],
    }
    assert results["left_out"] == {}
    assert not any("timeline" in video for video in results["videos"])
    scores = [[tag["score"] for tag in video["tags"]] for video in results["videos"]]
    assert all(row == sorted(row, reverse=True) for row in scores)
    assert len({tuple(row) for row in scores}) == len(SECONDS)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "videos").is_dir(), reason="needs real clips, see REELTAG_DATA")
def test_scores_of_real_clips_equal_those_of_extract_and_predict(tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["extract", str(DATA / "videos"), "--out", str(out), "--quiet"]) == 0
    model = write_untrained(tmp_path / "m.reeltag", schema_of(out).model_copy(update={"classes": 50}))
    agree(tag_json(capsys, DATA / "videos", "--model", model, "--top", 50)["videos"], predicted(model, out))


def test_a_timeline_tags_each_segment_as_a_separate_video(clips, shards, model, capsys):
    predictor = load(model)
    videos = {
        video.id: video.frames() for video in read_examples(find_files([str(shards / "*.tfrecord")]), predictor.schema)
    }
    results = tag_json(capsys, clips / "tram.mp4", clips / "hall.mp4", "--model", model, "--timeline", "--top", 2)[
        "videos"
    ]
    assert {video["id"]: len(video["timeline"]["segments"]) for video in results} == {"tram.mp4": 40, "hall.mp4": 3}
    for video in results:
        assert video["timeline"]["segments"] == [list(span) for span in segment_spans(video["frames"])]
        rows = [predictor.predict(videos[video["id"]][begin:end]) for begin, end in video["timeline"]["segments"]]
        for tag, scores in zip(video["tags"], video["timeline"]["scores"], strict=True):
            np.testing.assert_allclose(scores, [row[tag["class"]] for row in rows], rtol=0, atol=1e-6)
        assert len(video["tags"]) == 2


def test_tag_spans_hold_at_least_half_of_the_highest_score():
    spans = segment_spans(90)
    scores = np.random.default_rng(3).random((4, len(spans))).round(2).tolist()
    for tag, row in enumerate(scores):
        held = {
            frame for begin, end in tag_spans({"segments": spans, "scores": scores}, tag) for frame in range(begin, end)
        }
        expected = {f for (a, b), score in zip(spans, row, strict=True) if score >= max(row) / 2 for f in range(a, b)}
        assert held == expected
        runs = tag_spans({"segments": spans, "scores": scores}, tag)
        assert all(end < begin for (_, end), (begin, _) in pairwise(runs))


def test_lines_for_a_terminal():
    tags = [{"class": 0, "name": "sea", "score": 0.934}, {"class": 2, "name": "people", "score": 0.06}]
    spans = [(0, 30), (30, 60), (60, 90), (90, 120), (120, 150)]
    scores = [[0.9, 0.1, 0.99, 0.98, 0.1], [0.0, 0.06, 0.0, 0.05, 0.06]]  # the second tag is nowhere present
    video = {"id": "a\x1b[31m.mp4", "frames": 150, "cut": 0, "tags": tags}
    assert list(as_lines(video)) == ["a [31m.mp4: 150 seconds", "  0.93  sea", "  0.06  people"]
    assert list(as_lines(video | {"timeline": {"segments": spans, "scores": scores}}))[1:] == [
        "  0.93  sea     █▁██▁  0:00–0:30, 1:00–2:00",
        "  0.06  people  ▁▁▁▁▁",
    ]


def test_the_csv_holds_the_tags_of_videos_and_segments(clips, model, capsys, tmp_path):
    results = tag_json(capsys, clips, "--model", model, "--timeline", "--csv", tmp_path / "tags.csv")["videos"]
    with (tmp_path / "tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(video["tags"]) * (1 + len(video["timeline"]["segments"])) for video in results)
    for video in results:
        whole = [
            row for row in rows if (row["file"], row["begin"], row["end"]) == (video["id"], "0", str(video["frames"]))
        ]
        assert [(row["name"], float(row["score"])) for row in whole] == [
            (tag["name"], tag["score"]) for tag in video["tags"]
        ]
    assert {row["name"] for row in rows} == set(NAMES)
    assert "exists" in fails(capsys, clips, "--model", model, "--csv", tmp_path / "tags.csv")


def test_unreadable_files_are_reported_and_the_others_tagged(clips, model, tmp_path, capsys):
    (tmp_path / "broken.mp4").write_bytes((clips / "beach.mp4").read_bytes()[:300])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video")
    bad = [tmp_path / name for name in ("broken.mp4", "empty.mp4", "notes.txt")]
    results = tag(capsys, *bad, clips / "hall.mp4", "--model", model)
    assert results.out.startswith("hall.mp4: 3 seconds\n")
    assert "3 files left out:" in results.err
    assert all(f"  {path.name}: " in results.err for path in bad)
    assert set(tag_json(capsys, *bad, clips / "hall.mp4", "--model", model)["left_out"]) == {path.name for path in bad}
    message = fails(capsys, *bad, "--model", model, "--html", tmp_path / "page.html")
    assert "no video could be tagged" in message
    assert all(f"  {path.name}: " in message for path in bad)
    assert not (tmp_path / "page.html").exists()


def test_files_that_crash_their_decoders_are_reported_and_the_others_tagged(clips, model, tmp_path, capsys, crashes):
    for name in ("crash.mp4", "kill.mp4", "hall.mp4"):
        (tmp_path / name).write_bytes((clips / "hall.mp4").read_bytes())
    results = tag_json(capsys, tmp_path, "--model", model)
    assert [video["id"] for video in results["videos"]] == ["hall.mp4"]
    assert results["left_out"] == {
        "crash.mp4": "crashed its decoder (SIGSEGV); convert it, or leave it out",
        "kill.mp4": "its decoder was killed, perhaps because memory ran out; convert it, or leave it out",
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such names")
def test_file_names_that_are_not_utf_8(clips, model, tmp_path, capsys):
    (tmp_path / os.fsdecode(b"b\xff\x1b[2J.mp4")).write_bytes((clips / "hall.mp4").read_bytes())
    outputs = ["--csv", tmp_path / "tags.csv", "--html", tmp_path / "page.html"]
    (video,) = tag_json(capsys, tmp_path, "--model", model, *outputs)["videos"]
    assert video["id"] == "b?\x1b[2J.mp4"
    assert "\x1b" not in tag(capsys, tmp_path, "--model", model).out


def altered(model, path, change, **others):
    """Write the model with a changed schema; return its path."""
    artifact = load_artifact(model)
    features = tuple(change(feature) for feature in artifact.schema.features)
    schema = artifact.schema.model_copy(update={"features": features})
    save_artifact(path, replace(artifact, schema=schema, **others))
    return path


def origin_of(feature, **changes):
    return feature.model_copy(update={"extractor": feature.extractor.model_copy(update=changes)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.model_copy(update={"extractor": None}), "does not name the extractor of its feature 'rgb'"),
        (lambda f: origin_of(f, hash="0" * 64, projection=None), "not from .* with other weights or settings"),
        (
            lambda f: origin_of(f, name=f"{'inception' if f.name == 'rgb' else 'onnx'}:x.onnx", projection=None),
            r"give --image inception:PATH for inception:x.onnx \(to get it: Inception-v3.*; give --audio onnx:PATH",
        ),
        (
            lambda f: origin_of(f, decoding=1),
            "features 'rgb' were extracted by an earlier reeltag, which decodes files",
        ),
        (lambda f: origin_of(f, decoding=9), "features 'rgb' were extracted by a later reeltag"),
        (lambda f: origin_of(f, name="eyes", projection=None), "'eyes', which this reeltag does not have"),
        (lambda f: f, "does not hold the PCA of its feature 'rgb'"),
    ],
)
def test_a_model_whose_features_cannot_be_extracted_is_refused(clips, model, tmp_path, capsys, change, message):
    other = altered(model, tmp_path / "m.reeltag", change, projections={})
    assert re.search(message, fails(capsys, clips, "--model", other))


def test_the_model_comes_first_or_with_its_option(clips, model, capsys):
    videos = sorted(clips.glob("*.mp4"))[:2]
    assert tag(capsys, model, *videos).out == tag(capsys, *videos, "--model", model).out != ""


def test_invalid_models_and_arguments_are_refused(clips, model, tmp_path, capsys):
    artifact = load_artifact(model)
    segments_of_five = artifact.schema.model_copy(update={"segments": 5})
    save_artifact(tmp_path / "s.reeltag", replace(artifact, schema=segments_of_five))
    assert "tags segments of 5 frames" in fails(capsys, clips, "--model", tmp_path / "s.reeltag")
    assert "--top: 0" in fails(capsys, clips, "--model", model, "--top", 0)
    assert "no videos; give them after the model" in fails(capsys, model)
    assert "reads 'rgb' from efficientnet-lite0, not from none" in fails(
        capsys, clips, "--model", model, "--image", "none"
    )


def test_an_onnx_extractor_is_opened_by_path_and_verified_by_hash(tmp_path, capsys):
    write_mean_graph(tmp_path / "mean.onnx")
    write_clip(tmp_path / "a.mp4", 3)
    out, image = tmp_path / "shards", f"onnx:{tmp_path / 'mean.onnx'}?scale=2&mean=0.1,0.2,0.3"
    options = ["--image", image, "--audio", "none"]
    assert main(["extract", str(tmp_path / "a.mp4"), "--out", str(out), "--quiet", *options]) == 0
    model = write_untrained(tmp_path / "m.reeltag", schema_of(out).model_copy(update={"classes": 3}))
    (tmp_path / "mean.onnx").rename(tmp_path / "moved.onnx")
    moved = f"onnx:{tmp_path / 'moved.onnx'}"
    for settings in ("?scale=2&mean=0.1,0.2,0.3", ""):  # with the path alone, the settings of the model
        agree(
            tag_json(capsys, tmp_path / "a.mp4", "--model", model, "--image", moved + settings)["videos"],
            predicted(model, out),
        )
    assert "give --image onnx:PATH for onnx:mean.onnx" in fails(capsys, tmp_path / "a.mp4", "--model", model)
    other = fails(capsys, tmp_path / "a.mp4", "--model", model, "--image", f"{moved}?scale=3")
    assert "reads 'rgb' from onnx:mean.onnx, not from onnx:moved.onnx" in other
    both = ["--image", f"{moved}?scale=2", "--audio", "logmel"]
    assert "--audio: m.reeltag reads no such feature" in fails(capsys, tmp_path / "a.mp4", "--model", model, *both)


# --- thumbnails -----------------------------------------------------------------------------------


def decoded(content):
    with av.open(BytesIO(content)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def test_thumbnails_show_the_requested_seconds(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 6, 10, pictures=[numbered(n, 320, 240) for n in range(60)])
    results = {second: decoded(content) for second, content in thumbnails(clip, [1, 4]).items()}
    assert {second: number_of(picture) for second, picture in results.items()} == {1: 15, 4: 45}
    assert {picture.shape for picture in results.values()} == {(120, 160, 3)}
    assert all(len(content) < 8000 for content in thumbnails(clip, [1, 4]).values())
    assert thumbnails(write_clip(tmp_path / "b.m4a", pictures=(), sound=np.zeros(16000)), [0]) == {}


@pytest.mark.parametrize(
    ("width", "height", "pixel", "shape"), [(96, 96, 2, (80, 160)), (64, 192, 1, (160, 54)), (2, 1200, 1, (160, 2))]
)
def test_thumbnails_keep_the_aspect_ratio(tmp_path, width, height, pixel, shape):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = pixel
        for _ in range(5):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24"))
            )
        container.mux(stream.encode(None))
    assert decoded(thumbnails(path, [0])[0]).shape[:2] == shape
