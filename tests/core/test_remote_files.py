"""Files behind URLs: the same bytes whatever goes wrong on the way, and one message where nothing can be done."""

import multiprocessing
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from reeltag.cli.main import main
from reeltag.core import remote_files
from reeltag.core.errors import TransferError, UsageError

CONTENT = random.Random(1).randbytes(40_500)


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.3])
def test_the_same_bytes_come_through_faults(store, tmp_path, rate):
    url = store.put("a.bin", CONTENT)
    store.faults.rate = rate
    file, told = remote_files.stat(url), []
    assert (file.url, file.size, file.name) == (url, len(CONTENT), "a.bin")
    remote_files.download(url, tmp_path / "a", file.size, version=file.version, advance=told.append)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert sum(told) == len(CONTENT)
    assert remote_files.read(url) == CONTENT
    assert bool(store.faults.injected) == bool(rate)


@pytest.mark.parametrize("kind", ["503", "short", "drop", "stall"])
def test_every_kind_of_fault_is_tried_again_and_in_the_end_is_one_message(store, tmp_path, monkeypatch, kind):
    url = store.put("a.bin", CONTENT)
    file = remote_files.stat(url)
    monkeypatch.setattr(remote_files, "TRIES", 3)
    store.faults.rate, store.faults.kinds = 1.0, (kind,)
    with pytest.raises(TransferError, match=r"byte 2,000: cannot be reached \(.*3 times in a row; check the URL"):
        (tmp_path / "a").write_bytes(CONTENT[:2000])
        remote_files.download(url, tmp_path / "a", file.size)
    assert store.faults.injected[kind] >= 3
    assert (tmp_path / "a").read_bytes() == CONTENT[:2000]  # and nothing half


