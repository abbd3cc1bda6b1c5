"""Measure the modes of a model that make sense here: time a call, resident memory, and GAP; in both engines and `auto`.

NetVLAD1 of the paper (K 192, H 992) with random weights in 8 bits, 300 frames of 1152 bytes, one core. Every way lives
in a process of its own, and they take turns; together they need 8 GB. GAP needs a real model and labelled shards
(--model, --shards). Ends with an error if `auto` is not the fastest within 5 %.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reeltag
from measure import (
    ENOUGH,
    Peer,
    keep_row,
    machine,
    options,
    pin,
    print_json,
    print_table,
    run_rounds,
    seconds,
    serve,
    slower,
    timed,
)
from reeltag.artifact.file import Artifact, Member, load_artifact, quantize_artifact, save_artifact
from reeltag.artifact.quantization.linear import int8_products_gain
from reeltag.core.environment import BF16_FLAGS, cpu_flags
from reeltag.core.storage import find_files
from reeltag.data.loader import stream_batches
from reeltag.data.schema import preset_schema
from reeltag.data.shards import read_examples
from reeltag.inference.ensemble import Predictions
from reeltag.inference.metrics.evaluation import evaluate_predictions
from reeltag.inference.onnx_export import generated_batches, save_onnx
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SCHEMA = preset_schema("yt8m-frame")
TABLE = {"family": "netvlad", "clusters": 192, "hidden": 992, "head": {"prob_gating": True}}
SMALL = {"family": "netvlad", "clusters": 4, "hidden": 128}
BATCHES = (1, 64)
EXACT = ("PyTorch", "exact")
# `small` saves memory; the others are ways that `auto` may choose here.
WAYS = [EXACT, ("PyTorch", "small"), ("onnxruntime", "exact"), ("onnxruntime", "small"), ("onnxruntime", "fast")]
WAYS += [("PyTorch", "bf16")] if BF16_FLAGS & (cpu_flags() or set()) else []
WAYS += [("PyTorch", "fast")] if int8_products_gain() else []
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]


def write_models(folder: Path, table: dict[str, Any]) -> None:
    """The model in 8 bits, and as ONNX."""
    tagger = build_tagger(parse_config(table, SCHEMA.widths), SCHEMA.widths, SCHEMA.classes, 7)
    member = Member("netvlad1", tagger.config, 1.0, tagger.state_dict())
    artifact = quantize_artifact(Artifact(SCHEMA, None, (member,), {}))
    save_artifact(folder / "model.reeltag", artifact)
    save_onnx(folder / "model.onnx", artifact, generated_batches(SCHEMA, videos=4))


def opened(engine: str, mode: str, reeltag_file: Path, onnx_file: Path) -> Run:
    """Return a function that tags frames [B, T, D] of some lengths in a mode; that of `auto` is a number of videos."""
    if engine == "auto":
        return reeltag.load(reeltag_file, batch_size=int(mode)).predict
    if engine == "PyTorch":
        return reeltag.load(reeltag_file, mode).predict
    session = reeltag.open_onnx(onnx_file, mode, threads=torch.get_num_threads())
    return lambda frames, lengths: session.run(None, {"frames": frames, "lengths": lengths})[0]


def memory(key: str) -> float:
    """Bytes that this process holds (VmRSS), or ever held (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(key))) * 1024


