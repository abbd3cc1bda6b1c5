"""NaN or infinity stops a training at that step, with the batch's ids, and is never saved."""

import math
import random
import re
from itertools import product

import numpy as np
import pytest
import torch

import reeltag.training.trainer
from conftest import TINY_RUN, encode_unchecked, make_video
from reeltag.cli.main import main
from reeltag.core import tensorfile
from reeltag.core.errors import DataError, TrainingError
from reeltag.data.formats.example import encode
from reeltag.data.formats.tfrecord import write_shard
from reeltag.data.loader import training_batches
from reeltag.data.sampler import Shuffle
from reeltag.data.schema import Schema
from reeltag.data.shards import Shards, scan
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.training.replica import step_seed
from reeltag.training.schedule import AveragingSettings, TrainingSettings, averaging_phase, training_phase
from reeltag.training.trainer import Distillation, Trainer, TrainingData
from runs import KillAfter, KilledError

SEED = 3
SETTINGS = TrainingSettings(batch_size=10, epochs=1.5, frames=8, learning_rate=1e-3, device="cpu")
CONFIG = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "dropout": 0.3, "bn_decay": 0.9})


@pytest.fixture(autouse=True)
def every_step_is_kept(monkeypatch):
    monkeypatch.setattr(reeltag.training.trainer, "CHECKPOINT_SHARE", math.inf)


@pytest.fixture(scope="module")
def shards(tiny_manifests):
    return Shards(tiny_manifests["train"])


def train(
    shards,
    path,
    settings,
    phase,
    *,
    config=CONFIG,
    spoil=lambda tagger: None,
    progress=None,
    distillation=None,
    **given,
):
    tagger = build_tagger(config, shards.manifest.schema.widths, shards.manifest.schema.classes, SEED)
    spoil(tagger)
    data = TrainingData(shards, np.arange(len(shards)), distillation)
    trainer = Trainer(tagger, data, settings, seed=SEED, progress=progress, checkpoint_seconds=0)
    return trainer.fit(phase, path, **given)


def batch_of(shards, step, size=SETTINGS.batch_size):
    return next(
        training_batches(shards, np.arange(len(shards)), shuffle=Shuffle(SEED), batch_size=size, steps=range(step, 99))
    )


def stops(step, shards, words, *arguments, **given):
    """A training stops at a step, twice in the same words, which name all that they have to; returns these."""
    said = set()
    for _ in range(2):
        with pytest.raises(TrainingError) as caught:
            train(shards, *arguments, **given)
        said.add(str(caught.value))
    (message,) = said
    ids = ", ".join(batch_of(shards, step).ids)
    epoch = step * SETTINGS.batch_size // len(shards)
    assert re.fullmatch(
        rf"{words} at step {step} \(epoch {epoch}\), and that step is discarded; lower "
        rf"training.learning_rate, or check the videos of its batch: {re.escape(ids)}",
        message,
    )


def all_finite(path):
    tensors, _ = tensorfile.load_tensors(path)
    return all(torch.isfinite(tensor).all() for tensor in tensors.values())


# --- where such numbers come from -----------------------------------------------------------------


def test_a_teachers_targets(shards, tmp_path):
    def targets(indices):
        rows = torch.full((len(indices), shards.manifest.schema.classes), 0.5)
        rows[torch.from_numpy(indices == 7)] = math.nan
        return rows

    bad = next(step for step in range(9) if shards.read(7).id in batch_of(shards, step).ids)
    phase, distillation = training_phase(SETTINGS, len(shards)), Distillation(targets, 0.5)
    stops(bad, shards, "the loss is nan", tmp_path / "state", SETTINGS, phase, distillation=distillation)


def test_finite_values_whose_variance_is_not(shards, tmp_path):
    """Normalised by it they are zeros, so the loss does not tell."""
    phase, words = training_phase(SETTINGS, len(shards)), r"batch norm's gate.norm.running_var is inf"
    huge = {"spoil": lambda tagger: tagger.hidden.weight.data.mul_(1e25)}
    stops(0, shards, words, tmp_path / "state", SETTINGS, phase, **huge)


@pytest.mark.parametrize("rate", [1e30, 3e38])
@pytest.mark.parametrize("family", [{"family": "netvlad", "clusters": 4, "hidden": 8}, {"family": "mean"}])
def test_weights_that_explode(shards, tmp_path, rate, family):
    """At once, or at the next loss."""
    settings = SETTINGS.model_copy(update={"learning_rate": rate, "epochs": 30})
    arguments = (shards, tmp_path / "state", settings, training_phase(settings, len(shards)))
    with pytest.raises(TrainingError, match=r"(is (nan|inf)|is not finite) at step [01] "):
        train(*arguments, config=parse_config(family))
    assert not (tmp_path / "state").exists() or all_finite(tmp_path / "state")


