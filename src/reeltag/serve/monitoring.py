"""Metrics of the service, for `/metrics`, in a Prometheus registry of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reeltag.serve.batching import Model

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_VIDEOS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Monitoring:
    """Counters and histograms of the service.

    Args:
        waiting: returns the length of the queue; called for each scrape.
        models: what computes.
        model: labels of the metric `reeltag_model_info`.
    """

    def __init__(self, waiting: Callable[[], int], models: Sequence[Model], model: dict[str, str]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("reeltag_requests", "Requests by status code", ["status"], registry=registry)
        self.seconds = Histogram(
            "reeltag_predict_seconds",
            "Seconds from the start of a request to /predict to its answer",
            registry=registry,
            buckets=_SECONDS,
        )
        self.batches = Histogram(
            "reeltag_batch_videos",
            "Videos and segments per batch",
            registry=registry,
            buckets=_VIDEOS,
        )
        self.videos = Counter("reeltag_videos", "Videos that were tagged", registry=registry)
        Gauge("reeltag_waiting", "Requests waiting for the model", registry=registry).set_function(waiting)
        deaths = Gauge(
            "reeltag_worker_deaths", "Processes of the model that ended and were replaced", registry=registry
        )
        deaths.set_function(lambda: sum(each.deaths for each in models))
        Info("reeltag_model", "The model", registry=registry).info(model)


class Monitored:
    """ASGI middleware that counts answers and measures their time.

    Args:
        app: the application.
        monitoring: the metrics to update.
    """

    def __init__(self, app: ASGIApp, monitoring: Monitoring) -> None:
        self.app, self.monitoring = app, monitoring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request as the application does."""
        begin = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.monitoring.requests.labels(message["status"]).inc()
                if scope["path"] == "/predict":
                    self.monitoring.seconds.observe(time.perf_counter() - begin)
            await send(message)

        await self.app(scope, receive, counted)
