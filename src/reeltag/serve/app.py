"""The routes of the service."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp

from reeltag.artifact.file import artifact_header
from reeltag.core.errors import RequestError, UsageError
from reeltag.core.version import __version__
from reeltag.data.loader import Batch
from reeltag.inference.ensemble import predict_batches
from reeltag.inference.predictor import Predictor
from reeltag.inference.timeline import ScoreArray, Tagged
from reeltag.serve.answers import answers, clips
from reeltag.serve.batching import Batcher
from reeltag.serve.describe import PREDICT
from reeltag.serve.limits import Limits, refuse_large_answer
from reeltag.serve.monitoring import Monitored, Monitoring
from reeltag.serve.requests import JSON, RECORDS, VIDEO, Wanted, media_type, most_bytes, options, parse, too_large
from reeltag.serve.samples import Sample
from reeltag.serve.videos import VideoProcess

# For each path of the page: package, file and media type. `reeltag tag --html` shares the style and the chart.
_PAGE = {
    "/": ("reeltag.serve", "page.html", "text/html"),
    "/page.css": ("reeltag.inference.video", "page/base.css", "text/css"),
    "/page.js": ("reeltag.serve", "page.js", "text/javascript"),
    "/chart.js": ("reeltag.inference.video", "page/chart.js", "text/javascript"),
    "/icon.svg": ("reeltag.serve", "icon.svg", "image/svg+xml"),
}
_OURS_ONLY = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LARGE = 250_000  # bytes; larger bodies are parsed in a thread, so that the event loop serves other requests
_log = logging.getLogger("reeltag.serve")
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class Service:
    """State and handlers of the routes.

    Args:
        predictor: the model.
        name: name of its file.
        limits: limits of the service.
        samples: records that the page offers.
        image: extractor of the feature `rgb` of videos, as in `open_reader`.
        audio: extractor of the feature `audio`, likewise.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        limits: Limits,
        samples: Sequence[Sample] = (),
        *,
        image: str | None = None,
        audio: str | None = None,
    ) -> None:
        self.limits, self.samples = limits, samples
        self.schema, self.label_names = predictor.schema, predictor.label_names
        header = artifact_header(predictor.artifact)
        self.about = {
            "name": name,
            "reeltag": __version__,
            "classes": self.schema.classes,
            "named": header["label_names"] is not None,
            "limits": asdict(limits),
            "computed": predictor.choice.dump(),
            "calibrated": predictor.calibrated,
            "thresholds": header.get("thresholds"),
        } | {key: header[key] for key in ("data", "members", "provenance")}
        self.thresholds = None if predictor.artifact.thresholds is None else predictor.thresholds.tolist()
        members = str(len(header["members"]))
        labels = {"name": name, "members": members, "classes": str(self.schema.classes), "reeltag": __version__}
        self.monitoring = Monitoring(lambda: self.batcher.waiting, labels)
        self.batcher = Batcher(_tagging(predictor), self.schema, limits.max_batch, self.monitoring.batches.observe)
        self.videos = VideoProcess(predictor.artifact, name, image, audio)
        self.about["videos"] = self.videos.refusal is None
        self._working = 0

    async def predict(self, request: Request) -> Response:
        """Tag the videos of a request."""
        if self._working >= self.limits.max_waiting:
            raise RequestError(503, f"{self._working} requests are in progress, the maximum; try again later")
        self._working += 1
        deadline = asyncio.get_running_loop().time() + self.limits.timeout
        try:
            kind = media_type(request.headers.get("content-type", ""))
            if kind == VIDEO and self.videos.refusal is not None:
                raise RequestError(*self.videos.refusal)
            reading = _body(request, kind, most_bytes(kind, self.schema, self.limits))
            body = await asyncio.wait_for(reading, self.limits.timeout)
            tag = self._tagged_file if kind == VIDEO else self._tagged
            tagged = await tag(request, kind, body, deadline)
        except asyncio.TimeoutError as error:
            raise RequestError(408, f"the body did not arrive within {self.limits.timeout:g} s") from error
        except ClientDisconnect as error:
            raise RequestError(499, "the client disconnected before its body had arrived") from error
        finally:
            self._working -= 1
        return _json({"videos": tagged} if kind in RECORDS else tagged[0])

    async def _tagged(self, request: Request, kind: str, body: bytes, deadline: float) -> list[Tagged]:
        arguments = (kind, request.query_params, body, self.schema, self.limits)
        wanted = parse(*arguments) if len(body) < _LARGE else await asyncio.to_thread(parse, *arguments)
        return await self._answered(request, wanted, deadline)

    async def _tagged_file(self, request: Request, _: str, body: bytes, deadline: float) -> list[Tagged]:
        options(request.query_params, self.schema, [])  # check the options before the slow decoding
        video, remarks = await self.videos.read(body, deadline)
        if video.length > self.limits.max_frames:
            raise RequestError(413, f"the video has more than {self.limits.max_frames:,} frames; send a shorter one")
        (tagged,) = await self._answered(request, options(request.query_params, self.schema, [video]), deadline)
        return [{**tagged, "remarks": remarks}]

    async def _answered(self, request: Request, wanted: Wanted, deadline: float) -> list[Tagged]:
        if wanted.thresholds and self.thresholds is None:
            raise RequestError(400, "thresholds: the model has none; leave them out")
        videos = clips(wanted)
        refuse_large_answer(len(videos), wanted.top)
        scores = await self.batcher.tag(videos, deadline, request.is_disconnected)
        self.monitoring.videos.inc(len(wanted.videos))
        return answers(wanted, scores, self.label_names, self.thresholds)

    async def healthz(self) -> Response:
        """Report that the service is running."""
        return _json({"status": "ok"})

    async def metrics(self) -> Response:
        """Return metrics in the format of Prometheus."""
        return Response(generate_latest(self.monitoring.registry), media_type=CONTENT_TYPE_LATEST)

    async def model(self) -> Response:
        """Return the data schema, members and provenance of the model, and the limits of the service."""
        return _json(self.about)

    async def sample_list(self) -> Response:
        """List the sample records, which are at `/samples/0`, `/samples/1` and so on."""
        return _json([{"id": sample.id, "frames": sample.frames} for sample in self.samples])

    async def sample(self, number: str) -> Response:
        """Return a sample record, ready to be sent to `/predict`."""
        known = {str(index): sample for index, sample in enumerate(self.samples)}
        if number not in known:
            raise RequestError(404, f"no sample has this number; there are {len(known)}, numbered from 0")
        return Response(known[number].record, media_type=RECORDS[0])


