"""From video files to features: `reeltag extract` against loops around PyAV, decord and torchcodec.

All run one network, EfficientNet-Lite0 as ONNX, on a picture a second, of short clips and of a made clip of 1080p. As
`extract` does, all read at most 300 seconds of a video; reading sound and writing shards is left out, and starting the
programs is not measured. `--decoders PYTHON` names the interpreter of the others (bench/peer_videos.py). CPU seconds
include those of decoding processes.
"""

from __future__ import annotations

import resource
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import gettempdir

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from measure import HERE, Peer, Times, options, print_json, print_table, run_rounds, seconds, timed
from reeltag.core.storage import atomic_path
from reeltag.data.video import decode
from reeltag.data.video.dataset import find_videos
from reeltag.data.video.decode import Damage
from reeltag.data.video.engine import process_files, suggested_workers
from reeltag.data.video.extractors import efficientnet
from reeltag.data.video.extractors.extractor import Extractor
from reeltag.data.video.features import Pipeline, open_pipeline

FPS, SIDE, WIDTH, HEIGHT = 30, efficientnet.SIZE, 1920, 1080
PIECE = 60  # seconds that are encoded; a longer clip repeats them
FLAGS = Interpolation.AREA | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
PEERS = ("loop", "decord", "torchcodec")


def export_network(path: Path) -> None:
    """EfficientNet-Lite0 as ONNX, for pictures [N, 3, 224, 224]."""

    class Network(torch.nn.Module):
        layers = efficientnet.load()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers._layers:
                x = layer(x)
            return x.mean((2, 3))

    axes = {"pictures": {0: "N"}, "values": {0: "N"}}
    names = {"input_names": ["pictures"], "output_names": ["values"], "dynamic_axes": axes}
    with warnings.catch_warnings(), atomic_path(path) as new:
        warnings.simplefilter("ignore")
        torch.onnx.export(Network(), (torch.zeros(2, 3, SIDE, SIDE),), str(new), dynamo=False, **names)


def write_clip(path: Path, length: int) -> None:
    """A clip of 1080p: a textured ground that moves, shapes that cross it, noise; H.264 with x264's usual B frames."""
    with atomic_path(path) as new, av.open(str(new), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        pictures = min(length, PIECE) * FPS
        packets = [packet for number in range(pictures) for packet in stream.encode(_frame(number))]
        packets += stream.encode(None)
        ticks = round(1 / FPS / packets[0].time_base)
        for repeat in range(-(-length * FPS // pictures)):
            for packet in packets:
                copy = av.Packet(bytes(packet))
                copy.stream, copy.time_base, copy.is_keyframe = stream, packet.time_base, packet.is_keyframe
                copy.pts, copy.dts = (at + repeat * pictures * ticks for at in (packet.pts, packet.dts))
                container.mux(copy)


def _frame(number: int) -> av.VideoFrame:
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 200, (HEIGHT // 30, WIDTH // 30), np.uint8).repeat(30, 0).repeat(30, 1)
    light = np.roll(ground, (number, 3 * number), (0, 1))
    light += np.random.default_rng(number % 16).integers(0, 6, light.shape, np.uint8)
    for shape in range(8):
        x, y = (number * (3 + shape) + 240 * shape) % (WIDTH - 160), 120 * shape
        light[y : y + 100, x : x + 160] = 20 + 25 * shape
    colour = np.full((HEIGHT // 2, WIDTH), 128, np.uint8)
    colour[:, (5 * number) % WIDTH :][:, :200] = 90
    frame = av.VideoFrame.from_ndarray(np.concatenate([light, colour]), format="yuv420p")
    frame.pts = number
    return frame


def of_reeltag(pipeline: Pipeline, paths: Sequence[Path]) -> Times:
    """One pass of `extract` over files, without its shards."""
    cpu, wall = _cpu_seconds(), time.perf_counter()
    found = list(process_files(paths, suggested_workers(len(paths)), pipeline.extract))
    times = {"cpu": _cpu_seconds() - cpu, "wall": time.perf_counter() - wall}
    return times | {"pictures": sum(extraction.seconds for _, extraction in found)}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def shares(pipeline: Pipeline, paths: Sequence[Path]) -> dict[str, float]:
    """CPU seconds of decoding, of scaling and of the network, one after the other in one thread."""
    parts = [_shares(pipeline.image, path) for path in paths]
    return {name: sum(part[name] for part in parts) for name in parts[0]}


def _shares(image: Extractor, path: Path) -> dict[str, float]:
    begin = time.process_time()
    pictures = list(decode.pictures(path, (SIDE, SIDE), Damage()))
    both = time.process_time() - begin
    groups = [np.stack(pictures[at : at + image.batch]) for at in range(0, len(pictures), image.batch)]
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    scaler, scaling = VideoReformatter(), {"width": SIDE, "height": SIDE, "format": "rgb24", "interpolation": FLAGS}
    scaled = timed(lambda: [scaler.reformat(frame, **scaling, threads=1) for _ in pictures])["cpu"]
    network = timed(lambda: [image.values(group) for group in groups])["cpu"]
    return {"decoding": both - scaled, "scaling": scaled, "network": network}


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--clips", type=Path, default=HERE.parent.parent / "shared/data/videos", help="a folder")
    parser.add_argument("--minutes", type=float, default=10, help="of the clip of 1080p")
    parser.add_argument("--decoders", type=Path, metavar="PYTHON", help="an interpreter that has the others")
    parser.add_argument("--scratch", type=Path, default=Path(gettempdir()) / "reeltag-bench-videos")
    args = parser.parse_args()
    args.scratch.mkdir(exist_ok=True)
    network = args.scratch / "lite0.onnx"
    long = args.scratch / f"1080p-{args.minutes:g}.mp4"
    for path, make in ((network, export_network), (long, partial(write_clip, length=round(60 * args.minutes)))):
        if not path.exists():
            make(path)
    sets = {f"{args.minutes:g} minutes of 1080p": [long]}
    if args.clips.is_dir():
        items = find_videos([str(args.clips)], None).items
        sets = {f"{len(items)} short clips": [item.path for item in items]} | sets
    scaling = f"mean={127 / 255}&std={128 / 255}"
    pipeline = open_pipeline(f"onnx:{network}?{scaling}", "none")
    results = {}
    with ExitStack() as stack:
        peers = [stack.enter_context(Peer.find(args.decoders, "peer_videos.py", way)) for way in PEERS if args.decoders]
        for name, paths in sets.items():
            rows: dict[str, Callable[[], Times]] = {"reeltag": partial(of_reeltag, pipeline, paths)}
            rows |= {peer.name: partial(peer.timed, 1, network, *paths) for peer in peers if peer is not None}
            passes = run_rounds(rows, args.rounds)
            base = peers[0].name if peers and peers[0] else None
            print(f"## {name}: {passes['reeltag'][0]['pictures']:.0f} pictures\n")
            for per in ("cpu", "wall"):
                print_table(seconds(passes, base, per), base)
            parts = shares(pipeline, paths)
            print(", ".join(f"{part} {took / sum(parts.values()):.0%}" for part, took in parts.items()) + "\n")
            results[name] = {per: seconds(passes, base, per) for per in ("cpu", "wall")} | {"shares": parts}
    print_json(args.json, "videos", **results)


if __name__ == "__main__":
    main()
