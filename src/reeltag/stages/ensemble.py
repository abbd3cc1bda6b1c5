"""The stages that turn members into the one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from reeltag import artifact, checkpoint
from reeltag.artifact import Artifact
from reeltag.data.schema import read_label_names
from reeltag.ensemble import ensemble_gap, random_search
from reeltag.environment import versions
from reeltag.executors import Job, Stage
from reeltag.metrics import Metrics
from reeltag.recipe import Recipe
from reeltag.stages.files import MODEL, PREDICTIONS, WEIGHTS, load_manifest
from reeltag.stages.member import MemberStages
from reeltag.storage import counted, megabytes, read_json, write_json


def ensemble_stages(recipe: Recipe, members: Sequence[MemberStages]) -> list[Stage]:
    """Search the weights, then write the file."""
    names = [member.name for member in members]
    predicted, quantized = [f"predict.{name}" for name in names], [member.quantized for member in members]
    search = {"trials": recipe.ensemble.trials, "seed": recipe.seed}
    # The names are read here already: a wrong file should not be found after hours of training.
    package = {"recipe": recipe.fingerprint, "budget": recipe.budget, "label_names": _label_names(recipe)}
    note = f"at most {megabytes(recipe.budget)}"
    return [
        Stage(
            "ensemble",
            partial(_do_ensemble, recipe, names),
            ("data.train", *predicted),
            search,
            counted(len(names), "member"),
        ),
        Stage("pack", partial(_do_pack, recipe), ("ensemble", *quantized), package, note),
    ]


def _label_names(recipe: Recipe) -> tuple[str, ...] | None:
    data = recipe.data
    return read_label_names(data.root / data.label_names, data.record_schema.classes) if data.label_names else None


def _do_ensemble(recipe: Recipe, names: Sequence[str], job: Job) -> None:
    """Search weights on the hold-out, and measure what they have to beat there."""
    files = [checkpoint.load_tensors(job.inputs[f"predict.{name}"] / PREDICTIONS)[0] for name in names]
    probabilities, labels = [file["probabilities"] for file in files], files[0]["labels"]
    weights, gap = random_search(probabilities, labels, trials=recipe.ensemble.trials, seed=recipe.seed)
    job.progress.say("  weights: " + ", ".join(f"{n} {w:.3f}" for n, w in zip(names, weights, strict=True)))
    counts = torch.from_numpy(load_manifest(job, "train").class_counts) - labels.sum(0)
    prior = class_prior(counts, len(labels))
    content = {
        "weights": dict(zip(names, weights, strict=True)),
        "holdout": {
            "videos": len(labels),
            "file": gap,
            "equal_weights": ensemble_gap(probabilities, labels, [1 / len(names)] * len(names)),
            "members": {name: Metrics.of(p, labels).gap() for name, p in zip(names, probabilities, strict=True)},
            "prior": Metrics.of(prior, labels).gap(),
        },
        "class_counts": counts.tolist(),
    }
    write_json(job.folder / WEIGHTS, content)


def class_prior(counts: Tensor, videos: int) -> Tensor:
    """The baseline that knows only how frequent each class is in training: [videos, C], every row alike."""
    return (counts / counts.sum().clamp_min(1)).float().expand(videos, -1)


def _do_pack(recipe: Recipe, job: Job) -> None:
    """Write the one file; the budget holds for the file itself."""
    found = read_json(job.inputs["ensemble"] / WEIGHTS)
    members = []
    for name, weight in found["weights"].items():
        (member,) = artifact.load(job.inputs[f"quantize.{name}"] / MODEL).members
        members.append(replace(member, weight=weight))
    provenance = {
        "recipe": recipe.name,
        "recipe_hash": recipe.fingerprint,
        "versions": versions(),
        "holdout_gap": found["holdout"],
    }
    shipped = Artifact(recipe.data.record_schema, _label_names(recipe), tuple(members), provenance)
    size = artifact.save(job.folder / MODEL, shipped, recipe.budget)
    job.progress.say(f"  {megabytes(size)} of {megabytes(recipe.budget)}")
