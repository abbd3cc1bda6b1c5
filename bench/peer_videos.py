"""Other ways from a video to features of one picture a second, for bench/videos.py.

They live in an environment of their own, with `pip install --no-deps --requirement bench/peers-videos.txt`. torchcodec
needs FFmpeg's shared libraries; it gets those that PyAV brings.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import av
import numpy as np
import onnxruntime
from PIL import Image

from measure import serve

BATCH, SIDE, SECONDS = 16, 224, 300
CPUS = len(os.sched_getaffinity(0))


def open_network(path: Path) -> Any:
    """A function from pictures [N, 3, 224, 224] uint8 to values; on all cores, without threads that spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CPUS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = (each.name for each in session.get_inputs())
    return lambda pictures: session.run(None, {name: (pictures.astype(np.float32) - 127) / 128})[0]


def loop(path: str) -> Iterator[np.ndarray]:
    """Pictures as video_features takes them: every frame is decoded, and each picture kept is a batch of its own."""
    with av.open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        second = 0
        for frame in container.decode(video=0):
            if second == SECONDS:
                return
            if frame.time >= second + 0.5:
                picture = frame.to_image().resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                yield np.asarray(picture).transpose(2, 0, 1)[None]
                second += 1


def with_decord(path: str) -> Iterator[np.ndarray]:
    """Pictures of decord, by index, in batches."""
    import decord

    reader = decord.VideoReader(path, width=SIDE, height=SIDE, num_threads=CPUS)
    rate = reader.get_avg_fps()
    frames = [min(round((second + 0.5) * rate), len(reader) - 1) for second in range(min(SECONDS, seconds(path)))]
    for begin in range(0, len(frames), BATCH):
        yield reader.get_batch(frames[begin : begin + BATCH]).asnumpy().transpose(0, 3, 1, 2)


def with_torchcodec(path: str) -> Iterator[np.ndarray]:
    """Pictures of torchcodec, by time, in batches; it scales while it converts."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(path, num_ffmpeg_threads=CPUS, seek_mode="approximate", transforms=[Resize((SIDE, SIDE))])
    times = [second + 0.5 for second in range(min(SECONDS, seconds(path)))]
    for begin in range(0, len(times), BATCH):
        yield decoder.get_frames_played_at(times[begin : begin + BATCH]).data.numpy()


def seconds(path: str) -> int:
    """Seconds of the video."""
    with av.open(path) as container:
        return max(1, round(container.duration / av.time_base))


WAYS = {"loop": loop, "decord": with_decord, "torchcodec": with_torchcodec}


def find_libraries() -> None:
    """Start again with links to PyAV's FFmpeg, under the names by which torchcodec looks for it."""
    if "AV_LINKS" in os.environ:
        return
    folder, libraries = Path(mkdtemp()), Path(av.__file__).parent.parent / "av.libs"
    for file in libraries.glob("lib[as][vw]*.so.*"):
        major = file.name.partition(".so.")[2].partition(".")[0]
        (folder / f"{file.name.partition('-')[0]}.so.{major}").symlink_to(file)
    paths = f"{folder}:{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"LD_LIBRARY_PATH": paths, "AV_LINKS": "1"})


def main() -> None:
    """Answer each line, `NETWORK VIDEO …`: seconds that the features of the videos take, their number and mean."""
    (way,) = sys.argv[1:]
    if way == "torchcodec":
        find_libraries()
    networks: dict[str, Any] = {}

    def answer(network: str, *paths: str) -> dict[str, float]:
        compute = networks.setdefault(network, None) or open_network(Path(network))
        networks[network] = compute
        used, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        values = [compute(pictures) for path in paths for pictures in WAYS[way](path)]
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        found = np.concatenate(values)
        return {"cpu": cpu, "wall": time.perf_counter() - wall, "pictures": len(found), "mean": float(found.mean())}

    name = "PyAV" if way == "loop" else way
    serve(f"{name} {version('av' if way == 'loop' else way)}", answer)


if __name__ == "__main__":
    main()
