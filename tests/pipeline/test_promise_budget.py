"""Promise 15: the file predicts the weighted mean of its members, and no budget is exceeded."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from reeltag.artifact.file import Artifact, Member, load_artifact, save_artifact
from reeltag.artifact.quantization.sizes import ENCODINGS
from reeltag.core import tensorfile
from reeltag.core.environment import versions
from reeltag.core.errors import BudgetError
from reeltag.core.progress import Progress
from reeltag.core.storage import write_json
from reeltag.data.schema import Feature, Schema
from reeltag.data.shards import Manifest
from reeltag.inference.predictor import load
from reeltag.models.families import FAMILIES, parse_config
from reeltag.models.tagger import build_tagger
from reeltag.pipeline.executor import Job
from reeltag.pipeline.stages import ensemble
from reeltag.pipeline.stages.check import Beside, room
from reeltag.pipeline.stages.files import MANIFEST, MODEL, PREDICTIONS, SCORES
from reeltag.pipeline.stages.member import MemberStages
from reeltag.recipe.schema import Recipe
from small_models import ALL, SCHEMA, in_encoding, small_tagger, stirred, videos

VIDEOS = 40  # of which a third is held out
LETTERS = ["a", "Z", " ", '"', "\\", "é", "日", "\U0001f600", "\n", "/"]


def in_float64(members, frames):
    """Return the weighted mean of the models' own predictions."""
    alone = [(weight, tagger(frames, torch.full((len(frames),), frames.shape[1]))) for tagger, weight in members]
    return sum(weight * probabilities.double() for weight, probabilities in alone).numpy()


@torch.inference_mode()
def parity(path, models, seed):
    """Return the largest difference between a float file's probabilities and the mean of its members."""
    rng = np.random.default_rng(seed)
    taggers = [stirred(small_tagger(family, form, seed=number), seed + number) for number, (family, form) in models]
    shares = rng.dirichlet(np.ones(len(taggers))).tolist()
    members = [
        Member(f"m{number}", tagger.config, share, tagger.state_dict())
        for number, (tagger, share) in enumerate(zip(taggers, shares, strict=True))
    ]
    save_artifact(path, Artifact(SCHEMA, None, tuple(members), {}))
    frames, _, _ = videos(5, int(rng.integers(1, 30)), seed)
    expected = in_float64(zip(taggers, shares, strict=True), frames)
    return float(np.abs(load(path).predict(frames.numpy()) - expected).max())


def ensembles():
    """Yield the forms of each family together, and then all forms of all families."""
    numbered = list(enumerate(ALL))
    yield from ([each for each in numbered if each[1][0] == family] for family in FAMILIES)
    yield numbered


@dataclass(frozen=True)
class Ready(MemberStages):
    """Stages of a model whose files exist already."""

    @property
    def finished(self):
        return f"train.{self.name}"

    def sizes(self, encoding):
        raise NotImplementedError

    def source_stages(self):
        raise NotImplementedError

    def prepare(self, job, rng, labels):
        """Write the output of a model's stages, with random weights and predictions."""
        family = str(rng.choice(["mean", "netvlad", "dbof", "rnn"]))
        small = {"netvlad": {"clusters": 4}, "dbof": {"clusters": 16}, "rnn": {"cells": 8}}.get(family, {})
        config = parse_config({"family": family, "hidden": int(rng.integers(8, 60)), **small})
        state = build_tagger(config, self.schema.widths, self.schema.classes, int(rng.integers(1000))).state_dict()
        provenance = {"recipe": self.recipe.name, "versions": versions()}
        one = Artifact(self.schema, None, (Member(self.name, config, 1.0, state),), provenance)
        first, *others = self.recipe.quantization.measured
        for stage, encodings in ((self.predicted, [first]), (self.quantized, others)):
            tensors, scores = {"labels": labels}, {}
            for encoding in encodings:
                folder = job.inputs[self.finished if encoding == first else self.quantized]
                path = folder / (MODEL if encoding == first else f"{encoding}.reeltag")
                path.parent.mkdir(exist_ok=True)
                save_artifact(path, in_encoding(one, encoding))
                noise = torch.from_numpy(rng.normal(0, 0.4, labels.shape)).float()
                tensors[encoding] = (0.5 * labels + noise).sigmoid()
                scores[encoding] = {"gap": 0.5, "bytes": path.stat().st_size, "seconds": 0.0}
            job.inputs[stage].mkdir(exist_ok=True)
            tensorfile.save_tensors(job.inputs[stage] / PREDICTIONS, tensors, {"videos": len(labels)})
            write_json(job.inputs[stage] / SCORES, scores)


def text(rng, most):
    """Return a text of random length, with characters that take up to ten bytes in the file."""
    return "".join(rng.choice(LETTERS, int(rng.integers(0, most))))


def plain_text(rng, most):
    return "m" + "".join(rng.choice(list("abc-_9"), int(rng.integers(0, most))))


