"""Stages that evaluate on the test set and write the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reeltag.artifact.file import load_artifact, stored_bytes
from reeltag.core.storage import read_json, write_bytes, write_json
from reeltag.data.loader import sequential_batches
from reeltag.data.shards import Manifest, Shards
from reeltag.inference.ensemble import BATCH_SIZE, Predictions, predict_batches
from reeltag.inference.metrics.bootstrap import resample
from reeltag.inference.metrics.evaluation import Evaluation, evaluate_predictions
from reeltag.inference.metrics.outcomes import THRESHOLD, Outcomes
from reeltag.inference.predictor import Predictor, load
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.report.calibration import calibration
from reeltag.pipeline.report.gating import FREQUENT_CLASSES
from reeltag.pipeline.report.judging import judged_bytes, judged_classes, mistakes_of_classes
from reeltag.pipeline.report.markdown import render
from reeltag.pipeline.report.page import render_frontier
from reeltag.pipeline.report.paper_tables import render_tables
from reeltag.pipeline.report.results import CLASSES, FORMAT, RESULTS, Judged, rounded
from reeltag.pipeline.stages.architectures import TeacherArchitecture, label_twin, start_stage
from reeltag.pipeline.stages.diversity import diversity
from reeltag.pipeline.stages.ensemble import class_prior
from reeltag.pipeline.stages.files import MODEL, REPORT, SCORES, SELECTION, START, WEIGHTS, load_manifest
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.report_samples import (
    SAMPLES,
    GateProbe,
    class_courses,
    curve,
    gate_of,
    machine,
    margins,
    sampled_videos,
)
from reeltag.pipeline.stages.trained_model import TrainedModelStages, decides_by_family, decision_stage
from reeltag.recipe.schema import Recipe
from reeltag.training.log import LOG, read_rows

EXAMPLES = 5
# Bytes of a report a model, a class and beside them, measured on runs of 1 to 4 models and 12 to 527 classes.
MODEL_BYTES, CLASS_BYTES, OTHER_BYTES = 16_000, 100, 50_000
TEST_FORMAT = 1  # raise it when the same model gives other test results
FILE_TEST_FORMAT = 3  # the same of the file
REPORT_FORMAT = 2  # raise it when the same results give another report, unless report.results.FORMAT is raised


def result_stages(recipe: Recipe, members: Sequence[MemberStages], selections: Mapping[str, str]) -> list[Stage]:
    """Return the stages that test every member and the artifact on the test set, and that write the report.

    Args:
        recipe: the recipe.
        members: the models that may have become members.
        selections: names of the stages that select the teachers, by family.
    """
    stages = []
    for member in members:
        encodings = list(recipe.quantization.tested)
        test_member = Stage(
            name=f"test.{member.name}",
            work=partial(_test_member, member),
            format=TEST_FORMAT,
            inputs=("data.test", member.finished, member.quantized),
            parameters={"encodings": encodings, "gating": FREQUENT_CLASSES, **recipe.test.model_dump()},
            gpus=1,
        )
        stages.append(test_member)
    test_file = Stage(
        name="test.file",
        work=partial(_test_file, recipe),
        format=FILE_TEST_FORMAT,
        inputs=("data.test", "ensemble", "pack"),
        parameters={"samples": SAMPLES, **recipe.test.model_dump()},
        gpus=1,
        bytes=OTHER_BYTES + judged_bytes(recipe.data.record_schema.classes),
    )
    return [*stages, test_file, _report_stage(recipe, members, selections)]


def _report_stage(recipe: Recipe, members: Sequence[MemberStages], selections: Mapping[str, str]) -> Stage:
    known = ["data.train", "data.test", "ensemble", "pack", "test.file", *selections.values()]
    for member in members:
        known += [f"test.{member.name}", member.predicted, member.quantized, member.finished]
        if isinstance(member, TrainedModelStages):
            known += [*member.architecture.stages, member.training.stage_name, member.last_training]
            known += [decision_stage(member.family)] if decides_by_family(recipe) else []
            known += [start_stage(member.name)] if member.training.start else []
    return Stage(
        name="report",
        work=partial(_report, recipe, members, selections),
        format=REPORT_FORMAT,
        inputs=tuple(dict.fromkeys(known)),
        parameters={"format": FORMAT},
        bytes=OTHER_BYTES + MODEL_BYTES * len(members) + CLASS_BYTES * recipe.data.record_schema.classes,
    )


def _test_predictions(job: Job, shards: Shards, predictor: Predictor, name: str) -> Iterator[Predictions]:
    with job.progress.task(f"test {name}", len(shards), f"{predictor.schema.example}s") as task:
        for part in predict_batches(predictor.model, sequential_batches(shards, batch_size=BATCH_SIZE)):
            yield part
            task.advance(len(part.ids))


def _test_member(member: MemberStages, job: Job) -> None:
    """Test a member before and after quantisation; before, also the effect of a gate on its probabilities."""
    tested, probe, manifest = {}, None, load_manifest(job, "test")
    for encoding in member.recipe.quantization.tested:
        path = member.file(job, encoding)
        predictor = load(path, "exact")
        predictions = _test_predictions(job, Shards(manifest), predictor, f"{member.name} {encoding}")
        if encoding == "float32" and (gate := gate_of(predictor.model)) is not None:
            probe = GateProbe(gate, torch.from_numpy(manifest.class_counts))
            predictions = probe.observe(predictions)
        all_scores, classes = member.recipe.test.all_scores, predictor.schema.segment_classes
        scores = evaluate_predictions(predictions, all_scores=all_scores, classes=classes).compute()
        tested[encoding] = scores.summary() | {"bytes": path.stat().st_size}
    gain = probe.gain() if probe else None
    write_json(job.folder / SCORES, {"test": tested} | ({"gating": gain} if gain else {}))


def _test_file(recipe: Recipe, job: Job) -> None:
    """Test the artifact and the class prior, and tag a few videos as examples."""
    counts = torch.tensor(read_json(job.inputs["ensemble"] / WEIGHTS)["class_counts"])
    predictor, shards = load(job.inputs["pack"] / MODEL, "exact"), Shards(load_manifest(job, "test"))
    begin = partial(Evaluation, all_scores=recipe.test.all_scores, classes=predictor.schema.segment_classes)
    measured, by_prior, above = begin(threshold=THRESHOLD, rows=True), begin(), []
    for part in _test_predictions(job, shards, predictor, "the file"):
        measured.add(part)
        by_prior.add(replace(part, probabilities=class_prior(counts, len(part.ids))))
        above.append(margins(part))
    metrics, prior = measured.metrics(), by_prior.metrics().compute()
    scores, rated = metrics.compute(), metrics.scores >= 0
    names = predictor.label_names
    examples = []
    for video in map(shards.read, range(min(EXAMPLES, len(shards)))):
        assert video.labels is not None  # the data stage refuses unlabelled videos
        tags = predictor.tags(video.frames())
        examples.append({"id": video.id, "tags": tags, "labels": [names[label] for label in video.labels.tolist()]})
    content = {
        "file": scores.summary(),
        "prior": prior.summary(),
        "class_ap": list(zip(names, scores.class_ap.round(5).tolist(), strict=True)),
        "class_counts": {"train": counts.tolist(), "test": metrics.positives.tolist()},
        "calibration": calibration(metrics.scores[rated], metrics.hits[rated]),
        "videos": sampled_videos(predictor, shards, torch.cat(above)),
        "examples": examples,
    }
    write_json(job.folder / SCORES, content)
    write_json(job.folder / CLASSES, _judged(predictor, shards, measured.outcomes()), compact=True)


def _judged(predictor: Predictor, shards: Shards, outcomes: Outcomes) -> Judged:
    """Judge the file class by class, with the videos on which it is most wrong."""
    mistakes = mistakes_of_classes(outcomes)
    rows = [row for kinds in mistakes for listed in kinds for row in listed]
    courses = class_courses(predictor, shards, outcomes.videos[rows].tolist(), outcomes.classes[rows].tolist())
    resampled = None if predictor.schema.segments is not None else resample(outcomes)[0]
    return judged_classes(outcomes, mistakes, dict(zip(rows, courses, strict=True)), resampled)


def _report(recipe: Recipe, members: Sequence[MemberStages], selections: Mapping[str, str], job: Job) -> None:
    selection = read_json(job.inputs["ensemble"] / WEIGHTS)
    test = read_json(job.inputs["test.file"] / SCORES)
    artifact = load_artifact(job.inputs["pack"] / MODEL)
    sizes = stored_bytes(job.inputs["pack"] / MODEL)
    content = {
        "format": FORMAT,
        "recipe": recipe.name,
        "budget": recipe.budget,
        "bytes": (job.inputs["pack"] / MODEL).stat().st_size,
        "shipped": [{**entry, "bytes": sizes[entry["name"]]} for entry in selection["members"]],
        "holdout_gap": selection["holdout"],
        "frontier": selection["frontier"],
        "frontier_uncoded": selection["frontier_uncoded"],
        "left_out": selection["left_out"],
        "evidence": selection["evidence"],
        "teachers": {
            family: read_json(job.inputs[stage] / SELECTION)["ranking"] for family, stage in selections.items()
        },
        "diversity": diversity(recipe, members, job),
        "test": {key: test[key] for key in ("file", "prior", "class_ap")},
        "members": {member.name: _member_results(recipe, member, job) for member in members},
        **{key: test[key] for key in ("class_counts", "calibration", "videos", "examples")},
        "curves": {member.name: curve(member, job) for member in members if isinstance(member, TrainedModelStages)},
        "environment": {"machine": machine(), "versions": artifact.provenance["versions"]},
        "bad_records": {split: _bad_records(load_manifest(job, split)) for split in ("train", "test")},
    }
    write_json(job.folder / RESULTS, content)
    texts = {
        "report.md": render(content),
        "tables.md": render_tables(content),
        "frontier.svg": render_frontier(content),
    }
    for name, text in texts.items():
        write_bytes(job.folder / REPORT / name, text.encode())


def _bad_records(manifest: Manifest) -> list[dict[str, Any]]:
    """Return the skipped records, with the names of their shards without the folders."""
    return [{**vars(record), "file": Path(record.file).name} for record in manifest.left_out]


def _member_results(recipe: Recipe, member: MemberStages, job: Job) -> dict[str, Any]:
    """Collect the results of a model: test scores, hold-out scores by encoding, averaging, and its teachers."""
    test, holdout = read_json(job.inputs[f"test.{member.name}"] / SCORES), member.scores(job)
    results: dict[str, Any] = {**test, "holdout": holdout, "family": "imported", "taught_by": []}
    if not isinstance(member, TrainedModelStages):
        return results
    architecture = member.architecture
    results |= {"family": member.family, "taught_by": member.training.taught_by}
    if recipe.averaging is not None:
        results |= {"averaging": member.averaging_scores(job), "averaged": member.averaged(job)}
    if member.training.start is not None:
        results["start"] = read_json(job.inputs[start_stage(member.name)] / START)
    else:
        steps = read_rows(job.inputs[member.last_training] / LOG)[-1].step
        results["first_statistics"] = rounded(architecture.resolve(job).config.bn_decay ** steps)
    if isinstance(architecture, TeacherArchitecture):
        results["like"] = read_json(job.inputs[architecture.stage] / SELECTION)["names"][architecture.index]
    elif member.targets and (twin := label_twin(recipe, architecture.settings)):
        results["like"] = twin
    return results
