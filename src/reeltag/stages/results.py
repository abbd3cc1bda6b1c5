"""The stages that measure on the test set and report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from reeltag.data.batches import sequential_batches
from reeltag.data.shards import Shards
from reeltag.executors import Job, Stage
from reeltag.metrics import Metrics
from reeltag.predict import BATCH_SIZE, Predictions, evaluate, predict
from reeltag.recipe import Recipe
from reeltag.report.markdown import render
from reeltag.stages.ensemble import class_prior
from reeltag.stages.files import MODEL, REPORT, RESULTS, SCORES, WEIGHTS, load_manifest, load_predictor
from reeltag.stages.member import MemberStages
from reeltag.storage import read_json, write_bytes, write_json

EXAMPLES = 5


def result_stages(recipe: Recipe, members: Sequence[MemberStages]) -> list[Stage]:
    """Test every member and the file on videos that nothing was chosen on, and report."""
    stages = []
    for member in members:
        inputs = ("data.test", member.finished, member.quantized)
        stages.append(Stage(f"test.{member.name}", partial(_do_test_member, member.finished, member.quantized), inputs))
    stages.append(Stage("test.file", _do_test_file, ("data.test", "ensemble", "pack")))
    names = [member.name for member in members]
    tests = tuple(f"test.{name}" for name in names)
    stages.append(Stage("report", partial(_do_report, recipe, names), ("ensemble", "pack", "test.file", *tests)))
    return stages


def _test_predictions(job: Job, stage: str) -> Iterator[Predictions]:
    shards = Shards(load_manifest(job, "test"))
    with job.progress.task(f"test {stage}", len(shards), "videos") as task:
        for part in predict(load_predictor(job, stage).model, sequential_batches(shards, batch_size=BATCH_SIZE)):
            yield part
            task.advance(len(part.ids))


def _do_test_member(finished: str, quantized: str, job: Job) -> None:
    """Test a member before and after quantisation."""
    sizes = {"float": finished, "8-bit": quantized}
    content = {
        key: evaluate(_test_predictions(job, stage)).compute().summary()
        | {"bytes": (job.inputs[stage] / MODEL).stat().st_size}
        for key, stage in sizes.items()
    }
    write_json(job.folder / SCORES, content)


def _do_test_file(job: Job) -> None:
    """Test the shipped file, beside the prior, and tag a few videos as examples."""
    counts = torch.tensor(read_json(job.inputs["ensemble"] / WEIGHTS)["class_counts"])
    parts, priors = [], []
    for part in _test_predictions(job, "pack"):
        parts.append(evaluate([part]))
        priors.append(evaluate([replace(part, probabilities=class_prior(counts, len(part.ids)))]))
    scores, prior = Metrics.merge(parts).compute(), Metrics.merge(priors).compute()
    manifest, predictor = load_manifest(job, "test"), load_predictor(job, "pack")
    shards, names = Shards(manifest), predictor.label_names
    examples = []
    for video in map(shards.read, range(min(EXAMPLES, len(shards)))):
        assert video.labels is not None  # the data stage saw to it
        tags = predictor.tags(video.frames())
        examples.append({"id": video.id, "tags": tags, "labels": [names[label] for label in video.labels.tolist()]})
    content = {
        "file": scores.summary(),
        "prior": prior.summary(),
        "class_ap": list(zip(names, scores.class_ap.round(5).tolist(), strict=True)),
        "examples": examples,
    }
    write_json(job.folder / SCORES, content)


def _do_report(recipe: Recipe, names: Sequence[str], job: Job) -> None:
    found = read_json(job.inputs["ensemble"] / WEIGHTS)
    test = read_json(job.inputs["test.file"] / SCORES)
    content = {
        "recipe": recipe.name,
        "budget": recipe.budget,
        "bytes": (job.inputs["pack"] / MODEL).stat().st_size,
        "weights": found["weights"],
        "holdout_gap": found["holdout"],
        "test": {key: test[key] for key in ("file", "prior", "class_ap")},
        "test_members": {name: read_json(job.inputs[f"test.{name}"] / SCORES) for name in names},
        "examples": test["examples"],
    }
    write_json(job.folder / RESULTS, content)
    write_bytes(job.folder / REPORT, render(content).encode())
