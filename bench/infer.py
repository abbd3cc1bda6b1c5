"""Videos tagged a CPU second in every way that makes sense here, and by the authors' graphs under TensorFlow 2.

On one core, in batches and one by one, videos of 300 frames; `auto` also of 120 to 300, 210 on average, which the
authors' program pads to 300. Ends with an error if `auto` is not the fastest within 5 %.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import reeltag
from measure import Peer, keep_row, machine, print_table, rates, repeated, run_rounds, slower, timed
from models import (
    SCHEMA,
    TITLES,
    build,
    frames_of,
    graph_of,
    hand_over,
    random_batch,
    refuse_difference,
    run,
    scaled_to,
)
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.inference.engines.choice import LARGEST_COST
from reeltag.inference.engines.ways import candidates, open_member
from reeltag.inference.ensemble import BATCH_SIZE, predict_batches

MODELS = ("netvlad1", "dbof", "lstm", "netfv")
SHORTEST = 0.4  # of the longest, so that the mean is 0.7
SINGLE_CALLS = 8  # in a row, of one video
AUTO = "reeltag, auto"


def measure(name: str, peers: Path, rounds: int) -> dict[str, Any]:
    """Time one model."""
    found: dict[str, Any] = {}
    with written(name) as (file, member), Peer.find(peers, "peer_tf_models.py") as peer:
        if peer:
            refuse_difference(name, peer, file.parent)
        weights = hand_over(build(name), file.parent / "w.npz") if peer else None
        for size in (BATCH_SIZE, 1):
            rows, predictor, allowed = reeltag_rows(name, file, member, size)
            if peer:
                rows = {
                    peer.name: partial(
                        peer.timed, scaled_to(name, size), "infer", graph_of(name), weights, size, frames_of(name)
                    )
                } | rows
            calls = 1 if size > 1 else SINGLE_CALLS
            passes = run_rounds({row: partial(repeated, call, calls) for row, call in rows.items()}, rounds)
            found[str(size)] = rates(passes, peer and peer.name) | {"failure": slower(passes, AUTO, allowed)}
            print(f"{TITLES[name]}, {size} at once, {frames_of(name)} frames, {rounds} rounds on {machine()}\n")
            print_table({row: found[str(size)][row] for row in rows}, peer and peer.name)
            print(f"auto is {predictor.choice}\n", flush=True)
            del rows, predictor, passes  # before the next ones take their gigabytes
    return found


def reeltag_rows(
    name: str, file: Path, member: Member, size: int
) -> tuple[dict[str, Callable[[], Any]], Any, list[str]]:
    """Calls of our ways; the predictor of `auto`, and those ways whose cost it allows."""
    frames, videos = frames_of(name), scaled_to(name, size)
    full, real = (random_batch(torch.linspace(share * frames, frames, size).long()) for share in (1, SHORTEST))
    auto = reeltag.load(file, batch_size=size)
    models = {AUTO: auto.model} | {f"reeltag, {way}": open_member(member, SCHEMA, way) for way in candidates(member)}
    rows = {row: partial(timed, partial(tag, model, full), videos) for row, model in models.items()}
    if size > 1:
        rows[f"{AUTO}, real lengths"] = partial(timed, partial(tag, auto.model, real), videos)
    return rows, auto, [f"reeltag, {row.way}" for row in auto.choice.measured if row.gap_cost <= LARGEST_COST]


@contextmanager
def written(name: str) -> Iterator[tuple[Path, Member]]:
    """A model as a user has it, in a folder where `auto` keeps its choice, so that every run measures."""
    tagger = build(name)
    member = Member(name, tagger.config, 1.0, tagger.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        os.environ["REELTAG_CACHE"] = folder
        save_artifact(file := Path(folder, "model.reeltag"), Artifact(SCHEMA, None, (member,), {}))
        yield file, member


def tag(model, batch) -> None:
    for _ in predict_batches(model, [batch]):
        pass


def finish(results: dict[str, Any]) -> None:
    """Keep a row of each model for this kind of machine, and fail where `auto` was not the best."""
    failures = []
    for name, sizes in results.items():
        medians = {}
        for size, table in sizes.items():
            if failure := table.pop("failure"):
                failures.append(f"{name}, {size} at once: {failure}")
            medians[size] = {row: each["per_cpu_second"]["median"] for row, each in table.items()}
        keep_row("infer", name, videos_a_cpu_second=medians)
    if failures:
        raise SystemExit("\n".join(failures))


if __name__ == "__main__":
    about = "Videos tagged a CPU second, in every way and by the authors' graphs under TensorFlow."
    run("infer", about, MODELS, measure, finish)
