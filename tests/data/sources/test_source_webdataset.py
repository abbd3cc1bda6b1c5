"""Tar files, written by webdataset and by tarfile."""

import io
import json
import tarfile

import numpy as np
import pytest

from reeltag.core.errors import UsageError
from reeltag.data.sources.files import find_features, find_source
from sources import error_of, read

webdataset = pytest.importorskip("webdataset")

FRAMES = np.arange(12, dtype=np.float32).reshape(3, 4)


def _npy(values=FRAMES):
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def _npz(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _tar(folder, members, mode="w"):
    with tarfile.open(folder / "x.tar", mode) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return folder / "x.tar"


@pytest.mark.parametrize(
    ("sample", "video", "labels"),
    [
        ({"npy": FRAMES, "cls": 3}, "a", "3"),
        ({"rgb.npy": FRAMES, "txt": "cat, dog\n"}, "a", "cat, dog"),
        ({"npz": {"rgb": FRAMES}, "jpg": b"not read"}, "a", None),
        ({"json": {"rgb": FRAMES.tolist(), "labels": [0, 2], "title": "x", "id": "clip"}}, "clip", [0, 2]),
        ({"npy": FRAMES, "json": {"label": "cat"}}, "a", "cat"),
    ],
)
def test_members_of_one_name_are_a_video(sample, video, labels, tmp_path):
    sample = {key: json.dumps(value).encode() if key == "json" else value for key, value in sample.items()}
    with webdataset.TarWriter(str(tmp_path / "x.tar")) as writer:
        writer.write({"__key__": "a", **sample})
    (found,) = read(tmp_path / "x.tar")
    assert (found.id, found.labels) == (video, labels)
    assert np.array_equal(next(iter(found.features.values())), FRAMES)


def test_keys_keep_folders_and_compressed_shards_follow_each_other(tmp_path):
    with webdataset.ShardWriter(str(tmp_path / "x-%02d.tar.gz"), maxcount=2, verbose=0, compress=True) as writer:
        for number in range(5):
            writer.write({"__key__": f"clips/{number}", "npy": FRAMES + number})
    videos = read(tmp_path)
    assert [video.id for video in videos] == [f"clips/{number}" for number in range(5)]
    assert all(np.array_equal(video.features["features"], FRAMES + n) for n, video in enumerate(videos))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.npy", _npy()), ("a.pkl", b"")], ": a: has a member .pkl, a pickle, which is never read"),
        ([("a.pyd", b"")], ": a: has a member .pyd, a pickle"),
        ([("a.rgb.pth", b"")], ": a: has a member .rgb.pth, a pickle"),
        ([("a.npy", _npy(np.array([{}], object)))], ": a: a.npy: holds Python objects, which are never unpickled"),
        ([("a.npy", _npy()), ("a.npy", _npy())], ": has the member a.npy twice"),
        ([("a.npy", _npy()), ("a.npz", _npz(features=FRAMES))], ": a: has 'features' in two of its members"),
        ([("a.npy", _npy()), ("b.npy", _npy()), ("a.cls", b"1")], ": a: has no features"),
        ([("a.npy", _npy()), ("b.npy", _npy()), ("a.npy", _npy())], ": a: id 'a' occurs already before"),
        ([("a", _npy()), ("b.npy", _npy())], ": the member a has no suffix, so that it belongs to no sample"),
        ([("a.npy", _npy()), ("a.json", b"{")], ": a: is not JSON"),
        ([("a.npy", _npy()), ("a.txt", b"\xe9")], ": a: its member .txt is not UTF-8"),
        ([("a.jpg", b"x")], ": a: has no features"),
        ([("a.npy", _npy()[:-1])], ": a: a.npy: cannot be read"),
    ],
)
def test_samples_that_are_no_videos_are_refused(members, message, tmp_path):
    found = error_of(_tar(tmp_path, members))
    assert found.replace(": a.npy:", ": a: a.npy:").replace(": a: a: ", ": a: ").startswith(message)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_file_is_refused_wherever_it_ends(mode, tmp_path):
    path = _tar(tmp_path, [(f"{name}.npy", _npy()) for name in "abc"], mode)
    content = path.read_bytes()
    end = 3 * 1024 if mode == "w" else len(content)
    for size in range(300, end, 512 if mode == "w" else 16):
        for cut in (size, size // 512 * 512):
            path.write_bytes(content[:cut])
            assert error_of(path)


def test_braces_name_shards_and_each_of_them_must_exist(tmp_path):
    for name in ("x-08.tar", "x-09.tar", "x-10.tar", "x-{a}.tar"):
        _tar(tmp_path, [("a.npy", _npy())]).rename(tmp_path / name)
    expected = [tmp_path / f"x-{number}.tar" for number in ("08", "09", "10")]
    assert find_source("x-{08..10}.tar", tmp_path) == find_features(["x-{08..10}.tar"], tmp_path) == expected
    assert find_source("x-{a}.tar", tmp_path) == [tmp_path / "x-{a}.tar"]
    with pytest.raises(UsageError, match=r"x-11\.tar"):
        find_source(str(tmp_path / "x-{08..11}.tar"))
