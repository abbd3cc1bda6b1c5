"""The page of `reeltag tag` in a headless browser: tags, timelines and pictures, without any network request."""
# ruff: noqa: F811 - fixtures are arguments

import asyncio
import base64
import re
from dataclasses import replace

import numpy as np
import pytest

import chromium
from reeltag.artifact.file import load_artifact, save_artifact
from reeltag.artifact.tagging_rule import Thresholds
from reeltag.cli.main import main
from tagged import SECONDS, clips, model, shards  # noqa: F401 - fixtures

pytestmark = chromium.needed


@pytest.fixture(scope="module")
def file(clips, model, tmp_path_factory):
    """Write a page of four videos and a broken one, whose name and error contain HTML."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "<img src=x>.mp4").write_bytes(b"</script><b>no video</b>")
    arguments = [str(clips), str(folder / "<img src=x>.mp4"), "--model", str(model), "--quiet"]
    assert main(["tag", *arguments, "--html", str(folder / "page.html")]) == 0
    return folder / "page.html"


def browse(path, folder, story):
    """Run a story in a browser; assert that the page requests only itself and logs no error."""

    async def live():
        async with chromium.page(folder / "profile") as page:
            await page.open(path.as_uri())
            await page.until("document.querySelectorAll('.tag').length")
            await story(page)
            requested = {url for url in page.requests if not url.startswith("data:image/jpeg;base64,")}
            assert requested == {path.as_uri()}
            return page.complaints

    assert asyncio.run(live()) == []


def texts(selector):
    return f"[...document.querySelectorAll({selector!r})].map(each => each.textContent)"


def count(selector):
    return f"document.querySelectorAll({selector!r}).length"


def chosen(number):
    return f"document.querySelectorAll('#videos button')[{number}].click()"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_the_page_lists_videos_tags_and_pictures(file, tmp_path, width, scheme):
    async def story(page):
        await page.look(width, 900, scheme)
        assert await page.value(texts("#videos .name")) == [*SECONDS, "<img src=x>.mp4"]
        assert await page.value("document.querySelector('#model').textContent") == "m.reeltag · 4 videos · 1 left out"
        for number, (name, seconds) in enumerate(SECONDS.items()):
            await page.value(chosen(number))
            assert await page.value("document.querySelector('#title').textContent") == name
            assert f"{seconds} seconds" in await page.value("document.querySelector('#facts').textContent")
            assert await page.value(count(".cell")) == 3 * min(40, seconds)
            images = await page.value("[...document.querySelectorAll('#film img')].map(each => each.src)")
            assert len(images) == (0 if name == "song.m4a" else min(8, seconds))
            await page.until("[...document.querySelectorAll('#film img')].every(each => each.naturalWidth === 160)")
            assert await page.value("document.documentElement.scrollWidth") <= width
        assert set(await page.value(texts(".tag .name"))) == {"<b>high</b>", "low, lower", "none"}
        assert await page.value(count("main b, #videos img")) == 0
        background = await page.value("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (scheme == "dark")

    browse(file, tmp_path, story)


def test_a_selected_segment_shows_its_picture(file, tmp_path):
    async def story(page):
        await page.value(chosen(1))
        assert await page.value("document.querySelector('#picture').hidden")
        await page.value("document.querySelector('#chart').focus()")
        for key in ("ArrowDown", "ArrowRight"):
            await page.press(key)
        assert re.fullmatch(
            r".*, 0:01 to 0:02: 0\.\d\d", await page.value("document.querySelector('#reading').textContent")
        )
        picture = await page.value("document.querySelector('#picture').src")
        film = await page.value("[...document.querySelectorAll('#film img')].map(each => each.src)")
        assert picture == film[1]
        assert len(set(film)) == 3
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\xff\xd8")

    browse(file, tmp_path, story)


def test_a_file_without_a_result_shows_the_reason(file, tmp_path):
    async def story(page):
        await page.value(chosen(4))
        assert not await page.value("document.querySelector('#fault').hidden")
        assert "is not a media file" in await page.value("document.querySelector('#fault').textContent")
        assert await page.value("document.querySelector('#video').hidden")

    browse(file, tmp_path, story)


def test_a_page_of_one_video_has_no_list(clips, model, tmp_path):
    path = tmp_path / "one.html"
    assert main(["tag", str(clips / "hall.mp4"), "--model", str(model), "--quiet", "--html", str(path)]) == 0

    async def story(page):
        assert await page.value("document.querySelector('aside').offsetParent === null")
        assert await page.value("document.querySelector('#title').textContent") == "hall.mp4"

    browse(path, tmp_path, story)


def test_a_video_without_a_tag_above_its_threshold_is_shown(clips, model, tmp_path, capsys):
    artifact = load_artifact(model)
    none = np.zeros(artifact.schema.classes, np.int32)
    never = Thresholds(np.full(len(none), np.inf, np.float32), none, none, none, {"goal": "precision 0.9", "videos": 1})
    save_artifact(tmp_path / "never.reeltag", replace(artifact, thresholds=never))
    clip = str(sorted(clips.iterdir())[0])
    options = [
        "--model",
        str(tmp_path / "never.reeltag"),
        "--thresholds",
        "--quiet",
        "--html",
        str(tmp_path / "page.html"),
    ]
    assert main(["tag", clip, *options]) == 0
    assert capsys.readouterr().out.endswith("\n  no tag\n")

    async def look():
        async with chromium.page(tmp_path / "profile") as page:
            await page.open((tmp_path / "page.html").as_uri())
            await page.until("document.querySelectorAll('#videos button').length")
            assert "no tag" in await page.value("document.querySelector('#videos button').textContent")
            return page.complaints

    assert asyncio.run(look()) == []
