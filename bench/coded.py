"""Measure what entropy-coded weights cost a reader: seconds to load a file, and to tag videos in `exact` and `fast`.

A NetVLAD of 100 M weights (100 MB in uniform-8) with random weights, once in 8 bits, once coded at about one bit a
weight; and a coded file of as many bytes as the first. Each is read in a process of its own with two threads, in turn.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import reeltag
from measure import Peer, options, print_json, print_table, run_rounds, seconds, serve, timed
from reeltag.artifact.file import Artifact, Member, quantize_artifact, save_artifact
from reeltag.artifact.quantization.encodings import CodedTensor
from reeltag.artifact.quantization.sizes import is_quantized
from reeltag.data.schema import preset_schema
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SCHEMA = preset_schema("yt8m-frame")
TABLE = {"family": "netvlad", "clusters": 96, "hidden": 800, "head": {"prob_gating": True}}
SMALL = {"family": "netvlad", "clusters": 4, "hidden": 64}
STEP = 1.8  # standard deviations; about one bit a weight of a Gaussian
COPIES = 5  # members of the file that is as large as the one in 8 bits
VIDEOS = 64
BASE = "uniform-8"


def write_models(folder: Path, table: dict[str, Any]) -> dict[str, float]:
    """Write the files and return their megabytes."""
    tagger = build_tagger(parse_config(table, SCHEMA.widths), SCHEMA.widths, SCHEMA.classes, 7)
    member = Member("a", tagger.config, 1.0, tagger.state_dict())
    plain = Artifact(SCHEMA, None, (member,), {})
    state = {name: coded(value) if is_quantized(value.shape) else value for name, value in member.state.items()}
    small = replace(member, state=state)
    several = tuple(replace(small, name=f"m{n}", weight=1 / COPIES) for n in range(COPIES))
    files = {
        BASE: quantize_artifact(plain, BASE),
        "coded": replace(plain, members=(small,)),
        f"coded, {COPIES} members": replace(plain, members=several),
    }
    return {name: save_artifact(folder / f"{name}.reeltag", artifact) / 1e6 for name, artifact in files.items()}


def coded(weights: torch.Tensor) -> CodedTensor:
    """Round Gaussian values of the weights' shape, with a step for each output."""
    values = torch.randn(weights.shape, generator=torch.Generator().manual_seed(1))
    scale = float(weights.std()) or 1.0
    steps = torch.full((1, *weights.shape[1:]), STEP * scale, dtype=torch.float32)
    return CodedTensor((values / STEP).round_().to(torch.int8), steps)


def live(name: str, folder: str) -> None:
    """A process that loads a file, or tags videos with it."""
    torch.set_num_threads(2)
    frames = np.random.default_rng(0).integers(0, 256, (VIDEOS, 300, SCHEMA.width), np.uint8)
    lengths = np.full(VIDEOS, frames.shape[1])
    path = Path(folder, f"{name}.reeltag")
    models: dict[str, Any] = {}

    def answer(what: str, mode: str) -> dict[str, float]:
        if what == "load":
            return timed(partial(reeltag.load, path, mode))
        if mode not in models:
            models[mode] = reeltag.load(path, mode)
        return timed(partial(models[mode].predict, frames, lengths), VIDEOS)

    serve(name, answer)


def main() -> None:
    parser = options("Costs of entropy-coded weights.")
    parser.add_argument("--small", action="store_true", help="a small model, to see whether the bench works")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sizes = write_models(Path(folder), SMALL if given.small else TABLE)
        print(", ".join(f"{name}: {size:.1f} MB" for name, size in sizes.items()), "\n")
        arguments = [("--live", name, folder) for name in sizes]
        ways = [stack.enter_context(Peer.find(Path(sys.executable), "coded.py", *each)) for each in arguments]
        for what, mode in (("load", "exact"), ("load", "fast"), ("tag", "exact"), ("tag", "fast")):
            rows = {way.name: partial(way.timed, 1, what, mode) for way in (ways[:2] if what == "tag" else ways)}
            found[f"{what}, {mode}"] = seconds(run_rounds(rows, given.rounds), BASE)
            print(f"{what}, {mode}, {given.rounds} rounds on two cores\n")
            print_table(found[f"{what}, {mode}"], BASE)
            print()
    print_json(given.json, "coded", megabytes=sizes, seconds=found)


if __name__ == "__main__":
    live(*sys.argv[2:]) if sys.argv[1:2] == ["--live"] else main()