def test_the_command_says_it_in_one_message_and_leaves_no_file(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(
        f'name = "r"\nbudget_mb = 1\n{TINY_RUN}[models.a]\nfamily = "netvlad"\nclusters = 4\nhidden = 8\n'
    )
    command = ["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--set", "training.learning_rate=1e30"]
    errors = set()
    for _ in range(2):
        assert main(command) == 2
        (error,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        errors.add(error)
    (error,) = errors
    assert re.match(
        r"error: .* is (nan|inf) at step \d+ \(epoch \d+\), .* lower training.learning_rate, .*: train-", error
    )
    assert not list((tmp_path / "out").rglob("*.reeltag"))
    assert all(all_finite(path) for path in (tmp_path / "out").rglob("checkpoint*"))


def test_features_that_are_not_finite_are_refused_when_they_are_read(tmp_path):
    schema = Schema(features=[{"name": "rgb", "width": 6}], classes=4, dtype="float32")
    for bad in (math.nan, math.inf):
        video = make_video(schema)
        video.features[0][1, 2] = bad
        write_shard(tmp_path / "a.tfrecord", [encode(make_video(schema), schema), encode_unchecked(video, schema)])
        with pytest.raises(DataError, match=r"a\.tfrecord, record 1, byte \d+: .*NaN or infinite"):
            scan([tmp_path / "a.tfrecord"], schema)


# --- every number, at every moment ----------------------------------------------------------------

WORDS = {
    "loss": "the loss is nan",
    "NaN gradient": "the gradient's norm is nan",
    "infinite gradient": "the gradient's norm is inf",
    "root": "the gradient's norm is nan",
    "statistic": r"batch norm's input_norm.norm.running_var is inf",
}


def spoiler(what, bad):
    """Makes a number of a model that is none at the step `bad`, which its generator's seed tells."""

    def is_now():
        return torch.initial_seed() == step_seed(SEED, bad)

    def spoil(tagger):
        def forward(module, arguments, output):
            if what == "loss" and is_now():
                return output * math.nan
            if what == "root" and is_now():  # of zero: its value is finite, its derivative is not
                return output + (tagger.hidden.weight * 0).sum().sqrt()
            if what == "statistic" and is_now():
                tagger.input_norm.norm.running_var[2] = math.inf
            return output

        def backward(gradient):
            if what.endswith(" gradient") and is_now():
                gradient = gradient.clone()
                gradient[3, 1] = math.nan if what.startswith("NaN") else math.inf
            return gradient

        tagger.register_forward_hook(forward)
        tagger.hidden.weight.register_hook(backward)

    return spoil


def test_a_number_that_is_none_stops_the_training_and_what_is_kept_is_the_step_before(promise, shards, tmp_path):
    moments = list(product(WORDS, ("tensor", "global", "none"), ("32-true", "bf16-mixed"), (1, 2), (0, 1, -1)))
    moments = random.Random(0).sample(moments, promise.amount(8, len(moments)))
    averaging = averaging_phase(SETTINGS, AveragingSettings(epochs=1, time_constant=5), len(shards))
    for number, (what, clip, precision, phase_number, place) in enumerate(moments):
        folder = tmp_path / str(number)
        settings = SETTINGS.model_copy(update={"clip": clip, "precision": precision})
        phase, start = training_phase(settings, len(shards)), None
        if phase_number == 2:
            phase, start = averaging, train(shards, folder / "start", settings, phase)
        bad = phase.steps[place]
        path, before = folder / "state", folder / "before"
        stops(bad, shards, WORDS[what], path, settings, phase, start=start, spoil=spoiler(what, bad))
        if bad > phase.steps.start:
            with pytest.raises(KilledError):
                train(shards, before, settings, phase, start=start, progress=KillAfter(bad - phase.steps.start))
            assert path.read_bytes() == before.read_bytes()
            assert all_finite(path)
        else:
            assert not path.exists()
        train(shards, folder / "whole", settings, phase, start=start)
        train(shards, path, settings, phase, start=start)  # what was wrong has been mended
        assert path.read_bytes() == (folder / "whole").read_bytes()
    promise.found(
        8,
        f"{len(moments)} trainings with a NaN or infinite loss, gradient or batch-norm statistic at the first, second "
        "or last step of either phase, with each clipping, in float32 and bf16: all stopped at that step, twice with "
        "the same words and ids; the checkpoint was that of the step before, to the byte, and went on from there",
    )
