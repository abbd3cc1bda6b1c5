"""Helpers of the tests of the service: a small model, clients, and a service in a process."""

import asyncio
import http.client
import json
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager, contextmanager

import numpy as np
import pytest

from conftest import encode_unchecked
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.data.formats.tfrecord import frame_record
from reeltag.data.schema import Schema
from reeltag.inference.predictor import load
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

MISSING = "the extra 'serve' is not installed"
pytest.importorskip("fastapi", reason=MISSING)
pytest.importorskip("prometheus_client", reason=MISSING)
httpx2 = pytest.importorskip("httpx2", reason="httpx2 is not installed")

from starlette.testclient import TestClient  # noqa: E402

from reeltag.serve.app import create_app  # noqa: E402
from reeltag.serve.limits import Limits  # noqa: E402
from reeltag.serve.models import in_thread  # noqa: E402

TFRECORD = "application/x-tfrecord"
SCHEMA = Schema(features=[{"name": "rgb", "width": 6}, {"name": "audio", "width": 2}], classes=8, max_frames=50)
FLOATS = SCHEMA.model_copy(update={"dtype": "float32"})
VECTORS = FLOATS.model_copy(update={"level": "video"})


SMALL = {"family": "netvlad", "clusters": 4, "hidden": 8}


def write_model(path, schema=SCHEMA, label_names=None, config=SMALL):
    """Write a file with one untrained member whose probabilities differ from video to video."""
    config = parse_config({"family": "mean"} if schema.level == "video" else config)
    state = build_tagger(config, schema.widths, schema.classes, 0).state_dict()
    save_artifact(path, Artifact(schema, label_names, (Member("a", config, 1.0, state),), {"recipe": "none"}))
    return path


def limits(schema=SCHEMA, **changes):
    usual = {"max_batch": 64, "max_body": 1_000_000, "max_frames": 20 * schema.max_frames, "timeout": 30.0}
    return Limits(**{**usual, "max_waiting": 64, **changes})


@pytest.fixture(scope="session")
def predictor(tmp_path_factory):
    return load(write_model(tmp_path_factory.mktemp("served") / "m.reeltag"))


@pytest.fixture
def client(predictor):
    with client_of(predictor) as opened:
        yield opened


def app_of(predictor, samples=(), **changes):
    service_limits = limits(predictor.schema, **changes)
    return create_app(in_thread(predictor), "m.reeltag", service_limits, samples=samples)


def client_of(predictor, samples=(), **changes):
    return TestClient(app_of(predictor, samples, **changes), raise_server_exceptions=False)


@asynccontextmanager
async def concurrent_client(app):
    """Open a client for concurrent requests."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as opened:
        yield opened


def frames_of(length, seed=0, schema=SCHEMA):
    values = np.random.default_rng([length, seed]).integers(0, 256, (length, schema.width))
    return values.astype(schema.dtype)


def record(video, schema=SCHEMA):
    return frame_record(encode_unchecked(video, schema))


def post_records(client, body, **query):
    return client.post("/predict", params=query, content=body, headers={"Content-Type": TFRECORD})


def scores_of(tagged, classes=SCHEMA.classes):
    """Return all probabilities of an answer that has all tags, by class."""
    scores = np.full(classes, np.nan)
    for tag in tagged["tags"]:
        scores[tag["class"]] = tag["score"]
    return scores


class Gate:
    """Model that waits until `open` is set; records the number of videos of each call.

    Args:
        predictor: the predictor whose model computes.
    """

    def __init__(self, predictor):
        self.model, self.calls, self.open = predictor.model, [], threading.Event()

    def __call__(self, frames, lengths):
        self.calls.append(len(frames))
        assert self.open.wait(20)
        return self.model(frames, lengths)

    def parameters(self):
        return self.model.parameters()

    async def entered(self, calls=1):
        while len(self.calls) < calls:
            await asyncio.sleep(0.005)


@pytest.fixture
def gate(predictor, monkeypatch):
    gate = Gate(predictor)
    monkeypatch.setattr(predictor, "model", gate)
    yield gate
    gate.open.set()


# --- as a process ---------------------------------------------------------------------------------


@contextmanager
def service(*arguments, before="pass", log=subprocess.PIPE):
    """Run a service and yield its process and port; `before` is code that it runs first, `log` its standard error."""
    code = f"import sys; from reeltag.cli.main import main; {before}; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("m.reeltag: http://127.0.0.1:"), process.communicate()
        yield process, int(line.split(":")[3].split()[0])
    finally:
        process.kill()
        process.communicate()


def post(port, body, kind=TFRECORD):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", body, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def raw(port, *parts):
    """Send raw bytes; return the bytes that the service sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while chunk := connection.recv(65536):
            found += chunk
        return found
