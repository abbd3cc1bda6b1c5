"""S3 and a web server on loopback, with faults on order."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import threading
import time
from collections import Counter
from urllib.parse import parse_qs

import pytest

from reeltag.core import remote_files

KINDS = ("503", "short", "drop", "stall")
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


class Faulty:
    """A WSGI application that fails at a share of its requests.

    Attributes:
        rate: share of the requests that fail.
        kinds: how they fail.
        injected: faults so far.
        requests: method, path and Range of each request that was answered.
    """

    def __init__(self, app, stall=0.6):
        self.app, self.stall, self.rate, self.kinds = app, stall, 0.0, KINDS
        self.injected, self.requests, self.random, self.lock = Counter(), [], random.Random(0), threading.Lock()

    def __call__(self, environ, start_response):
        with self.lock:
            fault = None
            if self.random.random() < self.rate:
                # What was written half is not there, so a write fails whole.
                reads = environ["REQUEST_METHOD"] in ("GET", "HEAD")
                fault = self.random.choice(self.kinds) if reads else "503"
                self.injected[fault] += 1
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")))
        if fault == "503":
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        answer = []
        body = b"".join(self.app(environ, lambda status, headers, *rest: answer.extend([status, headers])))
        status, headers = answer
        half = body[: len(body) // 2]
        if fault == "short" and status.startswith("206"):
            headers = [(key, value) for key, value in headers if key.lower() != "content-length"]
            headers.append(("Content-Length", str(len(half))))
        start_response(status, headers)
        if fault is None or environ["REQUEST_METHOD"] == "HEAD":
            return [body]
        return self.halted(half) if fault == "stall" else [half]

    def halted(self, half):
        yield half
        time.sleep(self.stall)

    def reads(self):
        """Paths and ranges that were read."""
        return [(path, span) for method, path, span in self.requests if method == "GET"]


class Files:
    """A web server's files, by path; ranges and a version where it should know them."""

    def __init__(self):
        self.files, self.ranges, self.status, self.versions = {}, True, "200 OK", Counter()

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if not self.status.startswith("200") or path not in self.files:
            status = "404 Not Found" if self.status.startswith("200") else self.status
            listed = path.endswith("/") and self.status.startswith("200")
            page = "".join(f'<a href="{name[len(path) :]}">' for name in self.files if name.startswith(path)).encode()
            page = page if listed else b""
            headers = [("Content-Type", "text/html"), ("Content-Length", str(len(page)))]
            start_response("200 OK" if listed else status, headers)
            return [page]
        content, headers = self.files[path], [("ETag", f'"{self.versions[path]}"')]
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
        if span and self.ranges:
            begin, end = map(int, span.groups())
            if begin >= len(content):
                start_response("416 Range Not Satisfiable", [("Content-Length", "0")])
                return [b""]
            part = content[begin : end + 1]
            headers.append(("Content-Range", f"bytes {begin}-{begin + len(part) - 1}/{len(content)}"))
            start_response("206 Partial Content", [*headers, ("Content-Length", str(len(part)))])
            return [part]
        start_response("200 OK", [*headers, ("Content-Length", str(len(content)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else content]

    def put(self, path, content):
        self.files[path] = content
        self.versions[path] += 1


class Bucket(Files):
    """The part of Google's storage API that gcsfs calls, for a bucket called `tests`."""

    def __call__(self, environ, start_response):
        path, query = environ["PATH_INFO"], parse_qs(environ["QUERY_STRING"])
        name = "/" + path.partition("/b/tests/o")[2].strip("/")
        if self.status.startswith("200") and query.get("alt") == ["media"]:
            return super().__call__({**environ, "PATH_INFO": name}, start_response)
        answer = {"error": {"code": int(self.status[:3]), "message": "Anonymous caller does not have access"}}
        if self.status.startswith("200") and name == "/":
            prefix = "/" + query.get("prefix", [""])[0]
            answer = {"items": [self.described(each) for each in self.files if each.startswith(prefix)]}
        elif self.status.startswith("200"):
            answer = self.described(name) if name in self.files else {"error": {"code": 404, "message": "Not Found"}}
        content = json.dumps(answer).encode()
        status = "404 Not Found" if answer.get("error", {}).get("code") == 404 else self.status
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(content)))])
        return [content]

    def described(self, path):
        size, etag = str(len(self.files[path])), f"v{self.versions[path]}"
        return {"kind": "storage#object", "bucket": "tests", "name": path[1:], "size": size, "etag": etag}


