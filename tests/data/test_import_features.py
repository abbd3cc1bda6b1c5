"""Importing features: splits, labels, odd input, interruptions, and reading them without an import."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reeltag.cli.main import main
from reeltag.core.errors import ReeltagError, UsageError
from reeltag.core.storage import file_hash
from reeltag.data import import_features as module
from reeltag.data import importing
from reeltag.data.import_features import import_features
from reeltag.data.recipe_draft import draft_recipe
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples, scan

NAMES = [f"clip{number:02}" for number in range(30)]


def frames_of(name: str) -> np.ndarray:
    rng = np.random.default_rng(int(name[4:]))
    return rng.normal(size=(3 + int(name[4:]) % 5, 4)).astype(np.float32)


@pytest.fixture
def features(tmp_path):
    """Folder of NumPy files."""
    folder = tmp_path / "features"
    folder.mkdir()
    for name in NAMES:
        np.save(folder / f"{name}.npy", frames_of(name))
    return folder


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,labels\n" + "".join(f"{name},{'cat' if int(name[4:]) % 2 else 'dog|eel'}\n" for name in NAMES))
    return path


def schema_of(folder: Path) -> Schema:
    return Schema.model_validate(json.loads((folder / "manifest.json").read_text())["schema"])


def videos_of(folder: Path, split: str) -> list:
    return list(read_examples(sorted(folder.glob(f"{split}-*")), schema_of(folder)))


def hashes(folder: Path) -> dict[str, str]:
    """Hashes of a folder's files; the recipe, which is named after the folder, without its name."""
    draft = (folder / "recipe.toml").read_text().replace(f'name = "{folder.name}"', "")
    shards = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != "recipe.toml"}
    return {**shards, "recipe.toml": draft}


