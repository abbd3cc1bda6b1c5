"""A headless Chromium, driven by its DevTools protocol; whoever uses it skips where there is none."""

import asyncio
import base64
import json
import shutil
import subprocess
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --remote-debugging-port=0"
)
needed = pytest.mark.skipif(BINARY is None, reason="no Chromium is installed")
START = 30  # seconds that it may take to start, and a page to show what it should


class Page:
    """One tab.

    Attributes:
        requests: addresses that the page asked for.
        complaints: errors in its console, and exceptions.
    """

    def __init__(self, socket):
        self.socket, self.number, self.loaded = socket, 0, 0
        self.requests, self.complaints = [], []

    async def call(self, method, **parameters):
        """Send a command; events that come before its answer are noted."""
        answer = await self._answer(method, **parameters)
        assert "error" not in answer, answer
        return answer["result"]

    async def _answer(self, method, **parameters):
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            message = await self._receive()
            if message.get("id") == self.number:
                return message

    async def _receive(self):
        message = json.loads((await self.socket.receive()).data)
        self._note(message.get("method"), message.get("params"))
        return message

    def _note(self, event, told):
        if event == "Page.loadEventFired":
            self.loaded += 1
        elif event == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"]["text"])
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])

    async def open(self, url):
        """Open a page and wait until it has loaded; until then scripts would see the page before."""
        before = self.loaded
        await self.call("Page.navigate", url=url)
        end = time.monotonic() + START
        while self.loaded == before:
            await asyncio.wait_for(self._receive(), end - time.monotonic())

    async def value(self, script):
        """Evaluate a line of JavaScript and return its value."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, script):
        """Wait until a line of JavaScript gives something true; until then it may fail, or its page may go."""
        end = time.monotonic() + START
        while time.monotonic() < end:
            found = (await self._answer("Runtime.evaluate", expression=script, returnByValue=True)).get("result", {})
            if found.get("result", {}).get("value") and "exceptionDetails" not in found:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(
            f"never came true: {script}; the page says {await self.value('document.body.innerText')!r}"
        )

    async def press(self, key):
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def choose_file(self, selector, path):
        root = (await self.call("DOM.getDocument"))["root"]["nodeId"]
        node = await self.call("DOM.querySelector", nodeId=root, selector=selector)
        await self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node["nodeId"])

    async def look(self, width, height, scheme):
        """Set the size of the window and the colours that its user prefers."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def screenshot(self, path: Path):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def page(profile: Path):
    """A tab of a browser that ends with the block."""
    aiohttp = pytest.importorskip("aiohttp", reason="aiohttp is not installed")
    process = subprocess.Popen(
        [BINARY, *QUIET.split(), f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.DEVNULL
    )
    try:
        port = await _port(profile / "DevToolsActivePort")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                (tab,) = (each for each in await answer.json() if each["type"] == "page")
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                opened = Page(socket)
                for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
                    await opened.call(f"{domain}.enable")
                yield opened
    finally:
        process.terminate()
        process.wait()


async def _port(file: Path) -> int:
    end = time.monotonic() + START
    while time.monotonic() < end:
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("Chromium did not start")
