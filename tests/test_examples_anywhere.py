"""The programs of examples/anywhere give the probabilities of reeltag: in Python, Node, a browser and Java."""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

import chromium
from conftest import make_video
from reeltag.artifact.file import Artifact, Member, quantize_artifact, save_artifact
from reeltag.artifact.tagging_rule import Thresholds
from reeltag.data.formats.example import encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.inference.predictor import load
from reeltag.inference.timeline import segment_spans
from small_models import CLASSES, SCHEMA, small_tagger, stirred

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent.parent / "examples" / "anywhere"
EXPORT, PYTHON, NODE, SERVER, JAVA = (
    block.splitlines() for block in re.findall(r"```sh\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
)
NAMES = ("<b>first</b>", "zweite", "dritte", "vierte", "fünfte", "sechste", "siebte", "achte", "neunte")
FRAMES = 47  # more than there are segments


def run(line, folder):
    """Run a command of the page and return what it prints."""
    program, *arguments = shlex.split(line)
    command = {"python": [sys.executable], "reeltag": [sys.executable, "-m", "reeltag"]}.get(program, [program])
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install(line, folder, unreachable):
    """Run a command that asks a registry; skip the test where the registry cannot be reached."""
    try:
        run(line, folder)
    except subprocess.TimeoutExpired:
        pytest.skip(f"no answer of the registry: {line}")
    except AssertionError as error:
        if not re.search(unreachable, str(error)):
            raise
        pytest.skip(f"the registry cannot be reached: {line}")


@pytest.fixture(scope="module", params=["uint8", "float32"])
def made(request, tmp_path_factory):
    """A copy of the folder after the first commands of its page, the exact model, and the clip's frames."""
    folder = tmp_path_factory.mktemp("anywhere") / "anywhere"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("node_modules", "target"))
    schema = SCHEMA.model_copy(update={"dtype": request.param})
    tagger = stirred(small_tagger("netvlad", {"clusters": 4}))
    counts = np.full(CLASSES, 5, np.int32)
    values = np.where(np.arange(CLASSES) % 2, np.inf, 0).astype(np.float32)  # every other class has a threshold
    artifact = Artifact(schema, NAMES, (Member("m", tagger.config, 1.0, tagger.state_dict()),), {})
    artifact = replace(quantize_artifact(artifact), thresholds=Thresholds(values, counts, counts, counts))
    save_artifact(folder / "model.reeltag", artifact)
    video = make_video(schema, FRAMES, name="clip")
    (folder / "shards").mkdir()
    write_shard(folder / "shards" / "0.tfrecord", [encode(video, schema)])
    for line in EXPORT:
        run(line, folder)
    return folder, load(folder / "model.reeltag", mode="exact"), video.frames()


@pytest.fixture(scope="module")
def installed(made):
    """The same, with the packages of Node."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("Node is not installed")
    folder, *rest = made
    install(NODE[0], folder, r"code E(NOTFOUND|AI_AGAIN|TIMEDOUT|NETUNREACH|CONN\w+)")
    return folder, *rest


def assert_lines(printed, probabilities):
    """Assert that a clip's five most probable classes are printed in order, with number and name."""
    clip, *lines = printed.splitlines()
    assert clip == "clip.json"
    found = [line.split() for line in lines]
    best = np.argsort(-probabilities)[:5]
    assert [(int(number), name) for _, number, name in found] == [(number, NAMES[number]) for number in best]
    np.testing.assert_allclose([float(score) for score, _, _ in found], probabilities[best], rtol=0, atol=2e-6)


def test_python(made):
    folder, model, frames = made
    assert_lines(run(PYTHON[0], folder), model.predict(frames))


def test_node(installed):
    folder, model, frames = installed
    assert_lines(run(NODE[1], folder), model.predict(frames))


def test_java(made):
    folder, model, frames = made
    if not (shutil.which("mvn") and shutil.which("java")):
        pytest.skip("Java is not installed")
    install(JAVA[0], folder, r"(Could not|failed to) transfer")
    assert_lines(run(JAVA[1], folder), model.predict(frames))