def is_test(name: str, share: float) -> bool:
    """The rule of the page, by hand: the lowest hashes."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64 < share


@pytest.mark.parametrize("share", [0, 0.2, 0.5])
def test_every_video_is_in_the_split_of_its_hash_with_its_values_and_labels(features, labels, tmp_path, share):
    done = import_features(features, labels, tmp_path / "out", test_share=share)
    tests = [name for name in NAMES if is_test(name, share)]
    assert (done.train_videos, done.test_videos) == (len(NAMES) - len(tests), len(tests))
    assert [video.id for video in videos_of(tmp_path / "out", "train")] == [name for name in NAMES if name not in tests]
    if tests:
        assert [video.id for video in videos_of(tmp_path / "out", "test")] == tests
    for video in videos_of(tmp_path / "out", "train"):
        assert np.array_equal(video.features[0], frames_of(video.id))
        assert video.labels.tolist() == ([0] if int(video.id[4:]) % 2 else [1, 2])
    assert (tmp_path / "out" / "label_names.csv").read_text() == "index,name\n0,cat\n1,dog\n2,eel\n"
    assert done.schema.max_frames == 7
    assert not (tmp_path / "out.parts").exists()


def test_what_is_written_is_what_the_manifest_and_the_recipe_say(features, labels, tmp_path):
    out = tmp_path / "out"
    import_features(features, labels, out)
    manifest = json.loads((out / "manifest.json").read_text())
    shards = {path.name: len(scan([path], schema_of(out), labelled=True)) for path in out.glob("*.tfrecord")}
    assert manifest["shards"] == shards
    assert manifest["source"] == "NumPy"
    assert main(["recipe", "check", str(out / "recipe.toml"), "--set", f"data.root={out}"]) == 0
    assert main(["run", str(out / "recipe.toml"), "--set", f"data.root={out}", "--dry-run"]) == 0


def test_a_test_set_of_its_own(features, labels, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in NAMES[20:]:
        (features / f"{name}.npy").rename(other / f"{name}.npy")
    import_features(features, labels, tmp_path / "out", test=other)
    assert [video.id for video in videos_of(tmp_path / "out", "train")] == NAMES[:20]
    assert [video.id for video in videos_of(tmp_path / "out", "test")] == NAMES[20:]
    with pytest.raises(UsageError, match="test_share: does not apply"):
        import_features(features, labels, tmp_path / "third", test=other, test_share=0.1)


def test_shards_are_full_whatever_the_parts(features, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "SHARD_BYTES", 900)
    import_features(features, labels, tmp_path / "out", test_share=0)
    shards = sorted((tmp_path / "out").glob("train-*"))
    assert [path.name for path in shards] == [f"train-{n:05}-of-{len(shards):05}.tfrecord" for n in range(len(shards))]
    assert len(shards) > 3
    assert [video.id for video in videos_of(tmp_path / "out", "train")] == NAMES
    sizes = [path.stat().st_size for path in shards]
    firsts = [next(iter(path.read_bytes()[:1])) for path in shards[1:]]  # length of the next record, which had no room
    assert all(size + first > 900 for size, first in zip(sizes, firsts, strict=False))


# --- odd input ------------------------------------------------------------------------------------


def refused(*arguments: object, **options: object) -> str:
    with pytest.raises(ReeltagError) as caught:
        import_features(*arguments, **options)
    out = Path(str(arguments[2]))
    assert not out.exists()
    return str(caught.value)


def test_videos_without_labels_are_counted_refused_left_out_or_kept(features, labels, tmp_path, capsys):
    out = tmp_path / "out"
    lines = labels.read_text().splitlines(keepends=True)
    labels.write_text("".join(lines[:-3]))
    message = refused(features, labels, out)
    assert "3 videos without labels" in message and "clip27" in message and "clip29.npy" in message
    assert "--unlabelled skip of an import, data.max_bad_records of a recipe" in message
    done = import_features(features, labels, out, unlabelled="skip", test_share=0)
    assert done.train_videos == 27
    assert "3 videos without labels left out" in done.remarks
    kept = import_features(features, labels, tmp_path / "kept", unlabelled="keep", test_share=0)
    assert [video.id for video in videos_of(kept.folder, "train") if video.labels is None] == NAMES[27:]
    assert any("3 videos without labels kept" in remark for remark in kept.remarks)


def test_videos_that_end_with_zeros_are_counted_as_they_may_be_padded(labels, tmp_path):
    lengths = np.array([len(frames_of(name)) for name in NAMES])
    padded = np.zeros((len(NAMES), lengths.max(), 4), "float32")
    for row, name in zip(padded, NAMES, strict=True):
        row[: len(frames_of(name))] = frames_of(name)
    np.savez(tmp_path / "padded.npz", ids=NAMES, rgb=padded)
    np.savez(tmp_path / "told.npz", ids=NAMES, rgb=padded, length=lengths)
    np.savez(tmp_path / "means.npz", ids=NAMES, rgb=padded[:, -1])  # video level, where zeros are no padding
    remarks = {
        name: import_features(tmp_path / f"{name}.npz", labels, tmp_path / name).remarks
        for name in ("padded", "told", "means")
    }
    ended = (lengths < lengths.max()).sum()
    what = "videos with zeros as the last frame; if that is padding, store numbers of frames"
    assert remarks == {"padded": (f"{ended} {what}",), "told": (), "means": ()}


def test_videos_taken_for_features_are_too_many(labels, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "by_feature.h5", "w") as file:
        for feature in ("audio", "rgb"):
            for number in range(65):
                file[f"{feature}/clip{number:02}"] = np.ones((3, 4), "float32")
    with pytest.raises(ReeltagError, match=r"/audio: has 65 features, such as 'clip00', and a video has 64 at most; "):
        import_features(tmp_path / "by_feature.h5", labels, tmp_path / "out")


def test_labels_without_a_video_are_counted(features, labels, tmp_path):
    labels.write_text(labels.read_text() + "nobody,cat\nnowhere,cat\n")
    done = import_features(features, labels, tmp_path / "out")
    assert "the labels have 2 ids without a video" in done.remarks


def test_without_any_labels_there_is_no_recipe(features, tmp_path):
    assert "no labels were given" in refused(features, None, tmp_path / "out")
    done = import_features(features, None, tmp_path / "out", unlabelled="keep")
    assert not (tmp_path / "out" / "recipe.toml").exists()
    assert done.train_videos + done.test_videos == 30


def test_a_class_that_no_training_video_has_is_named(features, labels, tmp_path):
    names = tmp_path / "names.csv"
    names.write_text("index,name\n0,eel\n1,cat\n2,dog\n3,yak\n")
    done = import_features(features, labels, tmp_path / "out", label_names=names, test_share=0)
    assert done.schema.classes == 4
    assert "no training video has the label yak, so it cannot be learned" in done.remarks
    assert next(iter(videos_of(tmp_path / "out", "train"))).labels.tolist() == [0, 2]


BAD = {
    "NaN": (np.array([[0, np.nan, 0, 0]], np.float32), "clip05.npy"),
    "another width": (np.zeros((2, 5), np.float32), r"clip05.npy: 'features' is \[2, 5\]"),
    "another type": (np.zeros((2, 4), np.uint8), r"clip05.npy: 'features' is \[2, 4\] uint8"),
    "another level": (np.zeros(4, np.float32), "clip05.npy"),
    "no frames": (np.zeros((0, 4), np.float32), "clip05.npy: .*0 frames"),
    "objects": (np.array([{"a": 1}], object), "clip05.npy: .*never unpickled"),
    "beyond float32": (np.full((2, 4), 1e300), "clip05.npy"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_video_is_named_and_nothing_is_written(features, labels, tmp_path, fault):
    values, message = BAD[fault]
    np.save(features / "clip05.npy", values, allow_pickle=True)
    assert re.search(message, refused(features, labels, tmp_path / "out"))


def test_a_feature_that_the_first_video_lacks_is_not_lost(labels, tmp_path):
    items = [
        (name, {"rgb": frames_of(name)} | ({"audio": frames_of(name)} if n else {}), "cat")
        for n, name in enumerate(NAMES)
    ]
    assert "video 1, 'clip01': has 'audio' too" in refused(items, None, tmp_path / "out")
    done = import_features(items, None, tmp_path / "out", features=["rgb"])
    assert [feature.name for feature in done.schema.features] == ["rgb"]


def test_an_id_that_occurs_twice_in_several_parts(features, labels, tmp_path):
    items = [(name, frames_of(name), "cat") for name in (*NAMES, NAMES[3])]
    assert "video 30, 'clip03': id 'clip03' occurs already" in refused(items, labels, tmp_path / "out")
    twice = tmp_path / "twice"
    twice.mkdir()
    np.save(twice / "clip03.npy", frames_of("clip03"))
    assert "id 'clip03' occurs already" in refused(features, labels, tmp_path / "out", test=twice)


def test_options_that_do_not_fit(features, labels, tmp_path):
    out = tmp_path / "out"
    assert "no such file or folder" in refused(tmp_path / "nothing-*.npy", labels, out)
    assert "1.5 is not a valid fraction" in refused(features, labels, out, test_share=1.5)
    assert "there are no test videos" in refused(features, labels, out, test_share=1e-9)
    assert "none of the features rgb" in refused(features, labels, out, features=["rgb"])
    assert "only shards are read from URLs" in refused("https://example.org/a.h5", labels, out)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UsageError, match="not empty"):
        import_features(features, labels, out)


def test_features_are_chosen_by_name_and_must_be_of_one_type(labels, tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    for name in NAMES:
        rgb = (frames_of(name) * 10).astype(np.uint8)
        np.savez(folder / f"{name}.npz", rgb=rgb, audio=frames_of(name)[:, :2], mean=frames_of(name).mean(0))
    assert "choose features of one" in refused(folder, labels, tmp_path / "out")
    assert "rgb uint8" in refused(folder, labels, tmp_path / "out", features=["rgb", "audio"])
    done = import_features(folder, labels, tmp_path / "out", features=["rgb"])
    assert (done.schema.dtype, done.schema.widths) == ("uint8", (4,))
    done = import_features(folder, labels, tmp_path / "means", features=["mean"])
    assert (done.schema.level, done.schema.dtype) == ("video", "float32")
    recipe = str(tmp_path / "means" / "recipe.toml")
    assert main(["run", recipe, "--set", f"data.root={tmp_path / 'means'}", "--dry-run"]) == 0


def test_ratings_of_segments(features, tmp_path):
    ratings = tmp_path / "ratings.csv"
    rows = [
        f"{name},{start},{start + 3},{label},{int(start == 0)}" for name in NAMES for start, label in ((0, 2), (0, 1))
    ]
    ratings.write_text("id,start,end,label,rating\n" + "\n".join(rows) + "\n")
    done = import_features(features, ratings, tmp_path / "out", test_share=0)
    assert done.schema.segments == 3
    first = next(read_examples(sorted((tmp_path / "out").glob("train-*")), done.schema))
    assert (first.id, first.labels.tolist(), first.rated.tolist()) == ("clip00:0", [1, 2], [1, 2])


# --- from Python ----------------------------------------------------------------------------------


def test_a_list_and_a_function_give_what_files_give(features, labels, tmp_path):
    import_features(features, labels, tmp_path / "files")

    def items():
        for name in NAMES:
            yield name, frames_of(name), ["cat"] if int(name[4:]) % 2 else ["eel", "dog"]

    import_features(items, None, tmp_path / "function")
    import_features(list(items()), None, tmp_path / "list")
    shards = [{p.name: file_hash(p) for p in (tmp_path / each).glob("t*")} for each in ("files", "function", "list")]
    assert shards[0] == shards[1] == shards[2]
    assert "give a list, or the function" in refused(items(), None, tmp_path / "out")
    assert "video 0: is a str" in refused(lambda: ["clip00"], None, tmp_path / "out")
    assert "give text or a whole number" in refused([(None, [[1.0]], [0])], None, tmp_path / "out")


# --- interruptions --------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from reeltag.data import importing
from reeltag.data.import_features import import_features
importing.SHARD_BYTES = 900
write, left = importing._close, [int(sys.argv[4])]
def killed(*arguments):
    write(*arguments)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
importing._close = killed
import_features(*sys.argv[1:4])
"""


