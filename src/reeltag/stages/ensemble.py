"""The stages that turn members into the one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reeltag import artifact
from reeltag.artifact import Artifact
from reeltag.data.schema import read_label_names
from reeltag.ensemble import Option, Selection, ensemble_gap, frontier, random_search, select
from reeltag.environment import versions
from reeltag.errors import BudgetError
from reeltag.executors import Job, Stage
from reeltag.metrics import gap
from reeltag.quantize import Encoding
from reeltag.recipe import Recipe
from reeltag.stages.files import MODEL, WEIGHTS, load_manifest
from reeltag.stages.member import MemberStages
from reeltag.stages.students import left_out
from reeltag.storage import counted, megabytes, read_json, write_json

# A member adds at most what its own file has, and a few more digits in the header; the rest of the header is reserved.
MEMBER_ROOM, HEADER_ROOM = 512, 4096
FRONTIER_POINTS = 12


def ensemble_stages(recipe: Recipe, members: Sequence[MemberStages], keepers: Sequence[str]) -> list[Stage]:
    """Choose members, encodings and weights, then write the file."""
    predicted = [member.predicted for member in members]
    files = [stage for member in members for stage in (member.finished, member.quantized)]
    # The names are read here already: a wrong file should not be found after hours of training.
    names = _label_names(recipe)
    search = {
        "ensemble": recipe.ensemble.model_dump(),
        "quantization": recipe.quantization.model_dump(),
        "seed": recipe.seed,
        "room": _room(recipe),
    }
    package = {"recipe": recipe.fingerprint, "budget": recipe.budget, "label_names": names}
    choose = partial(_do_ensemble, recipe, members, keepers)
    note = f"from {counted(len(members), 'model')}, at most {megabytes(recipe.budget)}"
    return [
        Stage("ensemble", choose, ("data.train", *predicted, *keepers), search, note),
        Stage("pack", partial(_do_pack, recipe, members), ("ensemble", *files), package),
    ]


def _label_names(recipe: Recipe) -> tuple[str, ...] | None:
    data = recipe.data
    return read_label_names(data.root / data.label_names, data.record_schema.classes) if data.label_names else None


def _room(recipe: Recipe) -> int:
    """Bytes that the budget leaves to the members."""
    return recipe.budget - HEADER_ROOM - len(json.dumps(_label_names(recipe), ensure_ascii=False).encode())


@dataclass(frozen=True)
class _Halves:
    """The hold-out in two: one to choose on, one to see what the choice is worth on videos that it never saw."""

    choose: Tensor
    check: Tensor

    @classmethod
    def of(cls, videos: int, seed: int) -> _Halves:
        order = torch.from_numpy(np.random.default_rng([seed, 0xA1F]).permutation(videos))
        return cls(order[: videos // 2], order[videos // 2 :])


def _do_ensemble(recipe: Recipe, members: Sequence[MemberStages], keepers: Sequence[str], job: Job) -> None:
    """Choose on one half of the hold-out, and measure on the other what was chosen and what it has to beat."""
    dropped = left_out(job, keepers)
    found = [(member, *member.holdout(job)) for member in members if member.name not in dropped]
    labels = found[0][2]
    halves = _Halves.of(len(labels), recipe.seed)
    options: list[Option] = []
    checks: dict[tuple[str, str], Tensor] = {}
    for member, predictions, _ in found:
        scores = member.scores(job)
        for encoding in _offered(recipe, scores):
            size, probabilities = int(scores[encoding]["bytes"]) + MEMBER_ROOM, predictions[encoding]
            options.append(Option(member.name, encoding, size, probabilities[halves.choose]))
            checks[member.name, encoding] = probabilities[halves.check]
    chosen_on, checked_on = labels[halves.choose], labels[halves.check]
    room, search = _room(recipe), recipe.ensemble
    selection = select(options, chosen_on, room, trials=search.trials, seed=recipe.seed)
    if selection is None:
        smallest = min(options, key=lambda option: option.bytes)
        raise BudgetError(
            f"no member fits: the smallest, {smallest.member} in {smallest.encoding}, takes "
            f"{megabytes(smallest.bytes)}, and the budget leaves {megabytes(max(room, 0))}; raise budget_mb"
        )

    def check(chosen: Selection, weights: Sequence[float] | None = None) -> float:
        probabilities = [checks[option.member, option.encoding] for option in chosen.options]
        return ensemble_gap(probabilities, checked_on, weights or chosen.weights)

    equal = [1 / len(selection.options)] * len(selection.options)
    parts = [option.probabilities for option in selection.options]
    drawn = random_search(parts, chosen_on, trials=search.trials, seed=recipe.seed)
    single = {member.name: gap(each["float32"][halves.check], checked_on) for member, each, _ in found}
    counts = torch.from_numpy(load_manifest(job, "train").class_counts) - labels.sum(0)
    content = {
        "members": [
            {"name": option.member, "encoding": option.encoding, "weight": weight}
            for option, weight in zip(selection.options, selection.weights, strict=True)
        ],
        "holdout": {
            "videos": len(checked_on),
            "chosen_on": len(chosen_on),
            "file": check(selection),
            "file_where_chosen": selection.gap,
            "equal_weights": check(selection, equal),
            "random_search": check(selection, drawn[0]),
            "members": single,
            "prior": gap(class_prior(counts, len(checked_on)), checked_on),
        },
        "frontier": [
            {"bytes": point.bytes, "chosen": point.gap, "checked": check(point), "members": len(point.options)}
            for point in frontier(options, chosen_on, FRONTIER_POINTS)
        ],
        "left_out": sorted(dropped),
        "class_counts": counts.tolist(),
    }
    shown = zip(selection.options, selection.weights, strict=True)
    job.progress.say("  " + ", ".join(f"{o.member} {o.encoding} {weight:.3f}" for o, weight in shown))
    write_json(job.folder / WEIGHTS, content)


def _offered(recipe: Recipe, scores: dict[str, dict[str, float]]) -> list[Encoding]:
    """The encodings of a member that the ensemble may take: as the recipe says, or the smallest that loses little."""
    settings = recipe.quantization
    if settings.encodings != "auto":
        return list(settings.encodings)
    least = scores["float32"]["gap"] - settings.max_loss
    good = [encoding for encoding in settings.offered if scores[encoding]["gap"] >= least]
    return [min(good, key=lambda encoding: scores[encoding]["bytes"])]


def class_prior(counts: Tensor, videos: int) -> Tensor:
    """The baseline that knows only how frequent each class is in training: [videos, C], every row alike."""
    return (counts / counts.sum().clamp_min(1)).float().expand(videos, -1)


def _do_pack(recipe: Recipe, members: Sequence[MemberStages], job: Job) -> None:
    """Write the one file; the budget holds for the file itself."""
    found: dict[str, Any] = read_json(job.inputs["ensemble"] / WEIGHTS)
    by_name = {member.name: member for member in members}
    shipped = []
    for entry in found["members"]:
        (member,) = artifact.load(by_name[entry["name"]].file(job, entry["encoding"])).members
        shipped.append(replace(member, name=entry["name"], weight=entry["weight"]))
    provenance = {
        "recipe": recipe.name,
        "recipe_hash": recipe.fingerprint,
        "versions": versions(),
        "holdout_gap": {key: value for key, value in found["holdout"].items() if key != "members"},
    }
    packed = Artifact(recipe.data.record_schema, _label_names(recipe), tuple(shipped), provenance)
    size = artifact.save(job.folder / MODEL, packed, recipe.budget)
    job.progress.say(f"  {megabytes(size)} of {megabytes(recipe.budget)}")
