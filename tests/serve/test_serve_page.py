"""The page in a headless browser: tags and strip are there, nothing is asked of anybody else, names stay text."""

import asyncio
import socket
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import chromium
from conftest import make_video
from reeltag.data.formats.example import encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.inference.predictor import load
from reeltag.serve.samples import read_samples
from serving import SCHEMA, app_of, frames_of, record, write_model

uvicorn = pytest.importorskip("uvicorn")
pytestmark = chromium.needed
NAMES = tuple(f"<img src=x onerror=\"document.title='hit'\"> & {n}" for n in range(SCHEMA.classes))


@contextmanager
def running(app):
    """Its address, while it runs in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A service with two samples: its address and its model."""
    folder = tmp_path_factory.mktemp("page")
    model = load(write_model(folder / "m.reeltag", label_names=NAMES))
    videos = [make_video(SCHEMA, 45, name="<b>first</b>"), make_video(SCHEMA, 1, name="second")]
    write_shard(folder / "shard", (encode(video, SCHEMA) for video in videos))
    samples = read_samples([folder / "shard"], SCHEMA)
    with running(app_of(model, samples)) as address:
        yield address, model


def browse(served, folder, story):
    """Live through a story with a tab; all that it asked for is of the service."""

    async def live():
        async with chromium.page(folder / "profile") as page:
            await story(page, served[0])
            assert page.requests and all(url.startswith(served[0]) for url in page.requests), page.requests
            return page.complaints

    return asyncio.run(live())


def texts(selector):
    return f"[...document.querySelectorAll({selector!r})].map(each => each.textContent)"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_a_sample_s_tags_and_strip(served, tmp_path, width, scheme):
    probabilities = served[1].predict(make_video(SCHEMA, 45, name="<b>first</b>").frames())
    best = np.argsort(-probabilities)

    async def story(page, address):
        await page.look(width, 900, scheme)
        await page.open(f"{address}/?sample=0")
        await page.until("document.querySelectorAll('.cell').length")
        assert await page.value(texts(".tag .name")) == [NAMES[number] for number in best]
        assert await page.value(texts(".tag .score")) == [f"{probabilities[number]:.2f}" for number in best]
        assert await page.value("document.querySelector('#title').textContent") == "<b>first</b>"
        assert await page.value("document.querySelectorAll('.strip .cell').length") == 40 * SCHEMA.classes
        assert await page.value("document.querySelectorAll('img, b').length") == 0
        assert await page.value("document.title") == "m.reeltag · reeltag"
        ink, paper = await page.value("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
        assert (brightness(ink) > brightness(paper)) == (scheme == "dark")
        assert contrast(brightness(ink), brightness(paper)) > 7
        quiet = await page.value("getComputedStyle(document.querySelector('#facts')).color")
        assert contrast(brightness(quiet), brightness(paper)) > 4.5
        colours = "[...document.querySelectorAll('.cell')].map(each => getComputedStyle(each).backgroundColor)"
        assert len(set(await page.value(colours))) > 10
        assert await page.value("document.documentElement.scrollWidth") <= width

    assert browse(served, tmp_path, story) == []


def test_numbers_by_keyboard(served, tmp_path):
    video = make_video(SCHEMA, 45, name="<b>first</b>").frames()
    best = int(np.argsort(-served[1].predict(video))[1])
    expected = served[1].predict(video[2:3])[best]

    async def story(page, address):
        await page.open(f"{address}/?sample=0")
        await page.until("document.querySelectorAll('.cell').length")
        for _ in range(20):
            if await page.value("document.activeElement.id") == "chart":
                break
            await page.press("Tab")
        assert await page.value("document.activeElement.id") == "chart"
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowDown"):
            await page.press(key)
        said = await page.value("document.querySelector('#reading').textContent")
        assert said == f"{NAMES[best]}, frame 2: {expected:.2f}"
        described = "document.getElementById(document.querySelector('#chart').getAttribute('aria-activedescendant'))"
        assert await page.value(f"{described}.getAttribute('aria-label')") == said

    assert browse(served, tmp_path, story) == []


def test_one_frame_has_bars_and_no_strip(served, tmp_path):
    async def story(page, address):
        await page.open(f"{address}/?sample=1")
        await page.until("document.querySelector('#title').textContent == 'second'")
        assert len(await page.value(texts(".tag .score"))) == SCHEMA.classes
        assert await page.value("document.querySelectorAll('.cell').length") == 0

    assert browse(served, tmp_path, story) == []


def test_a_shard_from_disk_and_one_that_is_damaged(served, tmp_path):
    videos = [make_video(SCHEMA, 4 + n, name=f"video {n}") for n in range(5)]
    content = b"".join(map(record, videos))
    (tmp_path / "good").write_bytes(content)
    altered = bytearray(content)
    altered[len(record(videos[0])) + 30] ^= 1
    (tmp_path / "bad").write_bytes(altered[:-3])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text(str(frames_of(40)))

    async def story(page, address):
        await page.open(address)
        await page.until("document.querySelectorAll('.cell').length")
        await page.choose_file("#file", tmp_path / "good")
        await page.until("document.querySelector('#title').textContent == 'video 0'")
        await page.until(f"{texts('#videos .name')}[4] == 'video 4'")
        assert "8 frames" in (await page.value(texts("#videos .detail")))[4]
        await page.choose_file("#file", tmp_path / "bad")
        await page.until("document.querySelectorAll('#videos .wrong').length == 2")
        wrong = await page.value(texts("#videos .wrong .detail"))
        assert "CRC of the payload" in wrong[0] and "truncated: 3 bytes" in wrong[1]
        await page.choose_file("#file", tmp_path / "empty")
        await page.until("document.querySelector('#fault').textContent == 'empty is empty.'")
        await page.choose_file("#file", tmp_path / "text")
        await page.until("document.querySelector('#fault').textContent.includes('is JSON, not a TFRecord file')")
        await page.value("document.querySelector('#back').click()")
        await page.until("document.querySelector('#fault').hidden && document.querySelectorAll('.cell').length")

    complaints = browse(served, tmp_path, story)
    assert all("status of 400" in each for each in complaints), complaints


def test_a_service_that_has_gone_is_said_in_words(tmp_path, served):
    with running(app_of(served[1])) as address:

        async def story(page, _):
            await page.open(address)
            await page.until("!document.querySelector('#empty').hidden")
            await page.value("fetch = () => Promise.reject(new TypeError('gone'))")
            (tmp_path / "good").write_bytes(record(make_video(SCHEMA)))
            await page.choose_file("#file", tmp_path / "good")
            await page.until("document.querySelector('#fault').textContent.includes('does not answer')")

        browse((address, None), tmp_path, story)


def brightness(colour):
    """Relative luminance of rgb(…), as WCAG defines it."""
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