def patient_file_system(url):
    """A file system for what prepares a test: it has no retries, so a busy machine must not look like silence."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_files, "SILENT_SECONDS", 60)
        return remote_files.file_system(url)


class Server:
    """An application behind faults, on a port of loopback."""

    def __init__(self, app, scheme, root):
        self.app, self.faults = app, Faulty(app)
        serving = pytest.importorskip("werkzeug.serving", reason="needs moto[server], which brings it")
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.server = serving.make_server("127.0.0.1", 0, self.faults, threaded=True)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.root = root or f"{self.address}/data"
        self.scheme = scheme
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, name, content):
        """Put a file there; returns its URL."""
        url = f"{self.root}/{name}"
        if self.scheme in ("http", "gs"):
            self.app.put(f"/data/{name}", content)
        else:
            filesystem, path = patient_file_system(url)
            rate, self.faults.rate = self.faults.rate, 0.0
            filesystem.pipe_file(path, content)
            self.faults.rate = rate
        return url

    def put_folder(self, folder):
        """Put the files of a folder there; returns its URL."""
        for file in sorted(folder.iterdir()):
            if file.is_file():
                self.put(file.name, file.read_bytes())
        self.faults.requests.clear()
        return self.root

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def quick(monkeypatch, tmp_path):
    """Short pauses, few bytes at a time and an empty cache."""
    monkeypatch.setattr(remote_files, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(remote_files, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(remote_files, "CHUNK_BYTES", 1000)
    monkeypatch.setenv("REELTAG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("REELTAG_CACHE_GB", "1")  # so that what a recipe sets goes with the test
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for key in [key for key in os.environ if key.startswith("AWS_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def started(scheme, monkeypatch):
    """A server of `s3`, `gs` or `http`."""
    if scheme == "http":
        return Server(Files(), "http", None)
    if scheme == "gs":
        pytest.importorskip("gcsfs", reason="needs the extra `cloud`").GCSFileSystem.clear_instance_cache()
        server = Server(Bucket(), "gs", "gs://tests/data")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.address)
        return server
    pytest.importorskip("s3fs", reason="needs the extra `cloud`")
    server = pytest.importorskip("moto.server", reason="needs moto[server], an S3 server on loopback")
    from s3fs import S3FileSystem

    server = Server(server.DomainDispatcherApplication(server.create_backend_app), "s3", "s3://bucket-of-tests/data")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for key in CREDENTIALS:
        monkeypatch.setenv(key, "of-tests")
    S3FileSystem.clear_instance_cache()  # which know the address of an earlier test
    filesystem, _ = patient_file_system(server.root)
    if filesystem.exists("bucket-of-tests"):  # moto keeps it in this process
        filesystem.rm("bucket-of-tests", recursive=True)
    filesystem.mkdir("bucket-of-tests")
    server.faults.requests.clear()
    return server


def served(scheme, monkeypatch, tmp_path):
    """A server with nothing on it, for a test."""
    quick(monkeypatch, tmp_path)
    server = started(scheme, monkeypatch)
    yield server
    server.stop()


@pytest.fixture(params=["s3", "http"])
def store(request, monkeypatch, tmp_path):
    yield from served(request.param, monkeypatch, tmp_path)


@pytest.fixture
def s3(monkeypatch, tmp_path):
    yield from served("s3", monkeypatch, tmp_path)


@pytest.fixture
def web(monkeypatch, tmp_path):
    yield from served("http", monkeypatch, tmp_path)


@pytest.fixture
def gs(monkeypatch, tmp_path):
    yield from served("gs", monkeypatch, tmp_path)
