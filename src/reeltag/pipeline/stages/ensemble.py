"""Stages that select the members and write the artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reeltag.artifact.file import Artifact, load_artifact, save_artifact
from reeltag.artifact.quantization.sizes import expected_coded_bytes
from reeltag.core.environment import versions
from reeltag.core.errors import BudgetError
from reeltag.core.storage import read_json, write_json
from reeltag.core.text import counted, megabytes
from reeltag.data.holdout import split_halves
from reeltag.data.shards import Manifest
from reeltag.inference.metrics.video_metrics import Metrics, gap
from reeltag.pipeline.ensemble_search import (
    Option,
    Selection,
    ensemble_gap,
    frontier,
    prefer_simple,
    select,
    select_members,
)
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.stages.check import Beside, room, shard_names
from reeltag.pipeline.stages.files import MODEL, WEIGHTS, load_manifest, split
from reeltag.pipeline.stages.holdout_predictions import CHUNK, Source, read_contenders
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.students import left_out
from reeltag.recipe.schema import QuantizationSettings, Recipe

# A member adds to the artifact at most the size of its own file, which has the schema and the versions too, and a few
# digits in the header. Its tensors are coded to the same bytes, because they are coded each for itself.
MEMBER_ROOM = 512
FRONTIER_POINTS = 12
ENSEMBLE_FORMAT = 3  # raise it when another ensemble is selected from the same predictions
PACK_FORMAT = 2  # raise it when the same ensemble is written as another file


def ensemble_stages(
    recipe: Recipe, members: Sequence[MemberStages], keepers: Sequence[str], beside: Beside
) -> list[Stage]:
    """Return the stages that select members, encodings and weights, and write the artifact.

    Args:
        recipe: the recipe.
        members: the models to select from.
        keepers: names of the stages that exclude second-level students.
        beside: content of the artifact beside the members.
    """
    predicted = [stage for member in members for stage in (member.predicted, member.quantized)]
    files = [stage for member in members for stage in (member.finished, member.quantized)]
    search = {
        "ensemble": recipe.ensemble.model_dump(),
        "quantization": recipe.quantization.model_dump(),
        "seed": recipe.seed,
        "room": room(recipe, beside),
    }
    package = {"recipe": recipe.fingerprint, "budget": recipe.budget, "label_names": beside.label_names}
    size = min(recipe.budget, sum(max(member.sizes("float32")) for member in members))
    selection = Stage(
        name="ensemble",
        work=partial(select_ensemble, recipe, members, keepers, room(recipe, beside)),
        format=ENSEMBLE_FORMAT,
        inputs=("data.train", *predicted, *keepers),
        parameters=search,
        note=f"at most {megabytes(recipe.budget)}, {_plan_of(recipe, members)}",
    )
    packing = Stage(
        name="pack",
        work=partial(pack, recipe, members, beside),
        format=PACK_FORMAT,
        inputs=("data.train", "ensemble", *files),
        parameters=package,
        bytes=2 * size,  # once in the stage's folder, once in the run's
    )
    return [selection, packing]


def _plan_of(recipe: Recipe, members: Sequence[MemberStages]) -> str:
    """Describe what the file is chosen from, and if not all models fit, what they would take in `coded`."""
    least = sum(min(max(member.sizes(encoding)) for encoding in recipe.quantization.offered) for member in members)
    coded = {member.name: expected_coded_bytes(max(member.sizes("coded"))) for member in members}
    fixed, models = recipe.ensemble.fixed, counted(len(members), "model")
    these = f"these take about {megabytes(sum(coded[name] for name in fixed))}, and " if fixed else ""
    more = f"all {models} about {megabytes(sum(coded.values()))}"
    room = f"; in the encoding coded {these}{more}" if least > recipe.budget else ""
    if fixed:
        return f"{', '.join(fixed)}, {'given' if recipe.ensemble.weights else 'chosen'} weights{room}"
    return f"from {models}{room}"


@dataclass(frozen=True)
class _Holdout:
    """Predictions of the members on the hold-out, in two halves: one for the selection, one for the evaluation.

    Attributes:
        options: members in the allowed encodings, on the selection half; possible top classes only.
        uncoded: the same without the encoding `coded`, for comparison; empty if the recipe does not offer it.
        labels: of the selection half.
        checks: the same options by member and encoding, on the evaluation half.
        plain: members in float32, on the evaluation half.
        check_labels: of the evaluation half.
        prior: GAP of the class prior on the evaluation half.
        class_counts: [C], labels of both halves.
    """

    options: list[Option]
    uncoded: list[Option]
    labels: Tensor
    checks: dict[tuple[str, str], Tensor]
    plain: dict[str, Tensor]
    check_labels: Tensor
    prior: float
    class_counts: Tensor

    def check(self, options: Sequence[Option], weights: Sequence[float]) -> float:
        """Return the GAP of an ensemble on the evaluation half."""
        return ensemble_gap([self.checks[o.member, o.encoding] for o in options], self.check_labels, weights)


def _read_holdout(recipe: Recipe, members: Sequence[MemberStages], manifest: Manifest, job: Job) -> _Holdout:
    halves = split_halves(manifest.videos[split(recipe, manifest)[1]], recipe.seed)
    choose, check = map(torch.from_numpy, halves)
    holdouts = {member.name: member.holdout(job) for member in members}
    offered: list[tuple[str, str]] = []
    uncoded: list[tuple[str, str]] = []
    sizes: dict[tuple[str, str], int] = {}
    for member in members:
        predictions, scores = holdouts[member.name], member.scores(job)
        sizes |= {(member.name, encoding): int(each["bytes"]) + MEMBER_ROOM for encoding, each in scores.items()}
        gaps = partial(predictions.gap, examples=choose)
        least = {encoding: sizes[member.name, encoding] for encoding in recipe.quantization.measured}
        offered += [(member.name, encoding) for encoding in _offered(recipe.quantization, gaps, least)]
        if recipe.quantization.coded:
            others = {encoding: size for encoding, size in least.items() if encoding not in recipe.quantization.coded}
            uncoded += [(member.name, encoding) for encoding in _offered(recipe.quantization, gaps, others)]
    labels = next(iter(holdouts.values())).labels
    either = list(dict.fromkeys([*offered, *uncoded]))
    sources = [(holdouts[name], encoding) for name, encoding in either]
    few, few_labels = read_contenders(sources, labels, choose)
    options = {key: Option(*key, sizes[key], each) for key, each in zip(either, few, strict=True)}
    plain = [(predictions, "float32") for predictions in holdouts.values()]
    checked, check_labels = read_contenders([*sources, *plain], labels, check)
    return _Holdout(
        options=[options[key] for key in offered],
        uncoded=[options[key] for key in uncoded],
        labels=few_labels,
        checks=dict(zip(either, checked, strict=False)),
        plain=dict(zip(holdouts, checked[len(either) :], strict=True)),
        check_labels=check_labels,
        prior=_prior_gap(torch.from_numpy(manifest.class_counts) - labels.sum(0), labels[check], plain[0], check),
        class_counts=labels.sum(0),
    )


def _prior_gap(counts: Tensor, labels: Tensor, one: Source, examples: Tensor) -> float:
    """Return the GAP of the class prior for some examples, where classes that are not rated rank last."""
    parts = []
    for part, known in zip(torch.split(examples, CHUNK), torch.split(labels, CHUNK), strict=True):
        predictions, encoding = one
        unrated = predictions.probabilities(encoding, part) < 0
        parts.append(Metrics.of(class_prior(counts, len(part)).masked_fill(unrated, -1), known))
    return Metrics.merge(parts).gap()


def select_ensemble(
    recipe: Recipe, members: Sequence[MemberStages], keepers: Sequence[str], left: int, job: Job
) -> None:
    """Select the ensemble on one half of the hold-out; evaluate it and its baselines on the other half."""
    fixed, manifest = recipe.ensemble.fixed, load_manifest(job, "train")
    dropped = left_out(job, keepers) - set(fixed)
    holdout = _read_holdout(recipe, [member for member in members if member.name not in dropped], manifest, job)
    selection = _selected(recipe, holdout, left)
    chosen = list(zip(selection.options, selection.weights, strict=True))
    job.progress.say("  " + ", ".join(f"{o.member} {o.encoding} {weight:.3f}" for o, weight in chosen))
    if selection.evidence is not None and not selection.evidence.sufficient:
        evidence = selection.evidence
        job.progress.say(
            f"  one model: a mixture of {evidence.members} gains {evidence.gain:.5f} GAP, which chance explains "
            f"(spread {evidence.spread:.5f})"
        )
    counts = torch.from_numpy(manifest.class_counts) - holdout.class_counts
    content = {
        "members": [{"name": o.member, "encoding": o.encoding, "weight": weight} for o, weight in chosen],
        "holdout": _measured(holdout, selection),
        "frontier": _frontier(holdout, holdout.options),
        "frontier_uncoded": _frontier(holdout, holdout.uncoded),
        "left_out": sorted(dropped),
        "evidence": selection.evidence and asdict(selection.evidence),
        "class_counts": counts.tolist(),
    }
    write_json(job.folder / WEIGHTS, content)


def _frontier(holdout: _Holdout, options: Sequence[Option]) -> list[dict[str, Any]]:
    """Return bytes and GAP, on both halves, of the best ensembles at increasing budgets."""
    points = frontier(options, holdout.labels, FRONTIER_POINTS) if options else []
    return [
        {"bytes": point.bytes, "chosen": point.gap, "checked": holdout.check(point.options, point.weights)}
        for point in points
    ]


def _selected(recipe: Recipe, holdout: _Holdout, left: int) -> Selection:
    """Select members and weights, or take those of the recipe.

    Raises:
        BudgetError: nothing fits, or not all members that the recipe names.
    """
    settings, seed, options, labels = recipe.ensemble, recipe.seed, holdout.options, holdout.labels
    if settings.fixed:
        options = [option for option in options if option.member in settings.fixed]
        fixed = select_members(options, labels, left, settings.weights, trials=settings.trials, seed=seed)
        if fixed is None:
            names, room = ", ".join(settings.fixed), megabytes(max(left, 0))
            raise BudgetError(f"{names} do not fit together: the budget leaves {room}; raise budget_mb, or name fewer")
        return fixed
    selection = select(options, labels, left, trials=settings.trials, seed=seed)
    if selection is None:
        smallest = min(options, key=lambda option: option.bytes)
        raise BudgetError(
            f"no member fits: the smallest, {smallest.member} in {smallest.encoding}, takes "
            f"{megabytes(smallest.bytes)}, and the budget leaves {megabytes(max(left, 0))}; raise budget_mb"
        )
    return prefer_simple(selection, options, labels, left, seed)


def _measured(holdout: _Holdout, selection: Selection) -> dict[str, Any]:
    """Return the GAP of the selection, of other weights for its members, and of its baselines."""
    labels, count = holdout.check_labels, len(selection.options)
    return {
        "videos": len(labels),
        "chosen_on": len(holdout.labels),
        "file": holdout.check(selection.options, selection.weights),
        "file_where_chosen": selection.gap,
        "equal_weights": holdout.check(selection.options, [1 / count] * count),
        "random_search": holdout.check(selection.options, selection.random_weights),
        "members": {name: gap(probabilities, labels) for name, probabilities in holdout.plain.items()},
        "prior": holdout.prior,
    }


def _offered(settings: QuantizationSettings, gap_of: Callable[[str], float], sizes: Mapping[str, int]) -> list[str]:
    """Return the encodings of a member, of those with a size, that may be selected.

    These are the recipe's, or the smallest that loses little GAP.
    """
    candidates = [encoding for encoding in settings.candidates if encoding in sizes]
    if settings.encodings != "auto":
        return candidates
    bar = gap_of("float32") - settings.max_loss
    good = [encoding for encoding in candidates if gap_of(encoding) >= bar]
    return [min(good, key=sizes.__getitem__)]


def class_prior(counts: Tensor, videos: int) -> Tensor:
    """Return the baseline that predicts the frequency of each class in training: [videos, C], all rows equal."""
    return (counts / counts.sum().clamp_min(1)).float().expand(videos, -1)


def pack(recipe: Recipe, members: Sequence[MemberStages], beside: Beside, job: Job) -> None:
    """Write the artifact; the budget limits the size of the file itself."""
    selection: dict[str, Any] = read_json(job.inputs["ensemble"] / WEIGHTS)
    by_name = {member.name: member for member in members}
    selected = []
    for entry in selection["members"]:
        (member,) = load_artifact(by_name[entry["name"]].file(job, entry["encoding"])).members
        selected.append(replace(member, name=entry["name"], weight=entry["weight"]))
    provenance = {
        "recipe": recipe.name,
        "recipe_hash": recipe.fingerprint,
        "budget": recipe.budget,
        "data": {"shards": shard_names(recipe), "videos": len(split(recipe, load_manifest(job, "train"))[0])},
        "versions": versions(),
        "holdout_gap": {key: value for key, value in selection["holdout"].items() if key != "members"},
    }
    packed = Artifact(recipe.data.record_schema, beside.label_names, tuple(selected), provenance, beside.projections)
    size = save_artifact(job.folder / MODEL, packed, recipe.budget)
    job.progress.say(f"  {megabytes(size)} of {megabytes(recipe.budget)}")
    for remark in beside.remarks:
        job.progress.say(f"  data.label_names: {remark}")
