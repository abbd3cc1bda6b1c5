"""The command `reeltag serve`."""

from __future__ import annotations

import gc
import math
import sys
from pathlib import Path
from urllib.parse import urlsplit

from reeltag.cli.options import Calibrated, Mode
from reeltag.core.environment import install_command
from reeltag.core.errors import UsageError

# The model's thread gives up Python's lock many times a batch, and by default waits up to 5 ms each time for it.
_SWITCH_SECONDS = 1e-5


def serve(
    model: str,
    /,
    *,
    mode: Mode = "auto",
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    samples: list[str] = [],  # noqa: B006
    max_batch: int = 64,
    max_body_mb: float = 64,
    max_frames: int | None = None,
    timeout: float = 30,
    max_waiting: int = 128,
    image: str | None = None,
    audio: str | None = None,
    calibrated: Calibrated = False,
) -> None:
    """Serve a model over HTTP, with a web page to try it. See docs/serving.md.

    Example: reeltag serve model.reeltag --samples '/data/audioset/eval-00.tfrecord'

    Args:
        model: A .reeltag file, a shared folder, a URL, or a name.
        host: Address to listen on; 0.0.0.0 for all interfaces.
        port: Port to listen on; 0 for any free port.
        workers: Number of batches that are computed at the same time; more than one are in processes of their own.
        samples: Paths or glob patterns of TFRecord files whose first records are offered on the page.
        max_batch: Maximum number of videos in a batch.
        max_body_mb: Maximum size of a request body, in MB.
        max_frames: Maximum number of frames per request; by default 256 times the maximum of one video.
        timeout: Seconds after which a request that has not been answered is refused.
        max_waiting: Maximum number of requests in progress; others get status 503.
        image: Encoder of the feature rgb of video files, needed only if it reads a file, such as clip:PATH.
        audio: Encoder of the feature audio of video files, likewise.
    """
    try:
        from reeltag.serve.app import create_app
        from reeltag.serve.server import listen, run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "prometheus_client", "starlette", "uvicorn"):
            raise
        raise UsageError(f"serve needs {error.name}, which is not installed; {install_command('serve')}") from error
    from reeltag.artifact.file import resolve_artifact, stream_artifact
    from reeltag.core.remote_files import is_url
    from reeltag.core.storage import find_files
    from reeltag.serve.limits import Limits
    from reeltag.serve.models import open_model
    from reeltag.serve.samples import read_samples

    path = resolve_artifact(model)
    artifact, _ = stream_artifact(path)
    frames = 256 * artifact.schema.max_frames if max_frames is None else max_frames
    max_body = int(max_body_mb * 1e6) if math.isfinite(max_body_mb) else 0
    limits = Limits(max_batch, max_body, frames, timeout, max_waiting)
    name = Path(urlsplit(model).path if is_url(model) else model).name  # the query may hold a signature
    if image or audio:
        from reeltag.inference.video.reader import open_reader

        open_reader(artifact, name, image, audio)  # what is wrong with them is said before a video comes
    records = read_samples(find_files(samples), artifact.schema)
    listener = listen(host, port)
    sys.setswitchinterval(_SWITCH_SECONDS)
    with open_model(path, mode, workers, calibrated=calibrated) as opened:
        app = create_app(opened, name, limits, samples=records, image=image, audio=audio)
        gc.collect()
        gc.freeze()  # objects that live as long as the service need no garbage collection
        run(app, listener, name)
