"""The training loop: the authors' three steps and exact resume."""

import math

import numpy as np
import pytest
import torch

from conftest import SMALL_RECIPE, golden
from peer_arrays import peer_state
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError
from reeltag.data.loader import Batch, sequential_batches
from reeltag.data.shards import Shards
from reeltag.models.families import parse_config
from reeltag.models.layers import dequantize
from reeltag.models.tagger import Tagger, build_tagger
from reeltag.training import checkpoint
from reeltag.training.replica import Replica, clip_gradients, mix_videos
from reeltag.training.schedule import AveragingSettings, TrainingSettings, averaging_phase, training_phase
from reeltag.training.trainer import Distillation, Trainer, TrainingData
from reeltag.training.weight_averaging import averaged_tensors
from runs import KillAfter, KilledError

SETTINGS = TrainingSettings(batch_size=10, epochs=2.5, frames=8, learning_rate=1e-3, device="cpu")
CONFIG = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "dropout": 0.3, "bn_decay": 0.9})


def train(shards, path, *, config=CONFIG, settings=SETTINGS, progress=None, phase=None, start=None, seconds=1e9):
    tagger = build_tagger(config, shards.manifest.schema.widths, shards.manifest.schema.classes, 3)
    indices = np.arange(len(shards))
    phase = phase or training_phase(settings, len(indices))
    data = TrainingData(shards, indices)
    trainer = Trainer(tagger, data, settings, seed=3, progress=progress, checkpoint_seconds=seconds)
    return trainer.fit(phase, path, start=start)


@pytest.fixture(scope="module")
def shards(tiny_manifests):
    return Shards(tiny_manifests["train"])


def test_three_steps_are_the_authors():
    arrays = golden("train_steps_netvlad")
    head = {"prob_gating": True, "l2": 1e-3}
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 16, "head": head})
    settings = TrainingSettings(
        batch_size=6, learning_rate=0.01, learning_rate_decay_examples=12, frames="all", device="cpu"
    )
    tagger = Tagger(config, (1024, 128), 10).train()
    tagger.load_state_dict(peer_state(arrays, "w0:"))
    batch = Batch(tuple("abcdef"), torch.from_numpy(arrays["x_uint8"]), torch.full((6,), 8),
                  torch.from_numpy(arrays["labels"]))  # fmt: skip
    replica, learning_rate = Replica(tagger, settings), training_phase(settings, 6).learning_rate
    for step in range(3):
        replica.set_learning_rate(learning_rate(step), step)
        loss = replica.train_step(batch, seed=0)
        expected = float(arrays["loss"][step]) + float(arrays["reg_loss"][step])
        assert loss == pytest.approx(expected, rel=1e-4)
        ours = tagger.state_dict()
        for name, tensor in peer_state(arrays, f"w{step + 1}:").items():
            np.testing.assert_allclose(ours[name], tensor, atol=2e-3, err_msg=f"{name} after step {step}")
        rows = arrays[f"w{step + 1}_rows:tower.hidden1_weights"]
        np.testing.assert_allclose(ours["hidden.weight"][::97], rows, atol=2e-3)


@pytest.mark.parametrize(("family", "drawn"), [("netvlad", True), ("rnn", False)])
def test_frames_are_drawn_but_for_a_family_that_needs_their_order(family, drawn):
    sizes = {"clusters": 4, "hidden": 8} if family == "netvlad" else {"cells": 8}
    batch = Batch(("a", "b"), torch.randint(0, 256, (2, 30, 16), dtype=torch.uint8), torch.tensor([30, 9]),
                  torch.rand(2, 5) < 0.5)  # fmt: skip
    losses = []
    for frames in (3, "all"):
        tagger = build_tagger(parse_config({"family": family, **sizes}), (16,), 5, 0)
        replica = Replica(tagger, TrainingSettings(frames=frames, device="cpu"))
        losses.append(replica.train_step(batch, seed=0))
    assert (losses[0] != losses[1]) == drawn


