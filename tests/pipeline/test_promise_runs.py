"""A run writes the same bytes after any kill, in any folder, and with any number of loaders."""

import random
import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from processgroup import all_end
from reeltag.data.shards import Shards
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.recipe.load import load_recipe
from reeltag.training.schedule import TrainingSettings, training_phase
from reeltag.training.trainer import Trainer, TrainingData
from whole_runs import RUN, commands, contents, folder

__all__ = ["commands", "folder"]


@pytest.fixture(scope="module")
def figures():
    """Results of the tests, which the last test prints."""
    return {}


def all_but_recipe(out):
    """Return its contents, without the number of loaders."""
    return {path: digest for path, digest in contents(out).items() if path != "recipe.json"}


def kind(stage):
    """Return the kind of a stage; stages of the second level and of students are kinds of their own."""
    what, _, name = stage.partition(".")
    if what == "targets" and name.endswith("students"):
        return "targets of students"
    taught = what in ("train", "average") and (name == "second" or "student" in name)
    return f"{what} of a student" if taught else what


@pytest.fixture(scope="module")
def counts(commands, folder):
    """Number of moments in each stage of a run that is not killed."""
    found = commands.run(*RUN, "counted", within="counted", folder=str(folder))
    assert contents(folder / "counted") == contents(folder / "whole")
    return found["counts"]


def kill_in_turn(commands, folder, name, moments, **how):
    """Kill a run at one moment after another, each time resuming it, and let it finish.

    Returns:
        How often it was killed in each kind of stage.
    """
    killed = Counter()
    for stage, moment in moments:
        if stage == "publish":  # existing files are not written again
            (folder / name / "model.reeltag").unlink(missing_ok=True)
            shutil.rmtree(folder / name / "report", ignore_errors=True)
        found = commands.run(*RUN, name, within=name, folder=str(folder), stage=stage, moment=moment, **how)
        if found["code"]:
            killed[kind(found["stage"])] += 1
    assert commands.run(*RUN, name, folder=str(folder))["code"] == 0
    assert contents(folder / name) == contents(folder / "whole")
    return killed