# Of the second shard, no more than half can be written.
SMALL_FILES = """
import resource, signal, sys
from reeltag.data import importing
from reeltag.data.import_features import import_features
importing.SHARD_BYTES = 900
finish = importing.SplitWriter.finish
def limit(self):
    finish(self)
    self.settle()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
importing.SplitWriter.finish = limit
import_features(*sys.argv[1:4], test_share=0)
"""


def test_an_import_that_was_killed_goes_on_after_the_finished_shards(features, labels, tmp_path, monkeypatch):
    out, shards = tmp_path / "out", 2
    arguments = [sys.executable, "-c", PROGRAM, features, labels, out, str(shards)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert not out.exists()
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.parts").glob("*/*.tfrecord")}
    assert len(finished) == shards
    monkeypatch.setattr(importing, "SHARD_BYTES", 900)
    import_features(features, labels, tmp_path / "whole")
    written = []
    close = importing._close
    monkeypatch.setattr(importing, "_close", lambda *arguments: (written.append(arguments), close(*arguments)))
    import_features(features, labels, out)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert len(written) == len(list(out.glob("*.tfrecord"))) - shards
    assert not (tmp_path / "out.parts").exists()


def test_a_change_of_the_labels_starts_anew(features, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "SHARD_BYTES", 900)
    out = tmp_path / "out"
    np.save(features / "clip29.npy", np.zeros((2, 9), np.float32))
    refused(features, labels, out)
    assert list((tmp_path / "out.parts").glob("*/*.tfrecord"))
    np.save(features / "clip29.npy", frames_of("clip29"))
    labels.write_text(labels.read_text().replace("eel", "ape"))
    import_features(features, labels, out)
    assert (out / "label_names.csv").read_text() == "index,name\n0,ape\n1,cat\n2,dog\n"
    assert {tuple(video.labels) for video in videos_of(out, "train")} == {(0, 2), (1,)}


def test_a_disk_that_is_full_is_said_before_and_while_writing(features, labels, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "free_bytes", lambda path: 1000)
        assert "1,000 bytes free" in refused(features, labels, tmp_path / "out")
    monkeypatch.setattr(importing, "SHARD_BYTES", 900)
    program = [sys.executable, "-c", SMALL_FILES, features, labels, tmp_path / "out"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "train-00001.tfrecord: cannot be written (File too large)" in done.stderr
    assert "reeltag.core.errors.UsageError" in done.stderr
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "out.parts").glob("*/train*.tfrecord")] == ["train-00000.tfrecord"]
    assert not list((tmp_path / "out.parts").rglob("*.partial"))
    import_features(features, labels, tmp_path / "out")
    import_features(features, labels, tmp_path / "whole")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


@pytest.mark.slow
def test_workers_change_no_byte(features, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "SHARD_BYTES", 900)
    for workers in (1, 3):
        import_features(features, labels, tmp_path / str(workers), workers=workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "3")
    np.save(features / "clip05.npy", np.zeros((2, 4), np.int64))
    assert "clip05.npy" in refused(features, labels, tmp_path / "out", workers=3)


def test_the_command_says_what_was_read(features, labels, tmp_path, capsys):
    assert main(["data", "import", str(features), "--labels", str(labels), "--out", str(tmp_path / "out")]) == 0
    assert "frame level, at most 7 frames of float32: features 4; 3 classes" in capsys.readouterr().out


def test_a_drafted_recipe_is_named_after_its_folder():
    for folder, name in (("cats", "cats"), ("a/my clips (2)", "my-clips-2"), ("日本", "own-videos")):
        schema = Schema(features=({"name": "rgb", "width": 2},), classes=2, max_frames=3)
        draft = draft_recipe(schema, 10, Path(folder), command="x", label_names=None, tests=True)
        assert f'\nname = "{name}"\n' in draft