def test_a_download_goes_on_where_it_ended(store, tmp_path):
    url = store.put("a.bin", CONTENT)
    (tmp_path / "a").write_bytes(CONTENT[:12_345])
    store.faults.requests.clear()
    remote_files.download(url, tmp_path / "a", len(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT
    begins = [int(span.removeprefix("bytes=").split("-")[0]) for _, span in store.faults.reads() if span]
    assert begins == list(range(12_345, len(CONTENT), 1000))


def test_a_file_that_changes_on_the_way_is_noticed(store, tmp_path):
    url = store.put("a.bin", CONTENT)
    file = remote_files.stat(url)
    for changed in (bytes(len(CONTENT)), CONTENT[:1500], CONTENT + b"more"):
        store.put("a.bin", changed)
        (tmp_path / "a").unlink(missing_ok=True)
        with pytest.raises(TransferError, match="changed while it was read"):
            remote_files.download(url, tmp_path / "a", file.size, version=file.version)
    assert remote_files.stat(url).version != file.version
    (tmp_path / "a").write_bytes(CONTENT[:1500])
    store.put("a.bin", CONTENT[:900])
    with pytest.raises(TransferError, match="changed while it was read"):
        remote_files.download(url, tmp_path / "a", file.size, version=file.version)


def test_a_server_without_ranges_sends_the_file_once(web, tmp_path):
    url, web.app.ranges = web.put("a.bin", CONTENT), False
    (tmp_path / "a").write_bytes(CONTENT[:5])
    remote_files.download(url, tmp_path / "a", len(CONTENT))
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert len([span for _, span in web.faults.reads() if span]) == 1


def test_what_is_refused_is_one_message_at_once(web, tmp_path):
    url = web.put("a.bin", CONTENT)
    for status, message in (("403 Forbidden", "refused .*403"), ("404 Not Found", "no such file")):
        web.app.status = status
        web.faults.requests.clear()
        for action in (
            remote_files.stat,
            remote_files.read,
            lambda url: remote_files.download(url, tmp_path / "a", 10),
        ):
            with pytest.raises(TransferError, match=rf"a\.bin.*{message}"):
                action(url)
        assert len(web.faults.requests) <= 6  # a HEAD and a GET each


def test_files_are_listed_by_pattern_and_by_folder(store):
    names = ["b-1.bin", "b-2.bin", "c-1.bin"]
    urls = [store.put(name, name.encode() * 9) for name in names]
    found = remote_files.expand(f"{store.root}/b-*.bin")
    assert [(file.url, file.size) for file in found] == [(url, 63) for url in urls[:2]]
    assert found == [remote_files.stat(url) for url in urls[:2]]
    assert [file.url for file in remote_files.list_files(store.root + "/")] == urls
    store.faults.rate = 0.3
    for _ in range(20):  # a listing that fails may not be a shorter one
        assert [file.url for file in remote_files.expand(f"{store.root}/*.bin")] == urls
    store.faults.rate = 0
    assert remote_files.expand(f"{store.root}/x-*.bin") == []
    store.put("below/b-3.bin", b"x")
    assert [file.url for file in remote_files.expand(f"{store.root}/b-*.bin")] == urls[:2]
    assert remote_files.exists(urls[0])
    assert not remote_files.exists(f"{store.root}/nothing")


def test_patterns_of_folders_list_all_below_s3(s3):
    urls = [s3.put(f"{name}/a-{name}.bin", b"x") for name in ("one", "two")]
    s3.put("one/two/a-3.bin", b"x")
    assert [file.url for file in remote_files.expand(f"{s3.root}/*/a-*.bin")] == urls


def test_what_is_uploaded_is_what_comes_back(s3, tmp_path):
    (tmp_path / "a").write_bytes(CONTENT)
    url = f"{s3.root}/runs/a.bin"
    remote_files.upload(tmp_path / "a", url)
    assert remote_files.read(url) == CONTENT
    assert [file.url for file in remote_files.list_files(s3.root)] == [url]
    (tmp_path / "a").write_bytes(b"other")
    remote_files.upload(tmp_path / "a", url)
    assert remote_files.read(url) == b"other"


def test_web_servers_are_not_written_to(web, tmp_path):
    with pytest.raises(UsageError, match="only read"):
        remote_files.upload(tmp_path / "a", f"{web.root}/a")


def test_threads_and_forked_processes_read_at_the_same_time(store):
    urls = [store.put(f"{number}.bin", CONTENT[number:]) for number in range(6)]
    expected = [CONTENT[number:] for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(remote_files.read, urls)) == expected
    for method, count in (("fork", 2), ("spawn", 1)):
        with multiprocessing.get_context(method).Pool(count) as pool:
            assert pool.map(remote_files.read, urls, chunksize=1) == expected


def test_missing_credentials_are_one_message(s3, monkeypatch, capsys, tmp_path):
    from s3fs import S3FileSystem

    url = s3.put("a.tfrecord", CONTENT)
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(key)
    S3FileSystem.clear_instance_cache()
    s3.faults.requests.clear()
    for shards in (url, f"{s3.root}/*.tfrecord"):
        assert main(["data", "verify", shards, "--schema", "audioset"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {shards}: there are no credentials (")
        assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in error
        assert "AWS_ENDPOINT_URL" in error
        assert error.count("\n") == 1
    assert not s3.faults.requests


@pytest.mark.parametrize("scheme", ["s3", "http"])
def test_an_address_that_does_not_answer_is_one_message(scheme, request, monkeypatch, capsys):
    server = request.getfixturevalue("s3" if scheme == "s3" else "web")
    server.stop()
    assert main(["data", "inspect", f"{server.root}/a.tfrecord"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {server.root}/a.tfrecord: cannot be reached (")
    assert f"{remote_files.TRIES} times in a row" in error
    assert error.count("\n") == 1


def test_pauses_are_short_enough_for_somebody_who_waits():
    pauses = [min(remote_files.PAUSE_SECONDS * 2**n, remote_files.LONGEST_PAUSE) for n in range(remote_files.TRIES - 1)]
    assert sum(pauses) < 30
    assert remote_files.TRIES * remote_files.CONNECT_SECONDS < 60


def test_a_target_that_cannot_be_written_is_one_message(web, tmp_path):
    url = web.put("a.bin", CONTENT)
    with pytest.raises(UsageError, match="cannot be written"):
        remote_files.download(url, tmp_path / "no" / "folder", len(CONTENT))


def test_files_of_googles_store_are_listed_and_read(gs, tmp_path):
    urls = [gs.put(f"{number}.bin", CONTENT[number:]) for number in range(2)]
    found = remote_files.expand(f"{gs.root}/*.bin")
    assert [(file.url, file.size) for file in found] == [(urls[0], 40_500), (urls[1], 40_499)]
    assert found == [remote_files.stat(url) for url in urls]
    (tmp_path / "a").write_bytes(CONTENT[:7])
    remote_files.download(urls[0], tmp_path / "a", found[0].size, version=found[0].version)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert remote_files.exists(urls[0])
    assert not remote_files.exists(f"{gs.root}/nothing")
    gs.put("0.bin", bytes(40_500))
    with pytest.raises(TransferError, match="changed while it was read"):
        remote_files.download(urls[0], tmp_path / "b", found[0].size, version=found[0].version)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_what_googles_store_refuses_names_the_credentials(gs, status, capfd):
    url, gs.app.status = gs.put("a.bin", CONTENT), status
    for action in (remote_files.stat, remote_files.read, remote_files.exists, remote_files.list_files):
        with pytest.raises(TransferError, match=r"a\.bin: refused \(.*GOOGLE_APPLICATION_CREDENTIALS"):
            action(url)
    assert "Traceback" not in capfd.readouterr().err
