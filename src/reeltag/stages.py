"""The stages of a recipe, in order: what each needs and what it makes. Read `plan` first.

A model on its way through the stages is always a `.reeltag` file with one member, so every stage's
output can be inspected and evaluated like the shipped one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reeltag import artifact, checkpoint
from reeltag.artifact import Artifact, Member, load_tagger, over_budget
from reeltag.data.batches import sequential_batches
from reeltag.data.schema import Schema, read_label_names
from reeltag.data.shards import Indices, Manifest, Shards, refuse_overlap, scan, split_holdout
from reeltag.data.synthetic import write_synthetic
from reeltag.ensemble import ensemble_gap, random_search
from reeltag.environment import default_device, versions
from reeltag.errors import BudgetError, DataError
from reeltag.executors import Job, Stage
from reeltag.metrics import Metrics, Scores
from reeltag.models.tagger import Tagger, build_tagger, meta_tagger
from reeltag.predict import BATCH_SIZE, Predictor, evaluate, predict
from reeltag.quantize import quantized_bytes
from reeltag.recipe import Recipe
from reeltag.report.markdown import render
from reeltag.storage import content_hash, file_hash, find, megabytes, read_json, write_bytes, write_json
from reeltag.train import averaging_phase, final_weights, run_phase, training_phase

MODEL, CHECKPOINT, MANIFEST = "model.reeltag", "checkpoint.safetensors", "manifest.safetensors"
SCORES, PREDICTIONS, WEIGHTS = "scores.json", "predictions.safetensors", "weights.json"
REPORT, RESULTS = "report.md", "results.json"
EXAMPLES = 5


def plan(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, each after its inputs.

    Raises:
        BudgetError: the members' weights alone exceed the budget.
        UsageError: a file is missing.
    """
    _check_budget(recipe)
    stages = _data_stages(recipe)
    for name in recipe.models:
        stages += _Model(recipe, name).stages()
    return stages + _ensemble_stages(recipe) + _test_stages(recipe)


def _check_budget(recipe: Recipe) -> None:
    sizes = {name: _Model(recipe, name).quantized_bytes for name in recipe.models}
    if sum(sizes.values()) > recipe.budget:
        raise BudgetError(
            over_budget(sum(sizes.values()), recipe.budget, 0, sizes, sorted(sizes, key=sizes.__getitem__))
        )


# --- data ---------------------------------------------------------------------------------------


def _data_stages(recipe: Recipe) -> list[Stage]:
    data = recipe.data
    stages = []
    if data.synthetic is not None:
        videos = data.synthetic.train_videos + data.synthetic.test_videos
        parameters = data.synthetic.model_dump(mode="json")
        stages.append(Stage("synthetic", partial(_do_synthetic, recipe), (), parameters, f"{videos:,} videos"))
    before: tuple[str, ...] = ("synthetic",) if data.synthetic is not None else ()
    for split, patterns in {"train": data.train, "test": data.test}.items():
        files = [] if data.synthetic else find(patterns, data.root)
        identities = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        parameters = {"files": identities, "schema": data.record_schema.model_dump(mode="json")}
        note = f"{len(files)} shards, {megabytes(sum(file.stat().st_size for file in files))}" if files else ""
        inputs = before if split == "train" else (*before, "data.train")
        stages.append(Stage(f"data.{split}", partial(_do_data, recipe, split, files), inputs, parameters, note))
    return stages


def _do_synthetic(recipe: Recipe, job: Job) -> None:
    assert recipe.data.synthetic is not None
    write_synthetic(job.folder, recipe.data.synthetic)


def _do_data(recipe: Recipe, split: str, files: list[Path], job: Job) -> str:
    """Read the shards through once. What follows depends on what they say, not on where they lie."""
    files = files or find([f"{split}-*"], job.inputs["synthetic"])
    total = sum(file.stat().st_size for file in files)
    with job.progress.task("check and index", total, "bytes") as task:
        manifest = scan(files, recipe.data.record_schema, task.advance)
    if manifest.labelled < len(manifest):
        missing = len(manifest) - manifest.labelled
        raise DataError(f"{missing} of {len(manifest)} videos have no labels; data.{split} needs labelled shards")
    if split == "test":
        refuse_overlap(_manifest(job, "train"), manifest)
    manifest.save(job.folder / MANIFEST)
    return manifest.fingerprint