def live(engine: str, mode: str, folder: str) -> None:
    """A process with one way: seconds of a call with so many videos, or its memory in MB above what it began with."""
    torch.set_num_threads(1)
    videos = np.random.default_rng(0).integers(0, 256, (max(BATCHES), 300, SCHEMA.width), np.uint8)
    if engine == "onnxruntime":
        import onnxruntime  # noqa: F401 - its code is not what is measured
    begin = memory("VmRSS")
    run = opened(engine, mode, Path(folder, "model.reeltag"), Path(folder, "model.onnx"))
    peak = memory("VmHWM")

    def answer(what: str, count: str = "") -> dict[str, float]:
        if what == "memory":
            return {"loading": (peak - begin) / 1e6, "resident": (memory("VmRSS") - begin) / 1e6}
        frames = videos[: int(count)]
        return timed(partial(run, frames, np.full(len(frames), frames.shape[1])))

    serve(name_of(engine, mode), answer)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Time and memory of every way; where `auto` is not the best, `failures` says so."""
    found: dict[str, Any] = {"seconds": {}, "memory": {}, "failures": []}
    os.environ["REELTAG_CACHE"] = str(folder)  # so that `auto` measures anew
    with ExitStack() as stack:
        names = [*WAYS, *(("auto", str(size)) for size in BATCHES)]
        arguments = [("--live", engine, mode, str(folder)) for engine, mode in names]
        ways = [stack.enter_context(Peer.find(Path(sys.executable), "modes.py", *each)) for each in arguments]
        for size in BATCHES:
            auto, others = (
                name_of("auto", str(size)),
                [name_of("auto", str(other)) for other in BATCHES if other != size],
            )
            rows = {way.name: partial(way.timed, 1, "time", size) for way in ways if way.name not in others}
            passes = run_rounds(rows, rounds)
            if failure := slower(passes, auto, rows.keys() - {auto}):
                found["failures"].append(failure)
            found["seconds"][str(size)] = table = seconds(passes, name_of(*EXACT), per="cpu")
            print(f"{size} videos a call, {rounds} rounds on one core of {machine()}\n")
            print_table(table, name_of(*EXACT))
        for way in ways:
            found["memory"][way.name] = way.ask("memory")
    print("| | MB at the peak of loading | MB resident after calls |\n|---|---|---|")
    for name, memory in found["memory"].items():
        print(f"| {name} | {memory['loading']:.0f} | {memory['resident']:.0f} |")
    print()
    return found


def name_of(engine: str, mode: str) -> str:
    """The name of a way in tables."""
    return f"{engine}, {mode}" if engine != "auto" else f"auto for {mode}"


def gaps(model: Path, patterns: list[str]) -> dict[str, float]:
    """GAP@20 of a real model in every way."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder, "model.onnx")
        artifact = load_artifact(model)
        save_onnx(onnx_file, artifact, generated_batches(artifact.schema))
        for engine, mode in (*WAYS, ("auto", str(max(BATCHES)))):
            predictions = tagged(opened(engine, mode, model, onnx_file), artifact, patterns)
            found[name_of(engine, mode)] = evaluate_predictions(predictions).compute().gap
    print("| | GAP@20 | less than float32 |\n|---|---|---|")
    for name, gap in found.items():
        print(f"| {name} | {gap:.5f} | {found['PyTorch, exact'] - gap:+.5f} |")
    print()
    return found


def tagged(run: Run, artifact: Artifact, patterns: list[str]) -> Iterator[Predictions]:
    """All videos of shards."""
    for batch in stream_batches(read_examples(find_files(patterns), artifact.schema), artifact.schema, 64):
        yield Predictions(batch.ids, torch.from_numpy(run(batch.frames.numpy(), batch.lengths.numpy())), batch.labels)


def main() -> None:
    parser = options("Costs of the ways to load a model.")
    parser.add_argument("--model", type=Path, help="a .reeltag file, for GAP")
    parser.add_argument("--shards", nargs="+", help="labelled shards, for GAP")
    parser.add_argument("--small", action="store_true", help="a small model, to see whether the bench works")
    given = parser.parse_args()
    pin()
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), SMALL if given.small else TABLE)
        found = measure(Path(folder), given.rounds)
    if given.model and given.shards:
        torch.set_num_threads(1)
        found["gap"] = gaps(given.model, given.shards)
    print_json(given.json, "modes", rounds=given.rounds, **found)
    if given.rounds >= ENOUGH and not given.small:
        medians = {
            size: {name: row["cpu_seconds"]["median"] for name, row in table.items()}
            for size, table in found["seconds"].items()
        }
        keep_row("modes", "netvlad1", cpu_seconds_a_call=medians)
        if found["failures"]:
            raise SystemExit("\n".join(found["failures"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--live"]:
        live(*sys.argv[2:])
    else:
        main()
