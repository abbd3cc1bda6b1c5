"""`reeltag extract`: from a folder of clips to shards, the same bytes whatever was killed on the way."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from clips import tone, write_clip
from decoders import crashes  # noqa: F401 - a fixture
from processgroup import all_end
from reeltag.cli.main import main
from reeltag.core.errors import UsageError, VideoError
from reeltag.core.progress import Progress
from reeltag.core.storage import find_files
from reeltag.core.tensorfile import TensorFile
from reeltag.data.shards import read_examples, scan
from reeltag.data.video import extract as collecting
from reeltag.data.video.dataset import Item, find_videos, split
from reeltag.data.video.extract import Settings, extract_dataset
from reeltag.data.video.features import open_pipeline
from reeltag.data.vocabulary import read_vocabulary
from reeltag.recipe.load import load_recipe

HEARD = ["--image", "none"]  # the sound alone, which needs no network


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six clips whose sound says their class, and files that are none or odd."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["file,labels"]
    for number in range(6):
        sound = tone(3, (300, 3000)[number % 2], loudness=0.1 * (number + 1))
        write_clip(folder / f"{number}.mp4", 3, 10, sound=sound)
        rows.append(f"{number}.mp4,{('low|even', 'high')[number % 2]}")
    write_clip(folder / "silent.mp4", 2, 10)
    write_clip(folder / "heard.m4a", 2, pictures=(), sound=tone(2))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no video either, and not asked for")
    rows += ["silent.mp4,even", "heard.m4a,low;high", "broken.mp4,high", "gone.mp4,low"]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def extract(videos, out, *options):
    return main(["extract", str(videos), "--labels", str(videos / "labels.csv"), "--out", str(out), *options])


def contents(folder):
    """Return the bytes of all files, without the recipe's name, which is the folder's."""
    named = f'name = "{folder.name}"'.encode()
    return {path.name: path.read_bytes().replace(named, b"") for path in folder.iterdir()}


@pytest.fixture(scope="module")
def shards(videos, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "shards"
    assert extract(videos, out, "--test-share", "0.3") == 0
    return out


def test_the_shards_hold_the_videos_and_their_labels(shards):
    schema = load_recipe(shards / "recipe.toml", [f"data.root={shards}"]).data.record_schema
    found = {video.id: video for video in read_examples(find_files([str(shards / "*.tfrecord")]), schema)}
    names = read_vocabulary(shards / "labels.csv", schema.classes).names
    assert names == ("even", "high", "low")
    labels = {name: {names[label] for label in video.labels} for name, video in found.items()}
    expected = {f"{n}.mp4": {"high"} if n % 2 else {"low", "even"} for n in range(6)}
    assert labels == expected | {"silent.mp4": {"even"}, "heard.m4a": {"low", "high"}}
    assert {name: video.length for name, video in found.items()} == {
        name: 3 if name in expected else 2 for name in found
    }
    assert [feature.name for feature in schema.features] == ["rgb", "audio"]
    assert schema.widths == (1280, 128)


def test_the_shards_hold_what_the_extractors_give(shards, videos):
    schema = load_recipe(shards / "recipe.toml", []).data.record_schema
    found = {video.id: video for video in read_examples(find_files([str(shards / "*.tfrecord")]), schema)}
    pipeline = open_pipeline("efficientnet-lite0", "logmel")
    for name in ("3.mp4", "silent.mp4", "heard.m4a"):
        for codes, expected in zip(
            found[name].features, pipeline.stored(pipeline.mapped(pipeline.extract(videos / name).values)), strict=True
        ):
            np.testing.assert_array_equal(codes, expected)


def test_each_split_is_sound(shards, capsys):
    schema = load_recipe(shards / "recipe.toml", []).data.record_schema
    train, test = (scan(find_files([str(shards / f"{name}-*.tfrecord")]), schema) for name in ("train", "test"))
    assert len(train) + len(test) == 8
    assert len(test) >= 1
    assert main(["data", "verify", str(shards / "*.tfrecord"), "--schema", str(shards / "recipe.toml")]) == 0
    assert main(["data", "inspect", str(shards / "train-*.tfrecord")]) == 0
    assert "feature list 'rgb': " in capsys.readouterr().out


def test_a_fifth_tests_where_there_are_labels_and_an_untaught_label_is_told(videos, tmp_path, capsys):
    names = [f"{number}.mp4" for number in range(6)]
    tested = min(names, key=lambda name: Item(name, videos / name, ()).order)
    rows = [f"{name},{'rare' if name == tested else 'usual'}" for name in names]
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *rows]))
    given = ["extract", *(str(videos / name) for name in names), *HEARD, "--labels", str(tmp_path / "labels.csv")]
    assert main([*given, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr()
    assert "5 training videos, 1 test video" in said.out
    assert "no training video has the label rare" in said.err
    assert main([*given, "--out", str(tmp_path / "b"), "--test-share", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["train_videos"], told["test_videos"], told["untaught"]) == (6, 0, [])
    assert main(["recipe", "check", str(tmp_path / "b" / "recipe.toml")]) == 2
    assert "data.test: missing or empty" in capsys.readouterr().err


def test_what_became_of_each_file_is_told(shards):
    manifest = json.loads((shards / "manifest.json").read_text())
    told = {row["file"]: row for row in manifest["videos"]}
    assert told["silent.mp4"]["remarks"] == ["no sound, taken as silence"]
    assert told["heard.m4a"]["remarks"] == ["no pictures, taken as black"]
    assert told["broken.mp4"]["split"] is None
    assert "is not a media file" in told["broken.mp4"]["remarks"][0]
    assert "there is no such video" in told["gone.mp4"]["remarks"][0]
    assert told["0.mp4"]["remarks"] == []
    assert manifest["extractors"]["rgb"]["name"] == "efficientnet-lite0"
    rows = (shards / "report.csv").read_text().splitlines()
    assert len(rows) == 11
    assert "broken.mp4,,0," in rows[7]


def test_one_worker_gives_the_same_bytes_as_several(shards, videos, tmp_path):
    assert extract(videos, tmp_path / "a", "--test-share", "0.3", "--workers", "1") == 0
    assert contents(tmp_path / "a") == contents(shards)
    assert not (tmp_path / "a.parts").exists()


def test_the_recipe_trains_and_the_model_knows_its_extractors(shards, tmp_path):
    sets = ["data.root=" + str(shards), "training.epochs=2"]
    options = [option for item in sets for option in ("--set", item)]
    assert main(["run", str(shards / "recipe.toml"), "--out", str(tmp_path / "run"), *options]) == 0
    data = TensorFile(tmp_path / "run" / "model.reeltag").content["data"]
    manifest = json.loads((shards / "manifest.json").read_text())
    assert data == manifest["schema"]
    assert [feature["extractor"]["name"] for feature in data["features"]] == ["efficientnet-lite0", "logmel"]


def test_a_pca_is_learned_and_applied(videos, tmp_path):
    assert extract(videos, tmp_path / "a", *HEARD, "--fit-pca", "4", "--test-share", "0.3") == 0
    schema = load_recipe(tmp_path / "a" / "recipe.toml", []).data.record_schema
    assert schema.widths == (4,)
    assert schema.features[0].extractor.projection is not None
    train = list(read_examples(find_files([str(tmp_path / "a" / "train-*.tfrecord")]), schema))
    values = np.concatenate([video.features[0] for video in train]) * (4 / 255) + 4 / 512 - 2
    np.testing.assert_allclose(values.mean(0), 0, atol=0.3)  # whitened but for what the 8 bits clip
    np.testing.assert_allclose(values.std(0), 1, atol=0.35)
    applied = ["--pca", str(tmp_path / "a" / "pca.safetensors"), "--test-share", "0.3"]
    assert extract(videos, tmp_path / "b", *HEARD, *applied) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_numbers_are_classes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, 1, 5, sound=tone(1))
    (tmp_path / "labels.csv").write_text("file,labels\na.mp4,3\nb.mp4,\n")
    data = find_videos([str(tmp_path)], tmp_path / "labels.csv")
    assert data.classes == ("0", "1", "2", "3")
    assert [item.labels for item in data.items] == [(3,), ()]


def test_names_tell_files_apart(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"")
    assert [item.id for item in find_videos([str(tmp_path)], None).items] == ["x/a.mp4", "y/a.mp4"]
    with pytest.raises(UsageError, match=r"are both called 'a\.mp4'"):
        find_videos([str(tmp_path / "x"), str(tmp_path / "y")], None)
    assert [item.id for item in find_videos([str(tmp_path / "x" / "*.mp4")], None).items] == ["a.mp4"]


def test_a_video_stays_in_its_split_when_others_come():
    items = [Item(f"{number}.mp4", None, None) for number in range(400)]
    train, test = split(items, 0.25)
    assert 70 < len(test) < 130
    fewer = {item.id for item in split(items[:200], 0.25)[1]}
    assert fewer == {item.id for item in test} & {item.id for item in items[:200]}
    assert not {item.id for item in train} & {item.id for item in test}
    assert [len(part) for part in split(items[:2], 0.01)] == [1, 1]
    with pytest.raises(UsageError, match="cannot be split"):
        split(items[:1], 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,labels\na.mp4,x\n", "columns 'file' and 'labels', and has name, labels"),
        ("", "is empty; it needs a header"),
        ("file,labels\na.mp4,x\na.mp4,y\n", "line 3: a.mp4 has a row already"),
        ("file,labels\na.mp4\n", "line 2: has 1 cell, and the header 2 columns"),
        ("file,labels\nb.mp4,x\n", "names none of the videos"),
        ("file,labels\na.mp4,\n", "gives no video a label"),
        ("file,labels\na.mp4,007|1\n", "written with zeros before it; write 7"),
        ("file,labels\na.mp4,1;0;0\nb.mp4,0;1;1\n", "every video has 3 labels, all of them 0 or 1"),
        ("file,labels\na.mp4,99999999\n", "is too high"),
        ("file,labels\na.mp4,\xff\n", "is not UTF-8"),
        ("file,labels\na.mp4,sea\nb.mp4,'tram, red'\n".replace("'", '"'), "line 3: 'tram, red' may be one label or"),
        ("file,labels\na.mp4,1\nb.mp4,two\nc.mp4,7\n", "line 2: '1' is a number, and 'two' in line 3 a name"),
        ("file,labels\n./a.mp4,x\nb.mp4,x\n", r"a.mp4: has no row in labels.csv; its row './a.mp4' must be called"),
        (
            "file,labels\nA,x\nb.mp4,x\n",
            r"A: is listed in labels.csv, but there is no such video; it is called 'a.mp4'",
        ),
    ],
)
def test_what_is_wrong_with_labels_is_said(tmp_path, text, message):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=message):
        find_videos([str(tmp_path)], tmp_path / "labels.csv")


def test_commas_are_parts_of_names_where_labels_are_separated(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "labels.csv").write_text('file,labels\na.mp4,"tram, red|"\nb.mp4,sea\n')
    assert find_videos([str(tmp_path)], tmp_path / "labels.csv").classes == ("sea", "tram, red")


def test_a_split_of_too_few_labelled_videos_names_the_rows_that_match_nothing(tmp_path):
    for name in ("a.mp4", "tram.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "labels.csv").write_text("file,labels\na.mp4,sea\ntram,street\n")
    given = [str(tmp_path)], tmp_path / "labels.csv"
    assert [item.id for item in find_videos(*given).items] == ["a.mp4"]
    with pytest.raises(UsageError, match=r"only 1 of the videos, and a split needs 2\n.*it is called 'tram.mp4'"):
        find_videos(*given, fewest=2)


def test_rows_of_videos_that_are_not_asked_for_are_counted(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("file,labels\na.mp4,x\n" + "".join(f"{n}.mp4,y\n" for n in range(40)))
    found = find_videos([str(tmp_path / "a.mp4")], tmp_path / "labels.csv")
    assert found.left_out == {}
    (remark,) = found.remarks
    assert remark.startswith("40 rows of labels.csv not read, since no such video was given: 0.mp4, ")
    assert len(find_videos([str(tmp_path)], tmp_path / "labels.csv").left_out) == 40


def test_nothing_in_a_folder_is_passed_over_in_silence(tmp_path):
    taken = [f"x{ending}" for ending in (".AIFF", ".caf", ".gif", ".h264", ".mp2", ".oga", ".wv", ".y4m")]
    for name in (*taken, "a.png", "b.png", "notes.txt", "README", ".hidden", "labelled.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nothing.mp4")
    rows = [f"{name},x" for name in (*taken, "labelled.png", "gone.mp4")]
    (tmp_path / "labels.csv").write_text("\n".join(["file,labels", *rows]))
    found = find_videos([str(tmp_path)], tmp_path / "labels.csv")
    assert {item.id for item in found.items} == {*taken, "labelled.png"}
    assert found.left_out == {"gone.mp4": "is a link to a file that does not exist"}
    assert found.remarks == ("4 files of other endings not taken: .png, .txt, none",)
    assert "labelled.png" not in {item.id for item in find_videos([str(tmp_path)], None).items}


def test_left_out_files_come_before_remarks_and_the_next_step_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "my clips"
    folder.mkdir()
    for number in range(2):
        write_clip(folder / f"{number}.m4a", 1, pictures=(), sound=tone(1))
        (folder / f"z{number}.mp4").write_bytes(b"no video")
    (folder / "silent.mp4").write_bytes(b"")
    (folder / "joined.m4a").write_bytes((folder / "0.m4a").read_bytes() * 2)
    names = ["joined.m4a", "0.m4a", "1.m4a", "z0.mp4", "z1.mp4", "silent.mp4"]
    (folder / "labels.csv").write_text("\n".join(["file,labels", *(f"{name},x" for name in names)]))
    assert extract(folder, tmp_path / "out [1]", *HEARD) == 0
    said = capsys.readouterr()
    assert f"train: reeltag run '{tmp_path / 'out [1]' / 'recipe.toml'}'" in said.out
    assert said.err.index("3 files left out") < said.err.index("  z1.mp4: left out") < said.err.index("1 file with")
    assert "\n1 file with remarks" in said.err
    assert "\n  joined.m4a: " in said.err[said.err.index("1 file with") :]
    assert extract(folder, folder / "labels.csv", *HEARD) == 2
    assert "labels.csv: is a file; choose a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "none", "--audio", "none"], "nothing to extract"),
        (["--image", "vgg"], "there is no 'vgg'"),
        (["--test-share", "1"], "is not a valid fraction"),
        (["--workers", "0"], "give 1 or more"),
        (["--fit-pca", "a"], "is not a list of widths"),
        (["--fit-pca", "1,2,3"], "is not a list of widths"),
        ([*HEARD, "--fit-pca", "100"], "allow at most"),
        (["--fit-pca", "3", "--pca", "x"], "give one of the two"),
        (["--pca", "missing"], "no such file"),
    ],
)
def test_what_cannot_work_is_refused_and_leaves_no_folder(videos, tmp_path, capsys, options, message):
    assert extract(videos, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_extracted_the_exit_code_says_so(tmp_path, capsys):
    (tmp_path / "a.mp4").write_bytes(b"")
    assert main(["extract", str(tmp_path / "a.mp4"), "--out", str(tmp_path / "out"), *HEARD]) == 2
    assert "no video could be extracted; the first, a.mp4: left out: is empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_folder_with_other_things_is_left_alone(videos, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert extract(videos, tmp_path, *HEARD) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_shards_are_of_limited_size(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(collecting, "SHARD_BYTES", 900)  # two of three seconds of 128 bytes
    assert extract(videos, tmp_path / "out", *HEARD, "--test-share", "0") == 0
    shards = find_files([str(tmp_path / "out" / "train-*.tfrecord")])
    assert len(shards) >= 4
    schema = load_recipe(tmp_path / "out" / "recipe.toml", ["data.test=['x']"]).data.record_schema
    frames = [sum(video.length for video in read_examples([shard], schema)) for shard in shards]
    assert max(frames) * 128 <= 900
    assert sum(frames) == 6 * 3 + 2


@pytest.mark.slow
def test_more_seconds_than_fit_are_reported(tmp_path):
    write_clip(tmp_path / "long.flac", pictures=(), sound=tone(310), sound_codec="flac")
    data = find_videos([str(tmp_path / "long.flac")], None)
    (outcome,) = extract_dataset(data, tmp_path / "out", Settings(image="none"), 1, Progress()).outcomes
    assert (outcome.seconds, outcome.remarks) == (300, ("the first 300 of 310 seconds",))


def test_a_file_without_what_is_extracted_is_left_out(videos):
    for extractors, name, message in (
        (("none", "logmel"), "silent.mp4", "has no sound"),
        (("efficientnet-lite0", "none"), "heard.m4a", "has no pictures"),
    ):
        with pytest.raises(VideoError, match=message):
            open_pipeline(*extractors).extract(videos / name)


def test_a_video_that_crashes_its_decoder_is_left_out(videos, tmp_path, crashes):  # noqa: F811
    data = find_videos([str(videos)], videos / "labels.csv")
    found = extract_dataset(data, tmp_path / "out", Settings(image="none"), 1, Progress()).outcomes
    left_out = {outcome.id: outcome.remarks[0] for outcome in found if outcome.split is None}
    assert left_out.keys() == {"5.mp4", "broken.mp4", "silent.mp4", "gone.mp4"}
    assert left_out["5.mp4"] == "left out: crashed its decoder (exit code 3); convert it, or leave it out"


class Killed(Exception):  # noqa: N818
    pass


def test_what_is_finished_is_not_extracted_again(videos, tmp_path, monkeypatch):
    """Broken off after three files; the same command does the rest and ends with the bytes of an undisturbed run."""
    data, settings = find_videos([str(videos)], videos / "labels.csv"), Settings(image="none", fit={"audio": 3})
    extract_dataset(data, tmp_path / "whole", settings, 1, Progress())
    done, real = [], collecting._extract_part

    def interrupted(*arguments, **others):
        if len(done) == 3:
            raise Killed
        real(*arguments, **others)
        done.append(arguments[0].path)

    monkeypatch.setattr(collecting, "_extract_part", interrupted)
    with pytest.raises(Killed):
        extract_dataset(data, tmp_path / "out", settings, 1, Progress())
    assert not (tmp_path / "out").exists()

    def counted(*arguments, **others):
        done.append(arguments[0].path)
        real(*arguments, **others)

    monkeypatch.setattr(collecting, "_extract_part", counted)
    extract_dataset(data, tmp_path / "out", settings, 1, Progress())
    assert len(done) == len(set(done)) == len(data.items)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes_with_several_workers(videos, tmp_path):
    out = tmp_path / "out"
    data, settings = find_videos([str(videos)], videos / "labels.csv"), Settings(image="none", test_share=0.3)
    extract_dataset(data, tmp_path / "whole", settings, 1, Progress())
    command = [sys.executable, "-m", "reeltag", "extract", str(videos), "--labels", str(videos / "labels.csv")]
    command += ["--out", str(out), "--test-share", "0.3", "--workers", "2", *HEARD]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not list((tmp_path / "out.parts").glob("*.part")):
        time.sleep(0.001)
    assert process.poll() is None, "it was too quick to be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert all_end(process.pid)
    assert not out.exists()
    subprocess.run(command, env=environment, check=True, stderr=subprocess.DEVNULL)
    assert contents(out) == contents(tmp_path / "whole")
    assert not (tmp_path / "out.parts").exists()
