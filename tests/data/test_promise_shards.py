"""A shard that is missing, short or swapped since it was indexed is noticed, with its name and what to do."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import make_video
from reeltag.cli.main import main
from reeltag.core.errors import DataError, ReeltagError
from reeltag.core.progress import Progress
from reeltag.data import shards
from reeltag.data.formats.example import Video, encode
from reeltag.data.formats.tfrecord import ShardFile, write_shard
from reeltag.data.loader import sequential_batches
from reeltag.data.schema import Feature, Schema
from reeltag.data.shards import Manifest, Shards
from reeltag.pipeline import executor
from reeltag.pipeline.executor import Stage
from reeltag.pipeline.stages.data import data_stages
from reeltag.recipe.load import load_recipe
from reliability import Promise

SCHEMA = Schema(features=(Feature(name="rgb", width=6),), classes=20, max_frames=9)
RECIPE = """name = "r"
budget_mb = 1
[data]
train = ["train-*"]
test = ["test-*"]
schema = { features = [{ name = "rgb", width = 6 }], classes = 20, max_frames = 9 }
[training]
epochs = 1
[models.a]
family = "mean"
hidden = 3
"""
COUNT = 6  # videos of a shard; every record has the same size


Fault = Callable[[Path, Path], None]


def videos_of(name: str) -> list[Video]:
    return [make_video(SCHEMA, 4, [1, 3], f"{name}-{number}") for number in range(COUNT)]


def write(path: Path, videos: list[Video]) -> None:
    write_shard(path, [encode(video, SCHEMA) for video in videos])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train-a", "train-b", "train-c", "test-a"):
        write(data / name, videos_of(name))
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


# --- faults: each takes a shard and another of the same size ------------------------------------


def removed(path: Path, other: Path) -> None:
    path.unlink()


def cut_between_records(path: Path, other: Path) -> None:
    os.truncate(path, int(ShardFile(path).offsets()[3]))


def cut_in_a_record(path: Path, other: Path) -> None:
    os.truncate(path, path.stat().st_size - 20)


def cut_to_nothing(path: Path, other: Path) -> None:
    os.truncate(path, 0)


def grown_by_a_record(path: Path, other: Path) -> None:
    write(path, [*videos_of(path.name), make_video(SCHEMA, 4, [1, 3], "train-z-0")])


def grown_by_garbage(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + bytes(7))


def exchanged(path: Path, other: Path) -> None:
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


def replaced_by_a_file_of_its_size(path: Path, other: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def a_folder(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_device(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def a_link_to_nothing(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def other_videos(path: Path, other: Path) -> None:
    write(path, videos_of(path.name.upper()))


def other_frames(path: Path, other: Path) -> None:
    """Of one video; its id, length and labels stay."""
    videos = videos_of(path.name)
    frames = videos[2].features[0].copy()
    frames[1, 3] ^= 1
    write(path, [*videos[:2], replace(videos[2], features=(frames,)), *videos[3:]])


def other_labels(path: Path, other: Path) -> None:
    videos = videos_of(path.name)
    write(path, [*videos[:5], replace(videos[5], labels=np.array([1, 4]))])


def another_order(path: Path, other: Path) -> None:
    write(path, videos_of(path.name)[::-1])


FAULTS: list[Fault] = [
    removed,
    cut_between_records,
    cut_in_a_record,
    cut_to_nothing,
    grown_by_a_record,
    grown_by_garbage,
    exchanged,
    replaced_by_a_file_of_its_size,
    a_folder,
    a_pipe,
    a_device,
    a_link_to_nothing,
]
IN_SILENCE = [other_videos, other_frames, other_labels, another_order, exchanged]  # size and time of change stay


def in_silence(fault: Fault, path: Path, other: Path) -> None:
    """A fault that leaves size and time of the last change as they were."""
    before = {each: each.stat() for each in (path, other)}
    fault(path, other)
    for each, status in before.items():
        os.utime(each, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert (each.stat().st_size, each.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


class Listener(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def index(folder: Path) -> tuple[Manifest, list[str]]:
    """Index both splits, as a run does; returns the training set's manifest and all that was said."""
    stages: list[Stage] = data_stages(load_recipe(folder / "r.toml", [f"data.root={folder / 'data'}"]), False)
    listener = Listener()
    folders = executor.run(stages, folder / "out", listener)
    return Manifest.load(folders["data.train"] / "manifest.safetensors"), listener.said


def read(manifest: Manifest, workers: int) -> int:
    return sum(len(batch) for batch in sequential_batches(Shards(manifest), batch_size=4, workers=workers))


def chosen(promise: Promise, faults: list[Fault]) -> list[tuple[Fault, str]]:
    """Each fault at each shard; few of them where only a little is tried."""
    cases = [(fault, name) for fault in faults for name in ("train-a", "train-b", "train-c")]
    return cases if promise.in_full else random.Random(5).sample(cases, 8)