def _manifest(job: Job, split: str) -> Manifest:
    return Manifest.load(job.inputs[f"data.{split}"] / MANIFEST)


def _split(recipe: Recipe, manifest: Manifest) -> tuple[Indices, Indices]:
    holdout = recipe.data.holdout
    return split_holdout(manifest, recipe.seed, fraction=holdout.fraction, shards=holdout.shards)


# --- one model ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """The stages of one of the recipe's models: train, average, quantise, predict the hold-out."""

    recipe: Recipe
    name: str

    def stages(self) -> list[Stage]:
        recipe = self.recipe
        split = {"seed": recipe.seed, "holdout": recipe.data.holdout.model_dump()}
        # Where and with how many helpers a training runs does not decide what comes out.
        training = recipe.training.model_dump(exclude={"device", "workers"})
        parameters = {"config": self.config.model_dump(), "training": training, **split}
        note = f"{self.parameters:,} parameters, {megabytes(4 * self.parameters)} float"
        stages = [Stage(f"train.{self.name}", self.do_train, ("data.train",), parameters, note)]
        if recipe.averaging is not None:
            averaging = {"averaging": recipe.averaging.model_dump()}
            stages.append(Stage(self.finished, self.do_average, ("data.train", f"train.{self.name}"), averaging))
        note = f"{megabytes(self.quantized_bytes)} 8-bit"
        stages.append(Stage(f"quantize.{self.name}", self.do_quantize, (self.finished,), {}, note))
        inputs = ("data.train", f"quantize.{self.name}")
        stages.append(Stage(f"predict.{self.name}", self.do_predict, inputs, split))
        return stages

    @property
    def config(self) -> Any:
        return self.recipe.models[self.name]

    @property
    def schema(self) -> Schema:
        return self.recipe.data.record_schema

    @property
    def finished(self) -> str:
        """The stage that ends with the float model."""
        return f"{'average' if self.recipe.averaging else 'train'}.{self.name}"

    @property
    def seed(self) -> int:
        """Each model has its own, so that equal configurations differ in initial weights and order."""
        return int(content_hash([self.recipe.seed, self.name])[:15], 16)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._meta.parameters())

    @property
    def quantized_bytes(self) -> int:
        return quantized_bytes(self._meta.state_dict())

    @property
    def _meta(self) -> Tagger:
        return meta_tagger(self.config, self.schema.widths, self.schema.classes)

    def do_train(self, job: Job) -> None:
        manifest = _manifest(job, "train")
        train, _ = _split(self.recipe, manifest)
        tagger = build_tagger(self.config, self.schema.widths, self.schema.classes, self.seed)
        settings = self.recipe.training
        phase = training_phase(settings, len(train))
        path = job.folder / CHECKPOINT
        state = run_phase(
            tagger, Shards(manifest), train, phase, settings, seed=self.seed, path=path, progress=job.progress
        )
        self.save(job, final_weights(state))

    def do_average(self, job: Job) -> None:
        """Train on while averaging; keep the averaged weights only where the hold-out says so."""
        assert self.recipe.averaging is not None
        manifest = _manifest(job, "train")
        train, holdout = _split(self.recipe, manifest)
        start = checkpoint.load(job.inputs[f"train.{self.name}"] / CHECKPOINT)
        tagger = build_tagger(self.config, self.schema.widths, self.schema.classes, self.seed)
        settings = self.recipe.training
        state = run_phase(
            tagger,
            Shards(manifest),
            train,
            averaging_phase(settings, self.recipe.averaging, len(train)),
            settings,
            seed=self.seed,
            path=job.folder / CHECKPOINT,
            start=start,
            progress=job.progress,
            name="average",
        )
        choices = {"plain": start.model, "averaged": final_weights(state)}
        scores = {key: self._holdout_gap(weights, manifest, holdout) for key, weights in choices.items()}
        kept = max(scores, key=scores.__getitem__)
        job.progress.say(f"  hold-out GAP: plain {scores['plain']:.5f}, averaged {scores['averaged']:.5f}; kept {kept}")
        write_json(job.folder / SCORES, {**scores, "kept": kept})
        self.save(job, choices[kept])

    def _holdout_gap(self, weights: dict[str, Tensor], manifest: Manifest, holdout: Indices) -> float:
        tagger = load_tagger(self.config, self.schema, weights, self.name).to(default_device())
        batches = sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)
        return evaluate(predict(tagger, batches)).gap()

    def do_quantize(self, job: Job) -> None:
        source = artifact.load(job.inputs[self.finished] / MODEL)
        artifact.save(job.folder / MODEL, artifact.quantized(source))

    def do_predict(self, job: Job) -> None:
        """Predict the hold-out with the weights that will be shipped."""
        manifest = _manifest(job, "train")
        _, holdout = _split(self.recipe, manifest)
        model = _open(job, f"quantize.{self.name}").model
        parts = list(predict(model, sequential_batches(Shards(manifest), holdout, batch_size=BATCH_SIZE)))
        tensors = {
            "probabilities": torch.cat([part.probabilities for part in parts]),
            "labels": torch.cat([part.labels for part in parts if part.labels is not None]),
        }
        checkpoint.save_tensors(job.folder / PREDICTIONS, tensors, {"videos": len(holdout)})

    def save(self, job: Job, weights: dict[str, Tensor]) -> None:
        member = Member(self.name, self.config, 1.0, weights)
        provenance = {"recipe": self.recipe.name, "versions": versions()}
        artifact.save(job.folder / MODEL, Artifact(self.schema, None, (member,), provenance))


