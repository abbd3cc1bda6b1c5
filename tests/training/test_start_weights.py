"""Weights of a finished model become those that a training starts from, whichever classes both have."""

import numpy as np
import pytest
import torch

from reeltag.data.loader import Batch
from reeltag.data.shards import Shards
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger, class_blocks
from reeltag.training.replica import Replica
from reeltag.training.schedule import StartSettings, TrainingSettings, training_phase
from reeltag.training.start import take_over
from reeltag.training.trainer import Trainer, TrainingData
from runs import KillAfter, KilledError
from small_models import SCHEMA, WIDTHS, stirred, videos

HEADS = {
    "logistic": {"kind": "logistic"},
    "moe": {"experts": 3},
    "low rank": {"gate_rank": 2},
    "gated": {"prob_gating": True},
    "gated without the diagonal": {"prob_gating": True, "prob_gating_diagonal": False},
    "gated by the hidden vector": {"prob_gating": True, "prob_gating_input": "hidden"},
}
heads = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def config_of(head):
    return parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "head": head}, WIDTHS)


def started(head, weights, sources, seed=5):
    tagger = build_tagger(config_of(head), WIDTHS, len(sources), seed)
    take_over(tagger, WIDTHS, weights, sources)
    return tagger.eval()


@heads
def test_classes_in_another_order_keep_their_probabilities(head):
    frames, lengths, _ = videos()
    old = stirred(build_tagger(config_of(head), WIDTHS, SCHEMA.classes, 1))
    order = np.random.default_rng(0).permutation(SCHEMA.classes).tolist()
    moved = started(head, old.state_dict(), order)
    with torch.no_grad():
        torch.testing.assert_close(moved(frames, lengths), old(frames, lengths)[:, order])


@heads
def test_a_new_class_has_its_initial_weights_and_an_old_one_those_of_the_model(head):
    old = stirred(build_tagger(config_of(head), WIDTHS, 3, 1)).state_dict()
    sources, dropped = [2, None, 0], 1
    fresh = build_tagger(config_of(head), WIDTHS, 3, 5).state_dict()
    mixed = started(head, old, sources).state_dict()
    blocks = class_blocks(config_of(head), WIDTHS)
    for name, tensor in mixed.items():
        if not tensor.is_floating_point():
            continue
        expected = fresh[name].clone()
        for index in np.ndindex(*tensor.shape):  # one number after the other, as the docstring says
            place = list(index)
            for axis, block in enumerate(blocks[name]):
                if block:
                    source = sources[index[axis] // block]
                    place[axis] = None if source is None else source * block + index[axis] % block
            if None not in place:
                expected[index] = old[name][tuple(place)]
        assert torch.equal(tensor, expected), name
    assert dropped not in sources
    assert any(any(each) for each in blocks.values())


def test_dimensions_over_classes_are_found_by_their_size():
    blocks = class_blocks(config_of(HEADS["gated"]), WIDTHS)
    over = {name: each for name, each in blocks.items() if any(each)}
    norm = {f"head.prob_gate.norm.{name}": (1,) for name in ("weight", "bias", "running_mean", "running_var")}
    assert over == {
        "head.gates": (0, 3),
        "head.experts": (0, 2),
        "head.bias": (2,),
        "head.prob_gate.weight": (1, 1),
        **norm,
    }


def step(**start):
    settings = TrainingSettings(batch_size=6, frames=5, device="cpu", start=StartSettings(file="f", **start))
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8, "head": HEADS["gated"]}, WIDTHS)
    replica = Replica(build_tagger(config, WIDTHS, SCHEMA.classes, 3), settings)
    before = {name: tensor.clone() for name, tensor in replica.tagger.state_dict().items()}
    frames, lengths, labels = videos()
    batch = Batch(tuple(map(str, range(len(frames)))), frames, lengths, labels)
    replica.set_learning_rate(0.01, 0)
    replica.train_step(batch, 7)
    after = replica.tagger.state_dict()
    return {name: (after[name] - before[name]).abs().max().item() for name in before}


def test_frozen_parts_keep_weights_and_statistics():
    moved = step(frozen=("pooling", "gate"))
    for name, change in moved.items():
        if name.endswith("num_batches_tracked"):  # counts nothing that is computed with
            continue
        assert (change == 0) == name.startswith(("pooling.", "gate.")), name


def test_the_learning_rate_before_the_head_is_divided():
    whole, divided = step(), step(learning_rate_divisor=10)
    for name in ("head.experts", "head.bias", "hidden.weight", "gate.weight", "input_norm.norm.weight"):
        # Adam's first step is the learning rate in every direction.
        assert whole[name] == pytest.approx(0.01, rel=1e-3)
        assert divided[name] == pytest.approx(0.01 if name.startswith("head.") else 0.001, rel=1e-3), name


def test_a_training_that_goes_on_is_resumed_with_the_same_bytes(tiny_manifests, tmp_path):
    shards = Shards(tiny_manifests["train"])
    start = StartSettings(file="f", frozen=("pooling",), learning_rate_divisor=3)
    settings = TrainingSettings(batch_size=10, epochs=2, frames=8, learning_rate=1e-3, device="cpu", start=start)
    schema = shards.manifest.schema
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8}, schema.widths)

    def train(name, progress=None):
        tagger = build_tagger(config, schema.widths, schema.classes, 3)
        data = TrainingData(shards, np.arange(len(shards)))
        trainer = Trainer(tagger, data, settings, seed=3, progress=progress, checkpoint_seconds=0)
        trainer.fit(training_phase(settings, len(shards)), tmp_path / name)
        return (tmp_path / name).read_bytes()

    whole = train("whole")
    with pytest.raises(KilledError):
        train("stopped", KillAfter(3))
    assert train("stopped") == whole
