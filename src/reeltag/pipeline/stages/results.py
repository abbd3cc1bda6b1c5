"""The stages that measure on the test set and report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from reeltag.inference.metrics.evaluation import Evaluation, evaluate_predictions
from reeltag.inference.predictor import Predictor, load
from reeltag.pipeline.executor import Job, Stage
from reeltag.pipeline.report.calibration import calibration
from reeltag.pipeline.report.gating import FREQUENT_CLASSES
from reeltag.pipeline.report.markdown import render
from reeltag.pipeline.report.page import render_frontier
from reeltag.pipeline.report.paper_tables import render_tables
from reeltag.pipeline.report.results import FORMAT, rounded
from reeltag.pipeline.stages.candidate import ModelStages
from reeltag.pipeline.stages.ensemble import class_prior
from reeltag.pipeline.stages.files import MODEL, REPORT, RESULTS, SCORES, SELECTION, WEIGHTS, load_manifest
from reeltag.pipeline.stages.member import MemberStages
from reeltag.pipeline.stages.report_samples import SHOWN, GateWatch, curve, gate_of, machine, margins, shown_videos
from reeltag.pipeline.stages.training import Selected
from reeltag.recipe.schema import Recipe
from reeltag.training.log import LOG, read_rows

EXAMPLES = 5
# Bytes of a report, as runs of 1 to 4 models and 12 to 527 classes left them: of each, and beside them.
MODEL_BYTES, CLASS_BYTES, OTHER_BYTES = 16_000, 100, 50_000


def result_stages(recipe: Recipe, members: Sequence[MemberStages]) -> list[Stage]:
    """Test every member and the file on videos that nothing was chosen on, and report."""
    stages = []
    for member in members:
        inputs = ("data.test", member.finished, member.quantized)
        tested = {"encodings": list(recipe.quantization.tested), "gating": FREQUENT_CLASSES, **recipe.test.model_dump()}
        stages.append(Stage(f"test.{member.name}", partial(_do_test_member, member), inputs, tested, gpus=1))
    inputs = ("data.test", "ensemble", "pack")
    tested = {"shown": SHOWN, **recipe.test.model_dump()}
    stages.append(Stage("test.file", partial(_do_test_file, recipe), inputs, tested, gpus=1))
    known = ["data.train", "data.test", "ensemble", "pack", "test.file"]
    for member in members:
        known += [f"test.{member.name}", member.predicted, member.finished]
        known += [*member.source.stages, member.training.stage_name] if isinstance(member, ModelStages) else ()
    work = partial(_do_report, recipe, members)
    size = OTHER_BYTES + MODEL_BYTES * len(members) + CLASS_BYTES * recipe.data.record_schema.classes
    stages.append(Stage("report", work, tuple(dict.fromkeys(known)), {"format": FORMAT}, bytes=size))
    return stages


def _test_predictions(job: Job, predictor: Predictor, name: str) -> Iterator[Predictions]:
    shards = Shards(load_manifest(job, "test"))
    with job.progress.task(f"test {name}", len(shards), f"{predictor.schema.example}s") as task:
        for part in predict_batches(predictor.model, sequential_batches(shards, batch_size=BATCH_SIZE)):
            yield part
            task.advance(len(part.ids))


def _do_test_member(member: MemberStages, job: Job) -> None:
    """Test a member before and after quantisation; before, also what a gate on its probabilities does."""
    tested, watch = {}, None
    for encoding in member.recipe.quantization.tested:
        path = member.file(job, encoding)
        predictor = load(path)
        predictions = _test_predictions(job, predictor, f"{member.name} {encoding}")
        if encoding == "float32" and (gate := gate_of(predictor.model)) is not None:
            watch = GateWatch(gate, torch.from_numpy(load_manifest(job, "test").class_counts))
            predictions = watch.watch(predictions)
        all_scores, classes = member.recipe.test.all_scores, predictor.schema.segment_classes
        scores = evaluate_predictions(predictions, all_scores=all_scores, classes=classes).compute()
        tested[encoding] = scores.summary() | {"bytes": path.stat().st_size}
    gain = watch.gain() if watch else None
    write_json(job.folder / SCORES, {"test": tested} | ({"gating": gain} if gain else {}))


def _do_test_file(recipe: Recipe, job: Job) -> None:
    """Test the shipped file, beside the prior, and tag a few videos as examples."""
    counts = torch.tensor(read_json(job.inputs["ensemble"] / WEIGHTS)["class_counts"])
    predictor = load(job.inputs["pack"] / MODEL)
    begin = partial(Evaluation, all_scores=recipe.test.all_scores, classes=predictor.schema.segment_classes)
    measured, by_prior, above = begin(), begin(), []
    for part in _test_predictions(job, predictor, "the file"):
        measured.add(part)
        by_prior.add(replace(part, probabilities=class_prior(counts, len(part.ids))))
        above.append(margins(part))
    metrics, prior = measured.metrics(), by_prior.metrics().compute()
    scores, rated = metrics.compute(), metrics.scores >= 0
    shards, names = Shards(load_manifest(job, "test")), predictor.label_names
    examples = []
    for video in map(shards.read, range(min(EXAMPLES, len(shards)))):
        assert video.labels is not None  # the data stage saw to it
        tags = predictor.tags(video.frames())
        examples.append({"id": video.id, "tags": tags, "labels": [names[label] for label in video.labels.tolist()]})
    content = {
        "file": scores.summary(),
        "prior": prior.summary(),
        "class_ap": list(zip(names, scores.class_ap.round(5).tolist(), strict=True)),
        "class_counts": {"train": counts.tolist(), "test": metrics.positives.tolist()},
        "calibration": calibration(metrics.scores[rated], metrics.hits[rated]),
        "videos": shown_videos(predictor, shards, torch.cat(above)),
        "examples": examples,
    }
    write_json(job.folder / SCORES, content)


def _do_report(recipe: Recipe, members: Sequence[MemberStages], job: Job) -> None:
    found = read_json(job.inputs["ensemble"] / WEIGHTS)
    test = read_json(job.inputs["test.file"] / SCORES)
    shipped = load_artifact(job.inputs["pack"] / MODEL)
    sizes = {member.name: stored_bytes(member.state) for member in shipped.members}
    content = {
        "format": FORMAT,
        "recipe": recipe.name,
        "budget": recipe.budget,
        "bytes": (job.inputs["pack"] / MODEL).stat().st_size,
        "shipped": [{**entry, "bytes": sizes[entry["name"]]} for entry in found["members"]],
        "holdout_gap": found["holdout"],
        "frontier": found["frontier"],
        "left_out": found["left_out"],
        "test": {key: test[key] for key in ("file", "prior", "class_ap")},
        "members": {member.name: _member_results(recipe, member, job) for member in members},
        **{key: test[key] for key in ("class_counts", "calibration", "videos", "examples")},
        "curves": {member.name: curve(member, job) for member in members if isinstance(member, ModelStages)},
        "environment": {"machine": machine(), "versions": shipped.provenance["versions"]},
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
    """What was left out, by the names of the shards, wherever they lie."""
    return [{**vars(record), "file": Path(record.file).name} for record in manifest.left_out]


def _member_results(recipe: Recipe, member: MemberStages, job: Job) -> dict[str, Any]:
    """All that is known of a model: test scores, hold-out scores by encoding, averaging, and whose student it is."""
    test, holdout = read_json(job.inputs[f"test.{member.name}"] / SCORES), member.scores(job)
    found: dict[str, Any] = {**test, "holdout": holdout, "family": "imported", "taught_by": []}
    if not isinstance(member, ModelStages):
        return found
    found |= {"family": member.source.candidates[0].config.family, "taught_by": member.training.taught_by}
    if recipe.averaging is not None:
        found["averaging"] = member.averaging_scores(job)
    steps = read_rows(job.inputs[member.finished] / LOG)[-1].step
    found["first_statistics"] = rounded(member.source.resolve(job).config.bn_decay ** steps)
    if isinstance(member.source, Selected):
        found["like"] = read_json(job.inputs[member.source.stage] / SELECTION)["names"][member.source.number]
    return found