def problem(folder, seed):
    """Write random models into a run's folder; return the recipe without its budget, and the inputs of the stages."""
    rng = np.random.default_rng([seed, 15])
    features = tuple(Feature(name=text(rng, 9) + str(n), width=int(rng.integers(2, 30))) for n in range(2))
    schema = Schema(features=features, classes=int(rng.integers(3, 40)))
    manifest = Manifest(
        schema=schema,
        shards=(),
        offsets=np.arange(VIDEOS),
        numbers=np.arange(VIDEOS, dtype=np.int32),
        crcs=np.zeros(VIDEOS, np.uint32),
        frames=np.ones(VIDEOS, np.int32),
        id_hashes=np.arange(VIDEOS, dtype=np.uint64),
        starts=np.zeros(VIDEOS, np.int32),
        class_counts=np.full(schema.classes, VIDEOS),
        labelled=VIDEOS,
    )
    encodings = rng.permutation(ENCODINGS)[: int(rng.integers(1, 4))].tolist()
    recipe = Recipe.model_validate(
        {
            "name": plain_text(rng, 200),
            "seed": seed,
            "budget_mb": 1,
            "data": {
                "schema": schema.model_dump(),
                "train": [text(rng, 50) + "x" for _ in range(int(rng.integers(1, 5)))],
                "test": ["t"],
                "holdout": {"fraction": 0.3},
            },
            "quantization": {"encodings": "auto" if rng.random() < 0.2 else encodings},
            "ensemble": {"trials": 5},
            "models": {plain_text(rng, 60) + str(n): {"family": "mean"} for n in range(int(rng.integers(1, 5)))},
        }
    )
    names = tuple(text(rng, 60) for _ in range(schema.classes)) if rng.random() < 0.7 else None
    stages = [f"{kind}.{name}" for name in recipe.models for kind in ("train", "quantize", "predict")]
    inputs = {name: folder / f"{number}" for number, name in enumerate(["data.train", "ensemble", *stages])}
    job = Job(folder / "pack", inputs, Progress())
    labels = torch.from_numpy(rng.random((round(0.3 * VIDEOS), schema.classes)) < 0.3)
    labels[:, 0] |= ~labels.any(1)
    manifest.save(inputs["data.train"] / MANIFEST)
    for name in recipe.models:
        Ready(recipe, name).prepare(job, rng, labels)
    return recipe, Beside(names, {}), job, rng


def outcome(recipe, beside, job):
    """Run the stages under a budget; return the file's size, or None if no member fits."""
    members = [Ready(recipe, name) for name in recipe.models]
    try:
        ensemble.select_ensemble(recipe, members, [], room(recipe, beside), replace(job, folder=job.inputs["ensemble"]))
    except BudgetError as error:
        assert "no member fits" in str(error)
        return None
    ensemble.pack(recipe, members, beside, job)  # the selected members always fit
    assert len(load_artifact(job.folder / MODEL).members) <= len(members)
    return (job.folder / MODEL).stat().st_size


def test_no_file_is_over_its_budget_and_none_differs_from_its_members(tmp_path, everything_is_large, promise):
    differences = [
        parity(tmp_path / "float.reeltag", models, seed)
        for seed in range(promise.amount(1, 20))
        for models in ensembles()
    ]
    assert max(differences) <= 1e-6
    written, refused, fullest = 0, 0, 0.0
    for seed in range(promise.amount(5, 250)):
        (tmp_path / str(seed)).mkdir()
        recipe, beside, job, rng = problem(tmp_path / str(seed), seed)
        sizes = [score["bytes"] for name in recipe.models for score in Ready(recipe, name).scores(job).values()]
        overhead = recipe.budget - room(recipe, beside)
        for number in range(4):
            budget = overhead + int(rng.integers(0, int(1.1 * sum(sizes) / len(recipe.quantization.measured))))
            tried = recipe.model_copy(update={"budget_mb": budget / 1e6})
            size = outcome(tried, beside, replace(job, folder=tmp_path / str(seed) / f"pack-{number}"))
            if size is None:
                refused += 1
                assert not (tmp_path / str(seed) / f"pack-{number}").exists()
                if recipe.quantization.encodings != "auto":
                    offered = recipe.quantization.candidates
                    fits = [
                        Ready(recipe, name).scores(job)[each]["bytes"] for name in recipe.models for each in offered
                    ]
                    assert min(fits) + ensemble.MEMBER_ROOM > budget - overhead
            else:
                written += 1
                assert size <= tried.budget
                fullest = max(fullest, size / tried.budget)
    promise.found(
        15,
        f"{len(differences)} float ensembles of all families and forms: within {max(differences):.1e} of their members "
        f"in float64; {written + refused:,} random budgets: {written:,} files within them, the fullest at "
        f"{fullest:.1%}, and {refused:,} refused because no member fits",
    )


@pytest.mark.parametrize("missing", [1, 1000])
def test_a_file_that_would_be_too_large_is_refused_and_nothing_is_left(tmp_path, missing):
    tagger = small_tagger("netvlad", {"clusters": 4})
    artifact = Artifact(SCHEMA, None, (Member("m", tagger.config, 1.0, tagger.state_dict()),), {})
    size = save_artifact(tmp_path / "fits.reeltag", artifact)
    with pytest.raises(BudgetError, match=f"{missing:,} bytes over the budget"):
        save_artifact(tmp_path / "over.reeltag", artifact, size - missing)
    assert [path.name for path in tmp_path.iterdir()] == ["fits.reeltag"]
