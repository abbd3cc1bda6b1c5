"""Models behind a URL: fetched once, again when they change, from the cache without a network, never half."""

import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry

import reeltag
from reeltag.artifact.file import Artifact, load_artifact, quantize_artifact, save_artifact
from reeltag.cli.main import main
from reeltag.core.download_cache import cache_folder
from reeltag.core.errors import ArtifactError, UsageError


class Handler(BaseHTTPRequestHandler):
    """One file, served as the server's attributes say."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.server.gets += 1
        content = self.answer()
        self.wfile.write(content[: self.server.sent])

    def answer(self):
        server, content = self.server, self.server.content
        self.send_response(server.status)
        if server.etag is not None:
            self.send_header("ETag", server.etag)
        if server.length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content if server.status == 200 else b""

    def log_message(self, *arguments):
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REELTAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def server(tiny_model):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.etag, server.status, server.length, server.sent = (
        tiny_model.read_bytes(),
        '"1"',
        200,
        True,
        None,
    )
    server.gets, server.url = 0, f"http://127.0.0.1:{server.server_port}/model.reeltag?of=day"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    stop(server)


def stop(server):
    server.shutdown()
    server.server_close()


def frames(schema):
    return np.random.default_rng(0).integers(0, 256, (3, 5, schema.width), dtype=np.uint8)


def files(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


def other_model(tiny_model, path):
    save_artifact(path, quantize_artifact(load_artifact(tiny_model), "float16"))
    artifact = load_artifact(path)
    save_artifact(path, Artifact(artifact.schema, None, artifact.members, {"recipe": "other"}))
    return path.read_bytes()


def test_a_file_is_fetched_once_and_predicts_the_same(server, tiny_model, tiny_schema, cache):
    for _ in range(2):
        tagger = reeltag.load(server.url)
        here = reeltag.load(tiny_model).predict(frames(tiny_schema))
        np.testing.assert_array_equal(tagger.predict(frames(tiny_schema)), here)
    assert server.gets == 1
    assert [path.read_bytes() for path in files(cache)] == [tiny_model.read_bytes()]


def test_a_changed_file_is_fetched_again_and_the_last_one_seen_serves_without_network(
    server, tiny_model, cache, tmp_path, caplog
):
    first = server.content
    reeltag.load(server.url)
    server.content, server.etag = other_model(tiny_model, tmp_path / "other.reeltag"), '"2"'
    assert reeltag.load(server.url).artifact.provenance == {"recipe": "other"}
    server.content, server.etag = first, '"1"'
    assert reeltag.load(server.url).artifact.provenance == {}
    assert server.gets == 2
    stop(server)
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert reeltag.load(server.url).artifact.provenance == {}
    (record,) = caplog.records
    assert server.url in record.getMessage()
    assert "cannot be reached" in record.getMessage()
    assert str(cache) in record.getMessage()


def test_a_server_that_names_no_version_is_asked_for_the_file_each_time(server, tiny_model, tmp_path):
    server.etag = None
    reeltag.load(server.url)
    server.content = other_model(tiny_model, tmp_path / "other.reeltag")
    assert reeltag.load(server.url).artifact.provenance == {"recipe": "other"}
    assert server.gets == 2


@pytest.mark.parametrize("length", [True, False])
def test_a_truncated_download_leaves_nothing_and_can_be_repeated(server, cache, length):
    server.sent, server.length = len(server.content) // 2, length
    with pytest.raises(ArtifactError, match=r"http://127.*(was not downloaded completely|copy it again)") as caught:
        reeltag.load(server.url)
    assert "partial" not in str(caught.value)
    assert not files(cache)
    server.sent = None
    reeltag.load(server.url)


def test_a_page_or_a_damaged_file_never_enters_the_cache(server, cache):
    damaged = bytearray(server.content)
    damaged[-5] ^= 1
    for content, message in (
        (b"<html>Please log in</html>", "not a reeltag file"),
        (bytes(damaged), "checksum of tensor"),
    ):
        server.content = content
        with pytest.raises(ArtifactError, match=rf"^http://127\.0\.0\.1:\d+/model.reeltag\?of=day: .*{message}"):
            reeltag.load(server.url)
    assert not files(cache)


@pytest.mark.parametrize("status", [401, 404])
def test_what_the_server_refuses_is_an_error_though_a_copy_is_there(server, status):
    reeltag.load(server.url)
    server.status = status
    with pytest.raises(ArtifactError, match=rf"of=day: (there is no such file|refused) .*{status}.*check the URL"):
        reeltag.load(server.url)


def test_a_server_in_trouble_counts_as_out_of_reach(server, caplog):
    server.status = 503
    with pytest.raises(ArtifactError, match=r"cannot be reached .*503.* no copy in"):
        reeltag.load(server.url)
    server.status = 200
    reeltag.load(server.url)
    server.status = 503
    reeltag.load(server.url)
    assert "503" in caplog.text


def test_a_refused_connection_is_one_clear_message(server, cache, capsys):
    stop(server)
    assert main(["inspect", server.url]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {server.url}: cannot be reached (")
    assert "check the URL and the network" in error
    assert not files(cache)


def test_commands_take_urls(server, tiny_model, tiny_shards, capsys):
    shards = str(tiny_shards / "test-*")
    outputs = []
    for model in (str(tiny_model), server.url):
        assert main(["predict", model, shards]) == 0
        assert main(["evaluate", model, shards, "--json"]) == 0
        assert main(["inspect", model, "--json"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_any_file_system_of_fsspec_serves_and_changes_are_seen(tiny_model, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe("/models/m.reeltag", tiny_model.read_bytes())
    assert reeltag.load("memory://models/m.reeltag").artifact.provenance == {}
    memory.pipe("/models/m.reeltag", other_model(tiny_model, tmp_path / "other.reeltag"))
    assert reeltag.load("memory://models/m.reeltag").artifact.provenance == {"recipe": "other"}
    memory.rm("/models/m.reeltag")
    with pytest.raises(ArtifactError, match=r"memory://models/m.reeltag: there is no such file"):
        reeltag.load("memory://models/m.reeltag")


def test_unknown_protocols_and_missing_libraries_say_what_to_do(monkeypatch):
    with pytest.raises(UsageError, match="Protocol not known"):
        reeltag.load("nonsense://x/y")
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # where an earlier test asked for it
    with pytest.raises(UsageError, match=r"s3://b/m.reeltag: cannot be read here .*s3fs.* pip install .*\[cloud\]"):
        reeltag.load("s3://b/m.reeltag")


def test_a_cache_that_cannot_be_written_is_one_message(server, cache):
    cache.write_text("a file")
    with pytest.raises(UsageError, match="cannot be written"):
        reeltag.load(server.url)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("REELTAG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "reeltag"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "reeltag"
