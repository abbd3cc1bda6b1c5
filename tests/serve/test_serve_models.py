"""The model computes in processes of its own: as the predictor does, started again, and ended with the service."""

import asyncio
import os
import signal
import time
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from conftest import make_video
from reeltag.core.errors import RequestError, UsageError
from reeltag.inference.predictor import load
from reeltag.serve.models import ModelProcess, open_model
from serving import FLOATS, SCHEMA, post, record, service, write_model

GOOD = record(make_video(SCHEMA))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("served") / "m.reeltag")


def run(path, story, schema=SCHEMA):
    """Run a scenario, a coroutine that gets a process with the model."""
    model = ModelProcess(path, schema, "exact", 1)
    try:
        model.wait()
        return asyncio.run(story(model))
    finally:
        model.close()


@pytest.mark.parametrize(
    "schema",
    [pytest.param(SCHEMA, id="uint8"), pytest.param(FLOATS, id="float32", marks=pytest.mark.slow)],
)
def test_it_computes_what_the_predictor_does(schema, tmp_path):
    path = write_model(tmp_path / "m.reeltag", schema)
    batches = [[make_video(schema, length) for length in lengths] for lengths in ([50, 3, 20], [1], [7] * 8)]

    async def story(model):
        return [await model.tag(videos) for videos in batches]

    found = run(path, story, schema)
    predictor = load(path, "exact")
    for videos, scores in zip(batches, found, strict=True):
        expected = [predictor.predict(video.frames()) for video in videos]
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_there_is_at_least_one_worker(path):
    with pytest.raises(UsageError, match="workers: must be 1 or more, not 0"), open_model(path, "exact", 0):
        pass


@pytest.mark.slow
def test_what_cannot_be_loaded_is_said(path, tmp_path):
    damaged = tmp_path / "m.reeltag"
    damaged.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(UsageError, match="the file is damaged, copy it again"):
        run(damaged, None)


@pytest.mark.slow
def test_a_batch_whose_process_died_is_computed_by_the_next_one(path):
    videos = [make_video(SCHEMA)]

    async def story(model):
        scores = [await model.tag(videos)]
        kill(model)
        scores.append(await model.tag(videos))
        os.kill(pid_of(model), signal.SIGSTOP)  # so that it dies while it computes
        asyncio.get_running_loop().call_later(0.1, kill, model)
        scores.append(await model.tag(videos))
        assert model.deaths == 2
        return scores

    first, *others = run(path, story)
    for scores in others:
        np.testing.assert_array_equal(scores, first)


@pytest.mark.slow
def test_a_request_is_refused_when_the_next_process_cannot_help(path, tmp_path, monkeypatch):
    file = tmp_path / "m.reeltag"
    file.write_bytes(path.read_bytes())
    videos = [make_video(SCHEMA)]

    async def story(model):
        kill(model)
        write_model(file, SCHEMA, [f"class {number}" for number in range(8)])
        with pytest.raises(RequestError, match=r"loaded again: .* was replaced after the service started") as replaced:
            await model.tag(videos)
        file.write_bytes(path.read_bytes())
        scores = await model.tag(videos)
        start = model._start

        def doomed():
            worker = start()
            worker.process.kill()
            return worker

        kill(model)
        monkeypatch.setattr(model, "_start", doomed)
        with pytest.raises(RequestError, match="killed by SIGKILL, for the second time") as died:
            await model.tag(videos)
        monkeypatch.undo()
        np.testing.assert_array_equal(await model.tag(videos), scores)
        return replaced.value.status, died.value.status

    assert run(file, story) == (503, 503)


def pid_of(model):
    return int(model._worker.process.pid)


def kill(model):
    os.kill(pid_of(model), signal.SIGKILL)


def processes(service):
    threads = Path(f"/proc/{service.pid}/task").glob("*/children")  # each thread has those that it started
    children = [child for thread in threads for child in thread.read_text().split()]
    return [int(child) for child in children if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found in /proc")
def test_a_service_outlives_its_workers_and_they_do_not_outlive_it(path):
    def deaths():
        with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return float(answer.read().decode().partition("\nreeltag_worker_deaths ")[2].split()[0])

    with service(path, "--workers", 2) as (process, port):
        first = processes(process)
        assert len(first) == 2 and deaths() == 0
        expected = [post(port, GOOD) for _ in range(3)]
        os.kill(first[-1], signal.SIGKILL)
        os.kill(first[0], signal.SIGKILL)
        assert [post(port, GOOD) for _ in range(3)] == expected
        assert deaths() == 1  # a single client needs one process
        second = [each for each in processes(process) if is_running(each)]
        assert len(second) == 1 and not {*second} & {*first}
        for worker in second:  # as a service manager that signals the whole group
            os.kill(worker, signal.SIGTERM)
        assert post(port, GOOD) == expected[0]
        process.terminate()
        assert process.wait(20) == 0
        wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in second))
        assert "a process of the model was killed by SIGKILL; the next batch starts another" in process.stderr.read()
    with service(path, "--workers", 2) as (process, port):
        workers = processes(process)
        process.kill()
        wait_until(lambda: not any(map(is_running, workers)))


def is_running(worker):
    try:
        return Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