def test_a_mixed_pair_is_a_weighted_mean_of_two_videos_and_of_their_targets():
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 256, (6, 4, 3), dtype=torch.uint8, generator=generator)
    batch = Batch(tuple("abcdef"), codes, torch.tensor([4, 4, 2, 3, 4, 1]), None)
    targets = torch.eye(6)
    values = dequantize(codes) * (torch.arange(4) < batch.lengths[:, None])[..., None]
    shares = set()
    for seed in range(20):
        mixed, mixed_targets = mix_videos(batch, targets, 0.5, seed)
        # the targets tell what was mixed with what, and by how much
        torch.testing.assert_close(mixed_targets.sum(1), torch.ones(6))
        torch.testing.assert_close(mixed.frames, torch.einsum("ij,jtd->itd", mixed_targets, values), atol=1e-5, rtol=0)
        for length, shares_of in zip(mixed.lengths, mixed_targets, strict=True):
            assert length == batch.lengths[shares_of > 0].max()
        shares.add(round(mixed_targets.diagonal().min().item(), 4))
        assert mixed_targets.diagonal().min() >= 0.5
    assert len(shares) > 10


def test_mixing_is_a_function_of_the_step_and_changes_the_loss(shards, tmp_path):
    states = [
        train(shards, tmp_path / name, settings=SETTINGS.model_copy(update={"mixup": alpha}))
        for name, alpha in (("a", 0.5), ("b", 0.5), ("c", 0.0))
    ]
    name = "hidden.weight"
    assert torch.equal(states[0].model[name], states[1].model[name])
    assert not torch.equal(states[0].model[name], states[2].model[name])


def test_a_student_without_labels_in_its_loss_learns_what_its_teacher_says(shards, tmp_path):
    """With λ = 0 it follows the teacher, who says the opposite of the labels, and with λ = 1 the labels."""
    said = torch.linspace(0.9, 0.1, shards.manifest.schema.classes)
    settings = SETTINGS.model_copy(update={"epochs": 60, "learning_rate": 2e-2})
    found = {}
    for share in (0.0, 1.0):
        distillation = Distillation(lambda indices: said.expand(len(indices), -1), share)
        tagger = build_tagger(CONFIG, shards.manifest.schema.widths, shards.manifest.schema.classes, 3)
        indices = np.arange(len(shards))
        data = TrainingData(shards, indices, distillation)
        Trainer(tagger, data, settings, seed=3).fit(training_phase(settings, len(indices)), tmp_path / str(share))
        (batch,) = sequential_batches(shards, np.arange(8), batch_size=8)
        with torch.no_grad():
            found[share] = tagger.eval()(batch.frames, batch.lengths)
    assert (found[0.0] - said).abs().mean() < 0.1 < (found[1.0] - said).abs().mean()


def test_training_stopped_after_any_step_ends_with_the_same_bytes(shards, tmp_path):
    train(shards, tmp_path / "whole")
    steps = len(training_phase(SETTINGS, len(shards)).steps)
    for stop in range(steps + 1):
        path = tmp_path / f"stopped-{stop}"
        if stop < steps:
            with pytest.raises(KilledError):
                train(shards, path, progress=KillAfter(stop), seconds=0)
        train(shards, path, seconds=0)
        assert path.read_bytes() == (tmp_path / "whole").read_bytes(), f"stopped after {stop} steps"


@pytest.mark.parametrize(
    "table",
    [
        {"family": "rnn", "cell": "lstm", "cells": 8, "shuffle": True},
        {"family": "rnn", "cell": "gru", "cells": 16, "paths": "dual", "shuffle": True},
        {"family": "nextvlad", "clusters": 4, "groups": 2, "hidden": 8},
    ],
)
def test_shuffling_and_dropout_of_the_pooled_vector_are_resumed_too(shards, tmp_path, table):
    config = parse_config({**table, "dropout": 0.3, "bn_decay": 0.9})
    train(shards, tmp_path / "whole", config=config)
    with pytest.raises(KilledError):
        train(shards, tmp_path / "stopped", config=config, progress=KillAfter(3), seconds=0)
    train(shards, tmp_path / "stopped", config=config)
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "whole").read_bytes()


def test_averaging_stopped_half_way_ends_with_the_same_bytes(shards, tmp_path):
    start = train(shards, tmp_path / "first")
    phase = averaging_phase(SETTINGS, AveragingSettings(epochs=1, time_constant=5), len(shards))
    whole = train(shards, tmp_path / "whole", phase=phase, start=start)
    with pytest.raises(KilledError):
        train(shards, tmp_path / "stopped", phase=phase, start=start, progress=KillAfter(1), seconds=0)
    train(shards, tmp_path / "stopped", phase=phase, start=start)
    assert (tmp_path / "stopped").read_bytes() == (tmp_path / "whole").read_bytes()
    moved = [name for name, w in whole.average.items() if not torch.equal(w, start.model[name])]
    assert set(moved) == set(whole.average), "batch-norm statistics are averaged too"


