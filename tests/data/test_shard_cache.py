"""Shards behind URLs: the same as those that lie here, in a cache that keeps its limit."""

import multiprocessing
import shutil
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest

from conftest import TINY
from reeltag.core import remote_files
from reeltag.core.errors import DataError, TransferError, UsageError
from reeltag.core.storage import find_files
from reeltag.data import shard_cache, shards
from reeltag.data.loader import sequential_batches, training_batches
from reeltag.data.prefetch import Prefetcher
from reeltag.data.sampler import Shuffle
from reeltag.data.shards import Manifest, Shards, read_examples, scan
from reeltag.data.synthetic import write_synthetic

SCHEMA = TINY.record_schema
SETTINGS = TINY.model_copy(update={"train_videos": 60, "shards": 6})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six shards of ten videos, and a few to test on."""
    folder = tmp_path_factory.mktemp("shards")
    write_synthetic(folder, SETTINGS)
    return folder


def here(folder):
    return scan(sorted(folder.glob("train-*")), SCHEMA)


def there(store, folder):
    store.put_folder(folder)
    return scan(find_files(["train-*"], store.root), SCHEMA)


def cached_bytes():
    """Return the total size of all files in the cache at one moment, although downloads go on in the background."""
    listing = None
    while listing != (listing := _listing()):
        pass  # a file that is renamed or evicted while the folder is read would count twice or not at all
    return sum(listing.values())


def _listing():
    sizes = {}
    for path in shard_cache.folder().iterdir():
        with suppress(FileNotFoundError):
            if not path.is_symlink():
                status = path.stat()
                sizes[status.st_ino] = status.st_size
    return sizes


def empty():
    shards._open_remote.cache_clear()
    old = shard_cache.folder().rename(shard_cache.folder().with_name(f"old-{time.monotonic_ns()}"))
    shutil.rmtree(old, ignore_errors=True)  # a read-ahead that ended may not know yet


def assert_equal(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        assert one.ids == other.ids
        for name in ("frames", "lengths", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_the_manifest_is_that_of_the_same_shards_here(store, folder, rate, monkeypatch):
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 200)
    store.faults.rate = rate
    ours, theirs = here(folder), there(store, folder)
    assert theirs.fingerprint == ours.fingerprint
    for name in ("offsets", "numbers", "crcs", "frames", "id_hashes", "class_counts"):
        np.testing.assert_array_equal(getattr(theirs, name), getattr(ours, name))
    urls = [file.url for file in find_files(["train-*"], store.root)]
    assert theirs.shards == tuple(replace(info, path=url) for info, url in zip(ours.shards, urls, strict=True))
    assert bool(store.faults.injected) == bool(rate)


def test_a_manifest_with_urls_comes_back_from_its_file(web, folder, tmp_path):
    manifest = there(web, folder)
    manifest.save(tmp_path / "manifest")
    assert Manifest.load(tmp_path / "manifest").shards == manifest.shards


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_batches_are_those_of_the_same_shards_here_and_go_on_at_any_step(s3, folder, workers, monkeypatch):
    ours, theirs = Shards(here(folder)), Shards(there(s3, folder))
    largest = max(info.bytes for info in theirs.manifest.shards)
    monkeypatch.setenv("REELTAG_CACHE_GB", str(4.2 * largest / 1e9))  # two windows of two
    s3.faults.rate = 0.05
    indices = np.setdiff1d(np.arange(60), [3, 14, 15, 41])
    of = {"shuffle": Shuffle(3, 2), "batch_size": 8}
    expected = list(training_batches(ours, indices, steps=range(21), **of))
    for first in (0, 5, 13) if workers else range(21):
        if first % 5 == 0:
            empty()
        got = training_batches(theirs, indices, steps=range(first, 21), workers=workers, **of)
        assert_equal(expected[first:], list(got))
    for split in (None, indices[::3]):
        assert_equal(
            sequential_batches(ours, split, batch_size=7),
            list(sequential_batches(theirs, split, batch_size=7, workers=workers)),
        )


def test_the_cache_never_holds_more_than_its_limit(web, folder, monkeypatch):
    videos = Shards(there(web, folder))
    sizes = [info.bytes for info in videos.manifest.shards]
    limit = round(4.2 * max(sizes))
    monkeypatch.setenv("REELTAG_CACHE_GB", str(limit / 1e9))
    empty()
    web.faults.requests.clear()
    seen = []
    for _ in training_batches(videos, np.arange(60), shuffle=Shuffle(1, 2), batch_size=5, steps=range(60)):
        seen.append(cached_bytes())
    assert len(seen) == 60
    assert max(seen) <= limit < sum(sizes)
    assert max(seen) > 2 * min(sizes)  # the next window is there before it is needed
    # Five epochs of six shards, and none was fetched twice for one window.
    whole = [path for path, span in web.faults.reads() if span.startswith("bytes=0-")]
    assert len(whole) <= 5 * 6 + 6


def test_what_was_used_longest_ago_goes_first(web, folder, monkeypatch):
    files = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setenv("REELTAG_CACHE_GB", str(3.5 * files[0].size / 1e9))
    for file in (*files[:3], files[0], files[3]):
        time.sleep(0.02)  # file systems know times to some milliseconds
        shard_cache.fetch(file)
    web.faults.requests.clear()
    for file in (files[0], files[2], files[3]):
        shard_cache.fetch(file)
    assert not web.faults.reads()
    shard_cache.fetch(files[1])
    assert web.faults.reads()


def test_an_open_shard_stays_readable_when_it_goes(web, folder, monkeypatch):
    files = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setenv("REELTAG_CACHE_GB", str(1.5 * files[0].size / 1e9))
    with shard_cache.open_copy(files[0]) as file:
        shard_cache.fetch(files[1])
        assert shard_cache.size_bytes() == files[1].size
        assert file.read() == (folder / files[0].name).read_bytes()


def test_what_is_still_needed_goes_last(web, folder, monkeypatch):
    files = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setenv("REELTAG_CACHE_GB", str(2.5 * files[0].size / 1e9))
    first = shard_cache.fetch(files[0])
    shard_cache.protect(first.sha256)
    for file in files[1:4]:
        shard_cache.fetch(file)
    web.faults.requests.clear()
    shard_cache.fetch(first)
    assert not web.faults.reads()
    shard_cache.unprotect(first.sha256)
    for file in files[1:4]:
        time.sleep(0.02)
        shard_cache.fetch(file)
    shard_cache.fetch(first)
    assert web.faults.reads()


def test_two_processes_fetch_a_shard_once(web, folder, monkeypatch):
    files = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 200)
    contexts = map(multiprocessing.get_context, ("fork", "fork", "spawn"))
    processes = [context.Process(target=_fetch_all, args=(files,)) for context in contexts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    begins = [path for path, span in web.faults.reads() if span.startswith("bytes=0-")]
    assert sorted(begins) == sorted(f"/data/{file.name}" for file in files)
    assert cached_bytes() == sum(file.size for file in files)


def _fetch_all(files):
    for file in files:
        known = shard_cache.fetch(file)
        assert len(shard_cache.open_copy(known).read()) == file.size


@pytest.mark.parametrize("same_size", [True, False])
def test_a_shard_that_changed_since_it_was_indexed_is_an_error(store, folder, same_size):
    videos = Shards(there(store, folder))
    info = videos.manifest.shards[2]
    name = info.path.rsplit("/", 1)[1]
    content = (folder / name).read_bytes()
    store.put(name, content[:-20] + bytes(20) if same_size else content[:-20])
    empty()
    first = int(videos.manifest.first_records[2])
    with pytest.raises(DataError, match=rf"^{info.path}, record 0, byte 0: changed since it was indexed; put back"):
        videos.read(first)
    with pytest.raises(DataError, match="changed since it was indexed"):
        list(sequential_batches(Shards(videos.manifest), batch_size=10))
    assert videos.read(0)
    store.put(name, content)
    assert videos.read(first)


def test_a_damaged_copy_is_not_used(web, folder):
    videos = Shards(there(web, folder))
    copy = shard_cache.folder() / videos.manifest.shards[0].sha256
    copy.write_bytes(bytes(copy.stat().st_size))
    with pytest.raises(DataError, match=r"record 0, byte 0: CRC of the length .*run again to download it again"):
        videos.read(0)
    assert not copy.exists()
    copy.write_bytes(b"cut short")
    assert Shards(replace(videos.manifest, labelled=0)).read(11)
    with pytest.raises(DataError):  # of a process that still has it open
        videos.read(0)


def test_a_partial_file_goes_on_and_one_of_other_content_does_no_harm(web, folder):
    manifest = there(web, folder)
    info = manifest.shards[0]
    content = (folder / info.path.rsplit("/", 1)[1]).read_bytes()
    partial = shard_cache.folder() / f"{info.sha256}-{info.bytes}.partial"
    for start, requests in ((content[:1500], [1500]), (bytes(1500), [1500, 0])):
        empty()
        shard_cache.folder().mkdir()
        partial.write_bytes(start)
        web.faults.requests.clear()
        with shard_cache.open_copy(info.source) as file:
            assert file.read() == content
        begins = [int(span.removeprefix("bytes=").split("-")[0]) for _, span in web.faults.reads()]
        assert [begin for begin in begins if begin in (0, 1500)] == requests
        assert [path.name for path in shard_cache.folder().iterdir() if path.is_file()].count(info.sha256) == 1
        assert not partial.exists()


def test_a_new_version_is_fetched_and_an_old_one_that_is_back_is_known(store, folder):
    content = (folder / "train-00000-of-00006.tfrecord").read_bytes()
    other = (folder / "train-00001-of-00006.tfrecord").read_bytes()
    for each in (content, other, content):
        url = store.put("a.tfrecord", each)
        with shard_cache.open_copy(remote_files.stat(url)) as file:
            assert file.read() == each


def test_a_limit_that_is_too_small_or_no_size_is_one_message(web, folder, monkeypatch):
    (file, *_) = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setenv("REELTAG_CACHE_GB", "1e-6")
    with pytest.raises(UsageError, match=r"does not fit the cache's limit of 1,000 bytes; raise data.cache_gb"):
        shard_cache.fetch(file)
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("REELTAG_CACHE_GB", text)
        with pytest.raises(UsageError, match=f"REELTAG_CACHE_GB: should be gigabytes, such as 100, not '{text}'"):
            shard_cache.fetch(file)


def test_a_full_disk_is_one_message(web, folder, monkeypatch):
    (file, *_) = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setattr(shard_cache, "_free", lambda: 10)
    with pytest.raises(UsageError, match="but only 10 bytes are free; make room, or set REELTAG_CACHE"):
        shard_cache.fetch(file)


def test_read_ahead_is_done_before_it_is_asked_for_and_ends_with_its_block(web, folder):
    files = find_files([f"{web.put_folder(folder)}/train-*"])
    with Prefetcher([[file] for file in files]):
        end = time.monotonic() + 20
        while len(list(shard_cache.folder().glob("?" * 64))) < len(files):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert not any(shard_cache._needed.values())


def test_what_cannot_be_fetched_ahead_is_an_error_when_it_is_needed(web, folder, monkeypatch):
    files = find_files([f"{web.put_folder(folder)}/train-*"])
    monkeypatch.setattr(remote_files, "TRIES", 2)
    videos = read_examples(files, SCHEMA)
    first = next(videos)
    assert first.id
    web.stop()
    with pytest.raises(TransferError, match=rf"^{web.root}/train-0000\d-of-00006.tfrecord.*cannot be reached"):
        list(videos)
