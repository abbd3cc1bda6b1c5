"""Videos that are sent to the service: read in a process of their own, which ends where it has to."""
# ruff: noqa: F811 - fixtures are arguments

import asyncio
import os
import signal
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from test_serve_page import browse, running, texts

import chromium
from mean_graph import write_mean_graph
from reeltag.cli.main import main
from reeltag.core.storage import find_files
from reeltag.data.shards import read_examples
from reeltag.inference.predictor import load
from reeltag.inference.video.tagger import open_tagger
from reeltag.serve import videos
from reeltag.serve.videos import VideoProcess
from serving import app_of, client_of, concurrent_client, predictor  # noqa: F401 - fixtures
from tagged import SECONDS, clips, model, schema_of, shards, write_untrained  # noqa: F401 - fixtures

MP4 = {"Content-Type": "video/mp4"}


@pytest.fixture(scope="module")
def knowing(model):
    """A model that knows its extractors."""
    return load(model)


@pytest.fixture(scope="module")
def client(knowing):
    with client_of(knowing, max_body=300_000) as opened:
        yield opened


def post(client, content, headers=MP4, **query):
    return client.post("/predict", params=query, content=content, headers=headers)


def test_a_video_is_tagged_as_the_command_does(client, clips, knowing):
    tagger = open_tagger(knowing, "m.reeltag")
    for name in SECONDS:
        kind = {"Content-Type": "audio/mp4" if name == "song.m4a" else "video/mp4; codecs=any"}
        found = post(client, (clips / name).read_bytes(), kind, timeline="true", top=3)
        assert found.status_code == 200, found.text
        video, remarks = tagger.reader.read(clips / name, "")
        expected = tagger.tag(video, 3, timeline=True)
        told = found.json()
        assert told["remarks"] == list(remarks)
        assert (told["frames"], told["cut"]) == (SECONDS[name], 0)
        assert [tag["name"] for tag in told["tags"]] == [tag["name"] for tag in expected["tags"]]
        for mine, theirs in (
            ([tag["score"] for tag in told["tags"]], [tag["score"] for tag in expected["tags"]]),
            (told["timeline"]["scores"], expected["timeline"]["scores"]),
        ):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-6)
    assert client.get("/model").json()["videos"] is True


def test_what_is_no_video_or_too_large_is_refused(client, clips):
    whole = (clips / "beach.mp4").read_bytes()
    cases = [
        (400, b"no video", "the video is not a media file"),
        (400, b"", "the video is empty"),
        (400, whole[:300], "the video "),
        (413, bytes(300_001), "more than 300,000 bytes; send a shorter or smaller video, or raise --max-body-mb"),
    ]
    for status, content, message in cases:
        found = post(client, content)
        assert (found.status_code, message in found.json()["error"]) == (status, True), found.text
        assert "/tmp" not in found.text
    assert "top is 0" in post(client, whole, top=0).json()["error"]
    assert post(client, whole).status_code == 200


def test_a_model_that_knows_no_extractor_takes_no_video(predictor, clips):
    with client_of(predictor) as client:
        found = post(client, (clips / "beach.mp4").read_bytes())
        assert found.status_code == 415
        assert "does not name the extractor of its feature 'rgb'" in found.json()["error"]
        assert client.get("/model").json()["videos"] is False


def test_without_the_extra_it_says_what_is_missing(knowing, clips, monkeypatch):
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    with client_of(knowing) as client:
        found = post(client, (clips / "beach.mp4").read_bytes())
        assert found.status_code == 501
        assert "pip install 'reeltag[video]'" in found.json()["error"]


def test_an_extractor_that_is_another_here_is_told(knowing, clips):
    def changed(feature):
        return feature.model_copy(update={"extractor": feature.extractor.model_copy(update={"hash": "0" * 64})})

    schema = knowing.schema.model_copy(update={"features": tuple(map(changed, knowing.schema.features))})
    other = VideoProcess(replace(knowing.artifact, schema=schema), "m.reeltag")
    with pytest.raises(Exception, match="with other weights or settings") as caught:
        asyncio.run(read(other, clips))
    assert caught.value.status == 501