def afresh(folder: Path, number: int) -> Path:
    """A copy of the data and no run yet."""
    own = folder / f"case-{number}"
    (own / "data").mkdir(parents=True)
    for path in (folder / "data").iterdir():
        (own / "data" / path.name).write_bytes(path.read_bytes())
    (own / "r.toml").write_text(RECIPE)
    return own


def test_between_indexing_and_training(promise: Promise, folder: Path) -> None:
    quiet = [(fault, name, True) for fault, name in chosen(promise, IN_SILENCE)]
    cases = [*((fault, name, False) for fault, name in chosen(promise, FAULTS)), *quiet]
    for number, (fault, name, silent) in enumerate(cases):
        own = afresh(folder, number)
        manifest, _ = index(own)
        path, other = own / "data" / name, own / "data" / ("train-c" if name == "train-a" else "train-a")
        in_silence(fault, path, other) if silent else fault(path, other)
        with pytest.raises(DataError) as caught:
            read(manifest, workers=2 * (number % 5 == 0))
        error = caught.value
        named = {str(path), str(other)} if fault is exchanged else {str(path)}
        assert error.file in named, fault.__name__
        assert error.record is not None
        assert error.offset == manifest.offsets[error.record]  # all shards have the same offsets
        assert error.reason.endswith("put back the shard that was indexed, or `touch` this one and run again")
    promise.found(
        4,
        f"{len(cases)} cases between indexing and training: shards missing, cut, grown, exchanged, replaced by others "
        "of the same size and time of change (other ids, frames, labels or order alone), by folders, pipes and "
        "devices; every one ends in an error with file, record, byte and what to do. Between two runs of a folder "
        "every changed shard is named. Without a manifest (`predict`) whole records that are missing cannot be told",
    )


def test_between_two_runs(promise: Promise, folder: Path) -> None:
    for number, (fault, name) in enumerate(chosen(promise, [*FAULTS, other_videos, other_frames])):
        own = afresh(folder, number)
        before, _ = index(own)
        path, other = own / "data" / name, own / "data" / ("train-c" if name == "train-a" else "train-a")
        fault(path, other)
        if path.is_file() and not path.is_symlink():
            os.utime(path)
        try:
            after, said = index(own)
        except ReeltagError as error:
            assert str(path) in str(error), fault.__name__
            continue
        assert any(str(path) in line for line in said), fault.__name__
        assert after.fingerprint != before.fingerprint
        assert read(after, workers=0) == len(after)


def test_a_shard_that_was_only_touched_is_indexed_anew_and_said_to_hold_the_same(folder: Path) -> None:
    before, said = index(folder)
    assert not any("changed" in line for line in said)
    (folder / "data" / "train-b").touch()
    after, said = index(folder)
    assert f"  {folder / 'data' / 'train-b'} changed" in said
    assert after.fingerprint == before.fingerprint


def test_what_an_error_of_a_silent_change_advises_helps(folder: Path) -> None:
    path = folder / "data" / "train-b"
    manifest, _ = index(folder)
    in_silence(other_frames, path, path)
    manifest, said = index(folder)  # which cannot see it
    assert sum("done before" in line for line in said) == 2
    with pytest.raises(DataError, match=rf"{path}, record 2, byte .* `touch` this one"):
        read(manifest, workers=0)
    path.touch()
    manifest, _ = index(folder)
    assert read(manifest, workers=0) == 3 * COUNT


def test_a_run_ends_with_the_name_of_the_shard(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", str(folder / "r.toml"), "--out", str(folder / "out"), "--set", f"data.root={folder / 'data'}"]
    in_full = [*command, "--set", "data.holdout.fraction=0.3", "--set", "training.batch_size=4"]
    assert main(["train", *in_full[1:]]) == 0
    in_silence(other_labels, folder / "data" / "train-b", folder / "data" / "train-b")
    shards._open.cache_clear()  # as a second process would start
    assert main([*in_full, "--set", "models.a.hidden=5"]) == 2
    printed = capsys.readouterr().err
    assert f"error: {folder / 'data' / 'train-b'}, record 5, byte " in printed
    assert "holds another record than when the shard was indexed; put back" in printed
    assert "Traceback" not in printed


def test_part_of_a_tagged_set_that_changed_is_tagged_anew(folder: Path, tiny_schema: Schema) -> None:
    """Whatever its size and its time of change; tests/inference/test_shard_tagger.py has all else."""
    from reeltag.inference import shard_tagger

    path = folder / "data" / "train-a"
    before = shard_tagger._part(path, folder, ["model", ".csv"]).path
    in_silence(other_frames, path, path)
    assert shard_tagger._part(path, folder, ["model", ".csv"]).path != before