def finished_stage(recipe: Recipe, model: str) -> str:
    """Name of the stage that ends with a model's float file."""
    return _Model(recipe, model).finished


# --- the ensemble and its file ------------------------------------------------------------------


def _ensemble_stages(recipe: Recipe) -> list[Stage]:
    names = list(recipe.models)
    predicted, quantized = [f"predict.{name}" for name in names], [f"quantize.{name}" for name in names]
    search = {"trials": recipe.ensemble.trials, "seed": recipe.seed}
    labels = _label_names_path(recipe)
    package = {
        "recipe": recipe.fingerprint,
        "budget": recipe.budget,
        "label_names": file_hash(labels) if labels else None,
    }
    note = f"at most {megabytes(recipe.budget)}"
    return [
        Stage(
            "ensemble",
            partial(_do_ensemble, recipe),
            ("data.train", *predicted),
            search,
            f"{len(names)} members",
        ),
        Stage("pack", partial(_do_pack, recipe), ("ensemble", *quantized), package, note),
    ]


def _label_names_path(recipe: Recipe) -> Path | None:
    if recipe.data.label_names is None:
        return None
    (path,) = find([recipe.data.label_names], recipe.data.root)
    return path


def _do_ensemble(recipe: Recipe, job: Job) -> None:
    """Search weights on the hold-out, and measure what they have to beat there."""
    names = list(recipe.models)
    files = [checkpoint.load_tensors(job.inputs[f"predict.{name}"] / PREDICTIONS)[0] for name in names]
    probabilities, labels = [file["probabilities"] for file in files], files[0]["labels"]
    weights, gap = random_search(probabilities, labels, trials=recipe.ensemble.trials, seed=recipe.seed)
    job.progress.say("  weights: " + ", ".join(f"{n} {w:.3f}" for n, w in zip(names, weights, strict=True)))
    counts = torch.from_numpy(_manifest(job, "train").class_counts) - labels.sum(0)
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
    labels, schema = _label_names_path(recipe), recipe.data.record_schema
    provenance = {
        "recipe": recipe.name,
        "recipe_hash": recipe.fingerprint,
        "versions": versions(),
        "holdout_gap": found["holdout"],
    }
    names = read_label_names(labels, schema.classes) if labels else None
    size = artifact.save(job.folder / MODEL, Artifact(schema, names, tuple(members), provenance), recipe.budget)
    job.progress.say(f"  {megabytes(size)} of {megabytes(recipe.budget)}")