@contextmanager
def served(folder):
    """Its address, while it is served as by `python -m http.server`."""
    assert SERVER == ["python -m http.server --bind 127.0.0.1 --directory javascript 8000"]

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def browse(installed, profile, story):
    """Live through a story with the page, whose every request is to its own folder."""

    async def live(address):
        async with chromium.page(profile) as page:
            await page.open(address)
            await page.value("globalThis.untouched = document.querySelector('#state').innerText")
            await story(page)
            assert all(url.startswith((address, "data:")) for url in page.requests), page.requests
            assert page.complaints == []

    with served(installed[0] / "javascript") as address:
        asyncio.run(live(address))


async def choose(page, folder, model, clip):
    await page.choose_file("#model", folder / model)
    await page.choose_file("#clip", folder / clip)
    await page.until("!['Tagging …', untouched].includes(document.querySelector('#state').innerText)")


@chromium.needed
def test_the_page_has_the_probabilities_of_python(installed, tmp_path):
    folder, model, frames = installed
    spans = segment_spans(FRAMES)
    expected = model.predict(frames)
    parts = np.stack([*model.predict_each(frames[begin:end] for begin, end in spans)])
    best = np.argsort(-expected)

    async def story(page):
        await choose(page, folder, "model.onnx", "clip.json")
        shown = await page.value(
            "[...document.querySelector('tbody').rows].map(row => [...row.cells].map(c => c.innerText))"
        )
        assert [row[:2] for row in shown] == [[f"{NAMES[n]} ({n})", f"{expected[n]:.4f}"] for n in best]
        assert await page.value("document.querySelectorAll('tbody tr:first-child i').length") == len(spans) == 40
        await page.value(
            "(async () => { const { openModel, tag } = await import('./tagger.js');"
            "const [model, clip] = ['#model', '#clip'].map(each => document.querySelector(each).files[0]);"
            "const opened = await openModel(new Uint8Array(await model.arrayBuffer()));"
            "globalThis.found = await tag(opened, JSON.parse(await clip.text()).frames); })()"
        )
        await page.until("globalThis.found")
        found = await page.value("found")
        assert [tuple(span) for span in found["segments"]] == spans
        assert [each["class"] for each in found["tags"]] == best.tolist()
        np.testing.assert_allclose([each["score"] for each in found["tags"]], expected[best], rtol=0, atol=1e-5)
        np.testing.assert_allclose([each["scores"] for each in found["tags"]], parts.T[best], rtol=0, atol=1e-5)

    browse(installed, tmp_path, story)


@chromium.needed
def test_the_page_says_what_is_wrong(installed, tmp_path):
    folder, model, frames = installed
    bad = 256 if model.schema.dtype == "uint8" else "1"
    wrong = {
        "narrow": (frames[:, 1:].tolist(), "frame 0 has 15 numbers; the model reads 16"),
        "value": ([*frames[:2].tolist(), [bad] * 16], f"frame 2 has a value that is not {model.schema.dtype}"),
        "none": ([], 'the clip has no "frames"'),
    }
    run("reeltag export model.reeltag --out top.onnx --top 3", folder)
    run("reeltag export model.reeltag --out tagged.onnx --thresholds", folder)

    async def story(page):
        for name, (content, message) in wrong.items():
            (folder / f"{name}.json").write_text(json.dumps({"frames": content}))
            await choose(page, folder, "model.onnx", f"{name}.json")
            await page.until(f"document.querySelector('#state').innerText == {f'{name}.json, model.onnx: {message}'!r}")
        await choose(page, folder, "top.onnx", "clip.json")
        await page.until("document.querySelector('#state').innerText.endsWith('export the model without --top')")
        await choose(page, folder, "clip.json", "clip.json")
        await page.until("!!document.querySelector('#state.fault') && document.querySelector('table').hidden")
        await choose(page, folder, "tagged.onnx", "clip.json")
        await page.until("document.querySelectorAll('tbody tr').length == 5")

    browse(installed, tmp_path, story)
