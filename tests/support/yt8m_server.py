"""A server on loopback with the layout of data.yt8m.org, and with faults."""

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from reeltag.data.yt8m_download import UrlTemplates

PLAN = re.compile(r"/2/download_plans/(frame|video)_(train|validate|test)\.json")
SHARD = re.compile(r"/(us|eu|asia)/2/(frame|video)/(train|validate|test)/(\w+\.tfrecord)")


class Handler(BaseHTTPRequestHandler):
    """Answers from `server.shards`, unless `server.faults` has something for a shard's name."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer(head=False)

    def requested(self):
        """Return the name and the bytes of the requested file; None for bytes that do not exist."""
        if PLAN.fullmatch(self.path):
            return "plan", self.server.plan
        shard = SHARD.fullmatch(self.path)
        return (shard[4], self.server.shards.get(shard[4])) if shard else ("", None)

    def next_fault(self, name, first, end):
        """Record a request for the bytes from `first` to `end`, and return the fault that it shall meet."""
        with self.server.lock:
            self.server.asked.append((name, first, end))
            return self.server.faults[name].pop(0) if self.server.faults.get(name) else None

    def answer(self, *, head):
        name, content = self.requested()
        if content is None:
            return self.refuse(404)
        first, last = 0, len(content) - 1
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2]), last)
        fault = None if head else self.next_fault(name, first, last + 1)
        if fault == 503:
            return self.refuse(503)
        if fault == "stall":
            self.server.stalled.set()
            self.server.released.wait(60)
        body = content[first : last + 1]
        if fault == "wrong":
            body = bytes(len(body))
        if fault == "short":
            body = body[: len(body) // 2]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(content)}")
        self.end_headers()
        if not head:
            self.wfile.write(body[: len(body) // 2] if fault == "drop" else body)
            self.close_connection = fault == "drop"
        return None

    def refuse(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    """Shards that the server offers, and its requests.

    Attributes:
        shards: content by name there.
        plan: the answer for every plan.
        faults: for a name, what goes wrong with each request to come: 503, drop, short, wrong, stall, or None.
        asked: name, first byte and end of every request that was no HEAD.
    """

    daemon_threads = True

    def __init__(self, shards):
        super().__init__(("127.0.0.1", 0), Handler)
        self.shards, self.faults, self.asked = dict(shards), {}, []
        self.plan = json.dumps(
            {"files": {name: hashlib.md5(each).hexdigest() for name, each in shards.items()}}
        ).encode()
        self.lock, self.stalled, self.released = threading.Lock(), threading.Event(), threading.Event()
        at = f"http://127.0.0.1:{self.server_port}"
        self.source = UrlTemplates(
            at + "/2/download_plans/{level}_{split}.json", at + "/{mirror}/2/{level}/{split}/{name}"
        )

    @property
    def times_asked(self):
        """Count the requests of each shard."""
        return Counter(name for name, _, _ in self.asked if name != "plan")

    def handle_error(self, request, client_address):
        """Clients that were killed leave their connections."""


@contextmanager
def serving(shards):
    """A server of these shards."""
    server = Server(shards)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