# --- the test set and the report ----------------------------------------------------------------


def _test_stages(recipe: Recipe) -> list[Stage]:
    stages = []
    for name in recipe.models:
        finished = finished_stage(recipe, name)
        inputs = ("data.test", finished, f"quantize.{name}")
        stages.append(Stage(f"test.{name}", partial(_do_test_member, finished, f"quantize.{name}"), inputs))
    stages.append(Stage("test.file", _do_test_file, ("data.test", "ensemble", "pack")))
    tests = tuple(f"test.{name}" for name in recipe.models)
    stages.append(Stage("report", partial(_do_report, recipe), ("ensemble", "pack", "test.file", *tests)))
    return stages


def _open(job: Job, stage: str) -> Predictor:
    return Predictor(artifact.load(job.inputs[stage] / MODEL), default_device())


def _test(job: Job, stage: str) -> Scores:
    shards = Shards(_manifest(job, "test"))
    with job.progress.task(f"test {stage}", len(shards), "videos") as task:
        parts = []
        for part in predict(_open(job, stage).model, sequential_batches(shards, batch_size=BATCH_SIZE)):
            parts.append(evaluate([part]))
            task.advance(len(part.ids))
    return Metrics.merge(parts).compute()


def _do_test_member(finished: str, quantized: str, job: Job) -> None:
    """Test a member before and after quantisation."""
    sizes = {"float": finished, "8-bit": quantized}
    content = {
        key: {**_test(job, stage).summary(), "bytes": (job.inputs[stage] / MODEL).stat().st_size}
        for key, stage in sizes.items()
    }
    write_json(job.folder / SCORES, content)


def _do_test_file(job: Job) -> None:
    """Test the shipped file, beside the prior, and tag a few videos as examples."""
    scores = _test(job, "pack")
    manifest, predictor = _manifest(job, "test"), _open(job, "pack")
    counts = torch.tensor(read_json(job.inputs["ensemble"] / WEIGHTS)["class_counts"])
    batches = sequential_batches(Shards(manifest), batch_size=BATCH_SIZE)
    prior = Metrics.merge(
        Metrics.of(class_prior(counts, len(batch)), batch.labels) for batch in batches if batch.labels is not None
    )
    shards, names = Shards(manifest), predictor.label_names
    examples = []
    for video in map(shards.read, range(min(EXAMPLES, len(shards)))):
        assert video.labels is not None  # the data stage saw to it
        tags = predictor.tags(video.frames())
        examples.append({"id": video.id, "tags": tags, "labels": [names[label] for label in video.labels.tolist()]})
    content = {
        "file": scores.summary(),
        "prior": prior.compute().summary(),
        "class_ap": dict(zip(names, scores.class_ap.round(5).tolist(), strict=True)),
        "examples": examples,
    }
    write_json(job.folder / SCORES, content)


def _do_report(recipe: Recipe, job: Job) -> None:
    found = read_json(job.inputs["ensemble"] / WEIGHTS)
    test = read_json(job.inputs["test.file"] / SCORES)
    content = {
        "recipe": recipe.name,
        "budget": recipe.budget,
        "bytes": (job.inputs["pack"] / MODEL).stat().st_size,
        "weights": found["weights"],
        "holdout_gap": found["holdout"],
        "test": {key: test[key] for key in ("file", "prior", "class_ap")},
        "test_members": {name: read_json(job.inputs[f"test.{name}"] / SCORES) for name in recipe.models},
        "examples": test["examples"],
    }
    write_json(job.folder / RESULTS, content)
    write_bytes(job.folder / REPORT, render(content).encode())
