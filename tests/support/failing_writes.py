"""Every way in which reeltag writes, with the N-th write failing, for each N; test_promise_writes.py runs this.

`failing_writes.c` is preloaded, so that writes fail also where they are not Python's own. Prints JSON: how many writes
each way has, and what broke the promise.
"""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from conftest import TINY, TINY_RUN
from reeltag.artifact import hub
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.errors import UsageError
from reeltag.core.storage import LOCK, write_bytes, write_json
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.import_features import import_features
from reeltag.data.schema import Schema
from reeltag.data.shards import scan
from reeltag.data.soft_targets import TargetsWriter
from reeltag.data.synthetic import write_synthetic
from reeltag.inference import shard_tagger
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.training import checkpoint
from reeltag.training.checkpoint import TrainingState

LIBRARY = ctypes.CDLL(None)
RECIPE = (
    'name = "tiny"\nbudget_mb = 0.3\n' + TINY_RUN.replace("epochs = 6", "epochs = 1") + '[models.a]\nfamily = "mean"\n'
)


class Failing:
    """The N-th write below a folder fails."""

    def __init__(self, folder: Path, number: int, code: int) -> None:
        self.arguments = number, code, int(code == errno.ENOSPC), str(folder).encode()

    def __enter__(self) -> None:
        LIBRARY.arm(*self.arguments)

    def __exit__(self, *_: object) -> None:
        self.seen = LIBRARY.disarm()


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file, by its path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def ways(work: Path) -> dict[str, object]:
    """Return the writers of version 1 or 2 into a folder, by name."""
    shards, schema = work / "shards", TINY.record_schema
    write_synthetic(shards, TINY)
    paths = sorted(shards.glob("train-*"))
    manifest = scan(paths, schema)
    models = {version: model(schema, version) for version in (1, 2)}
    for version, artifact in models.items():
        save_artifact(work / f"{version}.reeltag", artifact)

    def trained(version: int) -> TrainingState:
        weights = {"w": torch.full((50_000,), float(version))}
        return TrainingState(version, weights, {"w/exp_avg": weights["w"] * 2}, {})

    def targets(folder: Path, version: int) -> None:
        writer = TargetsWriter(folder, manifest, 3)
        writer.put(np.arange(len(manifest)), torch.rand(len(manifest), 8, generator=torch.manual_seed(version)))
        writer.finish({"version": version})

    def predictions(ending: str, folder: Path, version: int) -> None:
        out = folder / f"p{ending}"
        out.unlink(missing_ok=True)
        shard_tagger.predict_to_file(work / f"{version}.reeltag", [str(path) for path in paths], out)

    def imported(folder: Path, version: int) -> None:
        shutil.rmtree(folder / "imported", ignore_errors=True)
        videos = [(f"film{number}", np.full((9, 4), version, np.float32), [number % 2]) for number in range(9)]
        import_features(videos, None, folder / "imported", test_share=0.5)
        shutil.rmtree(folder / "imported.parts", ignore_errors=True)

    return {
        "bytes": lambda folder, version: write_bytes(folder / "b", bytes([version]) * 3_000_000),
        "json": lambda folder, version: write_json(folder / "j.json", {"version": version}),
        "checkpoint": lambda folder, version: checkpoint.save(folder / "c", trained(version)),
        "model": lambda folder, version: save_artifact(folder / "m.reeltag", models[version]),
        "manifest": lambda folder, version: scan(paths[:version], schema).save(folder / "s"),
        "shard": lambda folder, version: write_shard(folder / "r", [bytes([version]) * 100_000] * 3),
        "shared folder": lambda folder, version: share(work / f"{version}.reeltag", folder / "hub"),
        "soft targets": targets,
        "an import": imported,
        "predictions in CSV": partial(predictions, ".csv"),
        "predictions in JSON Lines": partial(predictions, ".jsonl"),
        "predictions in Parquet": partial(predictions, ".parquet"),
    }


# What these write comes in parts, which count only once all are there.
IN_PARTS = ("soft targets", "an import", "predictions in CSV", "predictions in JSON Lines", "predictions in Parquet")


def model(schema: Schema, seed: int) -> Artifact:
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8})
    state = build_tagger(config, schema.widths, schema.classes, seed).state_dict()
    return Artifact(schema, None, (Member("a", config, 1.0, state),), {})


def share(file: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    hub.share_artifact(file, folder)


def try_all(name: str, write, work: Path, code: int) -> tuple[int, list[str]]:
    """Fail each write of one way in turn; returns how many it has, and what went wrong."""
    folder, broken = work / "out", []

    def fresh(version: int) -> dict[str, str]:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write(folder, version)
        return contents(folder)

    new, number = fresh(2), 0
    while True:
        number += 1
        old, message, failing = fresh(1), "", Failing(folder, number, code)
        try:
            with failing:
                write(folder, 2)
        except UsageError as error:
            message = str(error)
        except Exception as error:
            broken.append(f"{name}, write {number}: {type(error).__name__}: {error}")
        if failing.seen < number:
            return number - 1, broken
        found = [] if name in IN_PARTS else half_written(contents(folder), old, new)
        found += [f"no path in {message!r}"] if message and str(folder) not in message else []
        found += ["no message, and not all is new"] if not message and contents(folder) != new else []
        write(folder, 2)
        found += ["what comes after differs"] if contents(folder) != new else []
        broken += [f"{name}, write {number}: {fault}" for fault in found]


def half_written(found: dict[str, str], old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Files that are neither as they were nor as they should be."""
    return [path for path, digest in found.items() if digest not in (old.get(path), new.get(path))]


def try_run(work: Path, times: int, code: int) -> tuple[int, list[str]]:
    """Fail some of a whole run's writes; the same command then ends with the same file. Returns as `try_all`."""
    recipe, out, broken = work / "tiny.toml", work / "run", []
    recipe.write_text(RECIPE)
    command = ["run", str(recipe), "--out", str(out)]
    counting = Failing(out, 1 << 30, code)
    with counting:
        assert main(command) == 0
    expected = (out / "model.reeltag").read_bytes()
    for number in np.linspace(1, counting.seen, times).astype(int).tolist():
        shutil.rmtree(out)
        failing = Failing(out, number, code)
        with failing:
            ended = main(command)
        if ended != 2:
            broken.append(f"run, write {number}: ended with {ended}")
        if main(command) or (out / "model.reeltag").read_bytes() != expected or list(out.rglob("*.partial")):
            broken.append(f"run, write {number}: the next run differs")
    return counting.seen, broken


def everything(work: Path, runs: int, codes: list[int]) -> dict[str, object]:
    writes: dict[str, int] = {}
    broken: list[str] = []
    for name, write in ways(work).items():
        for code in codes:
            writes[name], faults = try_all(name, write, work, code)
            broken += [f"{os.strerror(code)}: {fault}" for fault in faults]
    writes["a run"], faults = try_run(work, runs, errno.ENOSPC)
    return {"writes": writes, "broken": broken + faults}


if __name__ == "__main__":
    given_work, given_runs, *given_codes = sys.argv[1:]
    print(json.dumps(everything(Path(given_work), int(given_runs), [int(code) for code in given_codes])))