def create_app(
    predictor: Predictor,
    name: str,
    limits: Limits,
    samples: Sequence[Sample] = (),
    *,
    image: str | None = None,
    audio: str | None = None,
) -> ASGIApp:
    """Build the service as an ASGI application, from the arguments of `Service`.

    Raises:
        UsageError: the model tags segments.
    """
    if predictor.schema.segments is not None:
        raise UsageError(f"{name}: the model tags segments, but the service tags whole videos; use `reeltag predict`")
    service = Service(predictor, name, limits, samples, image=image, audio=audio)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.batcher.close()
        service.videos.close()

    app = FastAPI(title="reeltag", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_route("/predict", service.predict, methods=["POST"])  # matches first, and so bypasses FastAPI's layers
    app.add_api_route("/predict", service.predict, methods=["POST"], **PREDICT)  # for /openapi.json
    for path, route in (
        ("/healthz", service.healthz),
        ("/metrics", service.metrics),
        ("/model", service.model),
        ("/samples", service.sample_list),
        ("/samples/{number}", service.sample),
    ):
        app.add_api_route(path, route)
    for path, (package, file, kind) in _PAGE.items():
        app.add_api_route(path, _asset(package, file, kind), include_in_schema=False)
    app.add_exception_handler(RequestError, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _failed)
    return Monitored(app, service.monitoring)


def _tagging(predictor: Predictor) -> Callable[[Batch], ScoreArray]:
    def tag(batch: Batch) -> ScoreArray:
        (result,) = predict_batches(predictor.model, [batch])
        scores: ScoreArray = result.probabilities.numpy()
        return scores

    return tag


async def _body(request: Request, kind: str, limit: int) -> bytes:
    """Return the complete body of a request.

    Raises:
        RequestError: the body is larger than the limit, by its header or in fact.
    """
    announced = request.headers.get("content-length", "0")
    chunks: list[bytes] = []
    size = int(announced) if len(announced) < 20 else limit + 1  # h11 lets only digits pass
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
    if size > limit:
        raise too_large(kind, limit)
    return b"".join(chunks)


def _json(content: Any, status: int = 200) -> Response:
    return Response(_encode(content), status, media_type=JSON)


def _asset(package: str, file: str, kind: str) -> Callable[[], Any]:
    content = files(package).joinpath(file).read_bytes()

    async def asset() -> Response:
        return Response(content, headers=_OURS_ONLY, media_type=kind)

    return asset


# --- errors ---------------------------------------------------------------------------------------


def _fault(request: Request, status: int, reason: str) -> Response:
    """Log a fault on one line, with line breaks escaped, and build its answer."""
    client = request.client.host if request.client else "?"
    line = f"{client} {request.method} {request.url.path}: {status}, {reason}"
    _log.warning("%s", line.encode("unicode_escape").decode())
    return _json({"error": reason}, status)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    response = _fault(request, error.status, str(error))
    if error.status == 503:
        response.headers["Retry-After"] = "1"
    return response


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = dict(error.headers or {})
    if error.status_code == 405:
        reason = f"{request.method} is not allowed for {request.url.path}; use {allowed.get('Allow', 'another method')}"
    else:
        reason = f"there is no page {request.url.path}; see / or /openapi.json"
    response = _fault(request, error.status_code, reason)
    response.headers.update(allowed)
    return response


async def _failed(request: Request, error: Exception) -> Response:
    """Answer with status 500 after a bug; uvicorn logs the traceback."""
    return _fault(request, 500, f"internal error ({type(error).__name__}); the log of the service has the traceback")