def test_the_file_of_an_encoder_is_asked_for_and_taken(clips, tmp_path, capsys):
    image, out = f"onnx:{write_mean_graph(tmp_path / 'mean.onnx')}", tmp_path / "shards"
    options = ["--image", f"{image}?std=0.5", "--audio", "none", "--allow-clipping", "--quiet"]
    assert main(["extract", str(clips / "hall.mp4"), "--out", str(out), *options]) == 0
    path = write_untrained(tmp_path / "m.reeltag", schema_of(out).model_copy(update={"classes": 3}))
    artifact = load(path).artifact
    status, message = VideoProcess(artifact, "m.reeltag").refusal
    assert (status, "give --image onnx:PATH for onnx:mean.onnx" in message) == (415, True)
    found, _ = asyncio.run(read(VideoProcess(artifact, "m.reeltag", image), clips))
    (expected,) = read_examples(find_files([str(out / "*.tfrecord")]), artifact.schema)
    np.testing.assert_array_equal(found.frames(), expected.frames())
    assert main(["serve", str(path), "--image", "onnx:gone.onnx"]) == 2
    assert "gone.onnx" in capsys.readouterr().err


async def read(process, clips, name="hall.mp4", seconds=30.0):
    try:
        return await process.read((clips / name).read_bytes(), asyncio.get_running_loop().time() + seconds)
    finally:
        process.close()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_one_process_reads_all_and_is_ended_with_the_service(knowing, clips):
    before = children()
    with client_of(knowing) as client:
        assert children() == before  # none starts before the first video
        content = (clips / "hall.mp4").read_bytes()
        first = post(client, content).json()
        begin = time.monotonic()
        assert post(client, content).json() == first
        assert time.monotonic() - begin < 2  # nothing is started or opened again
        (pid,) = children() - before
    assert not alive(pid)


def children():
    """Processes that this one started."""
    return {child.pid for child in active_children()}


@pytest.mark.slow
def test_a_video_that_takes_too_long_or_ends_its_process_is_refused_and_the_next_is_read(knowing, clips):
    async def story():
        process = VideoProcess(knowing.artifact, "m.reeltag")
        content = (clips / "hall.mp4").read_bytes()
        loop = asyncio.get_running_loop()
        first, _ = await process.read(content, loop.time() + 30)
        pid = process._worker.process.pid
        os.kill(pid, signal.SIGSTOP)  # hangs
        with pytest.raises(Exception, match="not read in time") as late:
            await process.read(content, loop.time() + 0.3)
        assert late.value.status == 504
        assert not alive(pid)
        again = asyncio.create_task(process.read(content, loop.time() + 30))
        while process._worker is None:
            await asyncio.sleep(0.01)
        folder = process._worker.folder.name
        waiting = asyncio.create_task(process.read(content, loop.time() + 30))
        os.kill(process._worker.process.pid, signal.SIGKILL)  # crashes
        with pytest.raises(Exception, match="crashed the process that read it") as crashed:
            await again
        assert crashed.value.status == 422
        assert not Path(folder).exists()
        second, _ = await waiting
        process.close()
        return first, second

    first, second = asyncio.run(story())
    np.testing.assert_array_equal(first.frames(), second.frames())


@pytest.mark.slow
def test_others_are_answered_while_a_video_is_read(knowing, clips):
    async def story():
        app = app_of(knowing)
        async with concurrent_client(app) as client:
            reading = asyncio.create_task(
                client.post("/predict", content=(clips / "tram.mp4").read_bytes(), headers=MP4, timeout=30)
            )
            answered = 0
            while not reading.done():
                begin = time.monotonic()
                assert (await client.get("/healthz")).status_code == 200
                assert time.monotonic() - begin < 1
                answered += 1
                await asyncio.sleep(0.02)
            assert (await reading).status_code == 200
            return answered

    assert asyncio.run(story()) > 20


def test_openapi_tells_of_videos(client):
    told = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert {"video/*", "audio/*"} <= set(told["requestBody"]["content"])
    assert "501" in told["responses"]


@pytest.mark.slow
@chromium.needed
def test_a_video_that_is_dropped_on_the_page(knowing, clips, tmp_path):
    async def story(page, address):
        await page.open(address)
        await page.until("document.querySelector('#what').textContent.startsWith('Drop a video')")
        await page.choose_file("#file", clips / "tram.mp4")
        await page.until("document.querySelectorAll('.cell').length == 120")
        assert await page.value("document.querySelector('#title').textContent") == "tram.mp4"
        facts = await page.value("document.querySelector('#facts').textContent")
        assert facts == "43 seconds · no sound, taken as silence"
        assert (await page.value(texts("#axis span")))[2] == "0:43"
        (tmp_path / "broken.mp4").write_bytes(b"no video")
        await page.choose_file("#file", tmp_path / "broken.mp4")
        await page.until("document.querySelector('#fault').textContent.includes('is not a media file')")

    with running(app_of(knowing)) as address:
        complaints = browse((address,), tmp_path, story)
    assert all("400" in complaint for complaint in complaints)