def test_loader_workers_do_not_change_the_result(shards, tmp_path):
    train(shards, tmp_path / "here")
    train(shards, tmp_path / "workers", settings=SETTINGS.model_copy(update={"workers": 2}))
    assert (tmp_path / "workers").read_bytes() == (tmp_path / "here").read_bytes()


def test_training_leaves_the_global_generator_alone(shards, tmp_path):
    before = torch.random.get_rng_state()
    train(shards, tmp_path / "state")
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_checkpoint_of_another_model_is_refused(shards, tmp_path):
    state = train(shards, tmp_path / "state")
    other = build_tagger(parse_config({"family": "netvlad", "clusters": 2, "hidden": 8}), (12, 4), 9, 0)
    with pytest.raises(ArtifactError, match="another model"):
        checkpoint.restore(state, other, torch.optim.Adam(other.parameters()))


def test_staircase_drops_at_each_stair():
    settings = TrainingSettings(
        batch_size=100, epochs=10, learning_rate=1.0, learning_rate_decay=0.8, learning_rate_decay_examples=1000
    )
    rate = training_phase(settings, 1000).learning_rate
    assert [rate(step) for step in (0, 9, 10, 19, 20)] == pytest.approx([1, 1, 0.8, 0.8, 0.64])


def test_cosine_warms_up_and_ends_near_zero():
    settings = TrainingSettings(batch_size=10, epochs=10, learning_rate=2.0, schedule="cosine", warmup_ratio=0.1)
    phase = training_phase(settings, 100)
    rates = [phase.learning_rate(step) for step in phase.steps]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_averaging_goes_on_where_training_ended_with_a_fifth_of_the_rate():
    settings = TrainingSettings(
        batch_size=100, epochs=2, learning_rate=1.0, learning_rate_decay=0.5, learning_rate_decay_examples=1000
    )
    phase = averaging_phase(settings, AveragingSettings(epochs=1), 1000)
    assert phase.steps == range(20, 30)
    assert phase.learning_rate(20) == phase.learning_rate(29) == pytest.approx(0.25 / 5)


@pytest.mark.parametrize("clip", ["tensor", "global", "none"])
def test_clipping(clip):
    model = torch.nn.Linear(3, 2)
    weight, bias = torch.full((2, 3), 2.0), torch.tensor([0.3, 0.4])
    model.weight.grad, model.bias.grad = weight.clone(), bias.clone()
    clip_gradients(model, clip, 1.0)
    expected = {
        "tensor": (weight / weight.norm(), bias),  # the bias is shorter than 1
        "global": tuple(g / math.hypot(weight.norm(), bias.norm()) for g in (weight, bias)),
        "none": (weight, bias),
    }[clip]
    torch.testing.assert_close(model.weight.grad, expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(model.bias.grad, expected[1], rtol=1e-5, atol=0)


def test_counters_are_not_averaged():
    tagger = build_tagger(CONFIG, (12, 4), 9, 0)
    names = set(averaged_tensors(tagger))
    assert "input_norm.norm.running_mean" in names
    assert not any("num_batches" in name for name in names)


@pytest.mark.parametrize(("decay", "told"), [("0.999", True), ("0.5", False)])
def test_a_training_too_short_for_its_batch_norm_says_so(tmp_path, capsys, decay, told):
    (tmp_path / "r.toml").write_text(SMALL_RECIPE)
    given = ["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--set", f"models.a.bn_decay={decay}"]
    assert main(given) == 0
    # 54 videos in batches of 8 are 7 steps: 0.999⁷ = 0.993
    remark = "after its 7 steps batch norm's statistics still keep 99% of their first values; "
    assert (remark in capsys.readouterr().err) == told


def test_mixed_precision_reads_float_frames_unrounded():
    """Autocast rounds what its products need; a cast of the input would round what is normalised in float32 too."""
    tagger, seen = build_tagger(CONFIG, (16,), 5, 0), []
    replica = Replica(tagger, TrainingSettings(frames="all", device="cpu", precision="bf16-mixed"))
    tagger.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    frames = torch.randn(2, 30, 16, generator=torch.Generator().manual_seed(0))
    replica.train_step(Batch(("a", "b"), frames, torch.tensor([30, 9]), torch.eye(2, 5, dtype=torch.bool)), seed=0)
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0], frames)