@pytest.mark.slow
def test_a_run_killed_in_every_stage(promise, figures, commands, folder, counts):
    """Kill at a few moments in the fast suite, and in the full test at every moment; at some of them twice."""
    moments = [(stage, number) for stage, count in counts.items() for number in range(count)]
    moments = moments[:: len(moments) // promise.amount(6, len(moments))]
    twice = [moment for moment in moments for _ in range(2 if moment[1] % 10 == 0 else 1)]
    killed = kill_in_turn(commands, folder, "everywhere", twice)
    assert sum(killed.values()) > 0.9 * len(twice)
    if promise.in_full:
        assert set(killed) == set(map(kind, counts))
        assert all(number >= 10 for name, number in killed.items() if name != "begin"), killed
    figures["run"] = (
        f"a run was killed {sum(killed.values()):,} times, at {len(moments):,} moments of {len(counts) - 2} stages"
    )


@pytest.mark.slow
def test_a_training_killed_at_every_step(promise, figures, commands, folder, counts):
    """Resume each time from the checkpoint of the step before."""
    rng = random.Random(0)
    stages = [stage for stage in counts if stage.partition(".")[0] in ("train", "average", "fold")]
    moments = [
        (stage, rng.randrange(25)) for stage in stages[: promise.amount(1, 99)] for _ in range(promise.amount(3, 10))
    ]
    killed = kill_in_turn(commands, folder, "on-its-way", moments, every_step=True)
    figures["steps"] = f"{sum(killed.values()):,} times between the steps of its trainings"
    assert killed.keys() >= {kind(stage) for stage, _ in moments}


@pytest.mark.slow
def test_a_run_with_loaders_killed_from_outside_at_any_time(promise, figures, commands, folder):
    """Kill the process alone, or with its children; no process survives."""
    rng, kills = random.Random(1), promise.amount(4, 60)
    command, groups, number = ["--set", "training.workers=2"], [], 0
    while len(groups) < kills:
        how = {"seconds": rng.uniform(0.1, 2.0), "group": rng.random() < 0.5, "folder": str(folder)}
        found = commands.run(*RUN, f"outside-{number}", *command, **how)
        if found["code"]:
            groups.append(found["process"])
        else:
            number += 1
    for each in range(number + 1):
        assert commands.run(*RUN, f"outside-{each}", *command, folder=str(folder))["code"] == 0
        assert all_but_recipe(folder / f"outside-{each}") == all_but_recipe(folder / "whole")
    assert all(map(all_end, groups))
    figures["outside"] = f"{kills} times from outside with loaders"


ENDINGS = ["csv", "jsonl", *(["parquet"] if find_spec("pyarrow") else [])]


def tag(commands, folder, out, *options, **how):
    """Return the command that tags all shards of the run into a file."""
    command = ["predict", "whole/model.reeltag", "whole/stages/synthetic-*/*.tfrecord", "--out", out, *options]
    return commands.run(*command, within=out.parent, folder=str(folder), **how)


def ends_whole(commands, folder, out, *options):
    """Check that after a kill the file exists or the same command writes it; return True if it existed."""
    if not (there := (folder / out).exists()):
        assert tag(commands, folder, out, *options)["code"] == 0
        assert [path.name for path in (folder / out).parent.iterdir()] == [out.name]
    assert (folder / out).read_bytes() == (folder / f"tags/whole{out.suffix}").read_bytes()
    return there


@pytest.fixture(scope="module")
def tags(commands, folder):
    """Number of moments of tagging, by the suffix of its file."""
    (folder / "tags").mkdir()
    endings = {ending: tag(commands, folder, Path(f"tags/whole.{ending}")) for ending in ENDINGS}
    return {ending: found["counts"]["begin"] for ending, found in endings.items()}


def test_tagging_killed_at_every_moment(promise, figures, commands, folder, tags):
    kills, there = 0, 0
    for ending, count in list(tags.items())[: promise.amount(1, 9)]:
        for moment in range(0, count, -(-count // promise.amount(5, count))):
            out = Path(f"{ending}-{moment}/p.{ending}")
            (folder / out).parent.mkdir()
            found = tag(commands, folder, out, stage="begin", moment=moment)
            kills += found["code"] != 0
            there += ends_whole(commands, folder, out)
    assert kills >= promise.amount(5, 100)
    figures["tagging"] = (
        f"`predict --out` {kills} times, at every moment ({there} of them after the file was whole, where the same "
        "command says that it exists)"
    )


@pytest.mark.slow
def test_tagging_by_workers_killed_from_outside(promise, figures, commands, folder, tags):
    rng, groups = random.Random(2), []
    for number in range(promise.amount(2, 12)):
        out = Path(f"workers-{number}/p.csv")
        (folder / out).parent.mkdir()
        how = {"seconds": rng.uniform(0.5, 6), "group": number % 2 == 0}
        found = tag(commands, folder, out, "--workers", "2", **how)
        groups.append(found["process"])
        ends_whole(commands, folder, out, "--workers", "2")
    assert all(map(all_end, groups))
    if len(figures) == 4:  # all of them ran
        told = "; ".join(figures.values())
        promise.found(1, f"{told}; and {len(groups)} times with workers: the same bytes, no process left")


# --- without a kill -------------------------------------------------------------------------------


def model_of(commands, folder, place):
    """Return the model file of the recipe, run on the first run's shards copied to a folder."""
    schema = load_recipe(folder / "recipe.toml").data.record_schema
    features = ", ".join(f"{{ name = '{f.name}', width = {f.width} }}" for f in schema.features)
    data = f"""[data.schema]
features = [{features}]
classes = {schema.classes}
max_frames = {schema.max_frames}
"""
    text = (folder / "recipe.toml").read_text()
    text = text[: text.index("[data.synthetic]")] + data + text[text.index("[training]") :]
    text = text.replace("[data]\n", '[data]\ntrain = ["train-*"]\ntest = ["test-*"]\n')
    (folder / f"{place}.toml").write_text(text)
    (shards,) = (folder / "whole" / "stages").glob("synthetic-*")
    shutil.copytree(shards, folder / place, ignore=shutil.ignore_patterns("stage.json"))
    command = ["run", f"{place}.toml", "--out", f"from-{place}", "--set", f"data.root={place}"]
    assert commands.run(*command, folder=str(folder))["code"] == 0
    return (folder / f"from-{place}" / "model.reeltag").read_bytes()


def threads_apart(shards, folder):
    """Return the largest difference of a weight between trainings with 1 and 2 threads, which share large products."""
    config = parse_config({"family": "netvlad", "clusters": 32, "hidden": 512, "bn_decay": 0.9})
    settings = TrainingSettings(batch_size=24, epochs=20, frames=9, learning_rate=1e-3, device="cpu")
    before, states = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        schema, videos = shards.manifest.schema, np.arange(len(shards))
        tagger = build_tagger(config, schema.widths, schema.classes, 0)
        phase, path = training_phase(settings, len(videos)), folder / str(threads)
        states.append(Trainer(tagger, TrainingData(shards, videos), settings, seed=0).fit(phase, path).model)
    torch.set_num_threads(before)
    one, two = states
    return max(float((one[name] - two[name]).abs().max()) for name in one if one[name].is_floating_point())


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_bytes(promise, commands, folder, tmp_path, tiny_manifests):
    """Repeat with other numbers of loaders, another folder, and other locations of the shards."""
    for number in range(promise.amount(0, 3)):  # in the fast suite, `counts` is the second run
        assert commands.run(*RUN, f"again-{number}", folder=str(folder))["code"] == 0
        assert contents(folder / f"again-{number}") == contents(folder / "whole")
    for loaders in (2, 4, 0)[: promise.amount(1, 3)]:
        options = ["--set", f"training.workers={loaders}"]
        assert commands.run(*RUN, f"loaders-{loaders}", *options, folder=str(folder))["code"] == 0
        assert all_but_recipe(folder / f"loaders-{loaders}") == all_but_recipe(folder / "whole")
    if promise.in_full:
        shutil.copy(folder / "other.reeltag", tmp_path)
        assert commands.run("run", folder / "recipe.toml", "--out", tmp_path / "out", folder=str(tmp_path))["code"] == 0
        assert contents(tmp_path / "out") == contents(folder / "whole")
        assert model_of(commands, folder, "here") == model_of(commands, folder, "there")
        apart = threads_apart(Shards(tiny_manifests["train"]), tmp_path)
        promise.found(
            14,
            "a recipe with every kind of stage, run 4 times, with 0, 2 and 4 loaders, from another folder, and with "
            "its shards in two places: every file the same, on one machine with one number of threads (with 2 threads "
            f"for 1 a small training's weights differ by up to {apart:.1g}); the spread on a GPU has not been measured",
        )
