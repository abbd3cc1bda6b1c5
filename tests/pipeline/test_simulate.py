"""Simulated schedules: hand-computed ones, brute force on small graphs, bounds that hold for every graph."""

import json
import re
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from reeltag.cli.main import main
from reeltag.core.errors import RecipeError
from reeltag.data.formats.tfrecord import ShardFile
from reeltag.pipeline.executor import Stage, Traffic
from reeltag.pipeline.plan import plan
from reeltag.pipeline.simulation.list_scheduling import Task, alone, critical_path, fair_shares, schedule, stage_tasks
from reeltag.pipeline.simulation.machines import Machines, load_machines
from reeltag.pipeline.simulation.scaling import scaling
from reeltag.recipe.load import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
DESCRIPTION = {
    "name": "x", "nodes": 2, "gpus": 4, "tflops": 10, "link_gb_s": 100, "network_gb_s": 10, "read_gb_s": 2,
    "write_gb_s": 1, "cpus": 8, "load_gb_s": 0.5, "price": 3,
}  # fmt: skip
MACHINES = Machines(**DESCRIPTION)


def stage(name, **estimates):
    return Stage(name=name, work=print, format=1, **estimates)


def random_tasks(rng, count, *, reading=False, devices=(1,)):
    """A graph in which each task waits for some of those before it."""
    tasks = []
    for number in range(count):
        inputs = tuple(f"t{other}" for other in range(number) if rng.random() < 0.3)
        seconds = float(rng.integers(1, 10))
        size = float(rng.integers(0, 30)) if reading else 0.0
        tasks.append(Task(f"t{number}", inputs, seconds, size, int(rng.choice(devices))))
    return tasks


def longest_path(tasks, seconds):
    """By trying every chain, from its last task backwards."""
    by_name = {task.name: task for task in tasks}

    def longest(name):
        return seconds[name] + max((longest(other) for other in by_name[name].inputs), default=0.0)

    return max(map(longest, by_name))


def fastest(tasks, devices):
    """The shortest of all schedules on equal devices: one of those that start tasks in some order as soon as they can.

    Tasks start one by one: each on the device that is free first, once its inputs are done.
    """
    best = float("inf")
    for order in permutations(tasks):
        ends, free = {}, [0.0] * devices
        for task in order:
            if not all(name in ends for name in task.inputs):
                break
            device = min(range(devices), key=free.__getitem__)
            free[device] = max([free[device], *(ends[name] for name in task.inputs)]) + task.seconds
            ends[task.name] = free[device]
        else:
            best = min(best, max(ends.values()))
    return best


def test_hand_computed_graphs():
    # a ─▶ b ─┐
    #  └─▶ c ─┴▶ d, and e that waits for nothing
    tasks = [
        Task("a", (), 2),
        Task("b", ("a",), 3),
        Task("c", ("a",), 1),
        Task("d", ("b", "c"), 2),
        Task("e", (), 4),
    ]
    assert schedule(tasks, [1]).seconds == 12
    # a first, as it has the longest way to the end; e fills the other device, and c waits for one of them.
    assert schedule(tasks, [2]).spans == {"a": (0, 2), "e": (0, 4), "b": (2, 5), "c": (4, 5), "d": (5, 7)}
    assert schedule(tasks, [1, 1]).seconds == schedule(tasks, [8]).seconds == 7
    assert critical_path(tasks, {task.name: task.seconds for task in tasks}) == ["a", "b", "d"]


def test_a_training_on_several_devices_waits_until_so_many_are_free_on_one_node():
    tasks = [Task("a", (), 5), Task("b", (), 1), Task("wide", ("b",), 2, devices=2), Task("c", ("b",), 1)]
    assert schedule(tasks, [2]).spans == {"a": (0, 5), "b": (0, 1), "c": (1, 2), "wide": (5, 7)}
    # Another node has two.
    assert schedule(tasks, [2, 2]).spans["wide"] == (1, 3)
    # One that no node has the devices for takes whole nodes: one of 3 devices, and the fourth beside the other task.
    assert schedule([Task("a", (), 5), Task("huge", (), 2, devices=4)], [3, 3]).spans["huge"] == (0, 2)
    assert schedule([Task("a", (), 5), Task("huge", (), 2, devices=6)], [3, 3]).spans["huge"] == (5, 7)


def test_stages_that_read_too_much_are_slowed_down():
    hungry = [Task(name, (), 10, 40) for name in "ab"]
    assert schedule(hungry, [2], 4).seconds == 20  # 4 bytes a second each, and 4 for both
    assert schedule(hungry, [1, 1], 4).seconds == 10
    assert schedule(hungry, [2], 4).peak == 4
    assert schedule(hungry, [2]).peak == 8
    # The modest one gets what it asks for: 1 of 4; the other 3 of its 4 until then, and all afterwards.
    found = schedule([Task("modest", (), 4, 4), Task("hungry", (), 10, 40)], [2], 4)
    assert found.spans == {"modest": (0, 4), "hungry": (0, 4 + (40 - 12) / 4)}


def test_shares_are_fair():
    assert fair_shares({0: 1.0, 1: 5.0, 2: 9.0}, 9.0) == {0: 1.0, 1: 4.0, 2: 4.0}
    assert fair_shares({0: 1.0, 1: 2.0}, 9.0) == {0: 1.0, 1: 2.0}


@pytest.mark.parametrize("seed", range(40))
def test_small_graphs_against_every_schedule(seed):
    rng = np.random.default_rng(seed)
    tasks, devices = random_tasks(rng, 6), int(rng.integers(2, 4))
    best, found = fastest(tasks, devices), schedule(tasks, [devices]).seconds
    assert best <= found <= (2 - 1 / devices) * best + 1e-9  # Graham


@pytest.mark.parametrize("seed", range(40))
def test_bounds_of_every_schedule(seed):
    rng = np.random.default_rng(seed)
    tasks, devices = random_tasks(rng, 30), int(rng.integers(1, 9))
    path = longest_path(tasks, {task.name: task.seconds for task in tasks})
    work = sum(task.seconds for task in tasks) / devices
    found = schedule(tasks, [devices])
    assert max(path, work) - 1e-9 <= found.seconds <= path + work + 1e-9
    for task in tasks:
        assert all(found.spans[name][1] <= found.spans[task.name][0] for name in task.inputs)
    for now, _ in found.spans.values():
        assert sum(begin <= now < end for begin, end in found.spans.values()) <= devices


@pytest.mark.parametrize("seed", range(40))
def test_bounds_where_stages_read_and_share_devices(seed):
    rng = np.random.default_rng(seed)
    shape = [4, 4, int(rng.integers(1, 5))]
    tasks, rate = random_tasks(rng, 30, reading=True, devices=(1, 1, 2, 5)), 3.0
    found = schedule(tasks, shape, rate)
    seconds = {task.name: alone(task, max(shape), rate) for task in tasks}
    lengths = {name: end - begin for name, (begin, end) in found.spans.items()}
    assert all(lengths[name] >= least - 1e-9 for name, least in seconds.items())
    assert found.peak <= rate + 1e-9
    assert found.seconds >= longest_path(tasks, seconds) - 1e-9
    assert found.seconds >= sum(task.bytes for task in tasks) / (3 * rate) - 1e-9
    for now, _ in found.spans.values():
        held = [task.devices for task in tasks if found.spans[task.name][0] <= now < found.spans[task.name][1]]
        assert sum(held) <= sum(shape)


@pytest.mark.parametrize("seed", range(10))
def test_one_gpu_takes_the_sum_of_all_stages(seed):
    tasks = random_tasks(np.random.default_rng(seed), 20, reading=True)
    total = sum(max(task.seconds, task.bytes / 3) for task in tasks)
    assert schedule(tasks, [1], 3).seconds == pytest.approx(total)


def test_a_stage_on_described_machines():
    alike = Machines(**DESCRIPTION | {"tflops": 20})
    traffic = Traffic(1000, 7e6, steps=100, weights=10**9)
    one, four, eight = (
        stage_tasks([stage("train.a", gpu_hours=2, processes=n, traffic=traffic)], alike, 300_000, 8)[0]
        for n in (1, 4, 8)
    )
    assert one.seconds == one.computing == 3600  # twice as fast as the estimate takes a GPU for
    assert one.bytes == 1000 * 300_000 + 7e6
    assert four.seconds == pytest.approx(900 + 100 * 2 * 3 / 4 * 4e9 / 100e9)
    assert eight.seconds == pytest.approx(450 + 100 * 2 * 7 / 8 * 4e9 / 10e9)  # over the network
    (reading,) = stage_tasks([stage("data.train", traffic=Traffic(1000))], alike, 300_000, 8)
    assert (reading.seconds, reading.devices) == (pytest.approx(3e8 / 0.5e9), 1)
    assert alike.data_rate == 2e9
    assert Machines(**DESCRIPTION | {"cpus": 2}).data_rate == 1e9
    assert alike.shape(7) == (4, 3)


def test_rows_double_and_say_what_limits_them():
    half = stage("train.a", gpu_hours=4, checkpoint_bytes=1000, traffic=Traffic(1, steps=1))
    rest = [stage(f"train.{n}", gpu_hours=1, traffic=Traffic(1, steps=1)) for n in range(4)]
    found = scaling([half, *rest], MACHINES, 1)
    assert [row.gpus for row in found.rows] == [1, 2, 4, 8]
    assert [row.nodes for row in found.rows] == [1, 1, 1, 2]
    assert [row.hours for row in found.rows] == pytest.approx([8, 4, 4, 4])
    assert [row.cost for row in found.rows] == pytest.approx([24, 12, 12, 24])
    assert [row.computing for row in found.rows] == pytest.approx([1, 1, 0.5, 0.25])
    assert (found.rows[0].limit, found.rows[-1].limit, found.enough) == ("GPUs", "critical path", 2)
    assert found.path == (("train.a", pytest.approx(4)),)
    assert found.checkpoints == pytest.approx(1000 * (1 + 4 * 3600 / 30))
    hungry = [stage(f"train.{n}", gpu_hours=1, traffic=Traffic(2 * 3600, steps=1)) for n in range(8)]
    assert {row.limit for row in scaling(hungry, MACHINES, 10**9).rows} == {"GPUs", "reading"}


def test_the_plan_says_what_stages_read():
    recipe = load_recipe(RECIPES / "yt8m-2018.toml")
    stages = {stage.name: stage for stage in plan(recipe, without_data=True)}
    videos = 5_000_000
    assert stages["data.train"].traffic.videos == stages["targets.rnn"].traffic.videos == videos
    student = stages["train.RNN1"].traffic
    assert (student.videos, student.steps) == (10 * videos, 10 * videos / 128)
    assert student.targets == 10 * videos * 100 * (2 + 2)  # float16 and class of each of the top 100
    assert stages["train.rnn-gru-2"].traffic.targets == 0
    assert student.weights == 54_026_578  # of the plan's line
    # Tagging takes a third of training; averaging is one epoch. Each of three teachers may be the largest model.
    assert stages["targets.rnn"].gpu_hours == pytest.approx(3 * stages["average.rnn-gru-mixture"].gpu_hours / 3)
    taught = [stages[f"average.dbof-{clusters}"].gpu_hours for clusters in (6144, 4096, 3684)]  # all three teach
    assert stages["targets.dbof"].gpu_hours == pytest.approx(sum(taught) / 3)


def described(tmp_path, **keys):
    path = tmp_path / "machines.toml"
    lines = {key: value for key, value in (DESCRIPTION | keys).items() if value is not None}
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in lines.items()))
    return path


def test_faults_of_a_description_come_in_one_message(tmp_path):
    path = described(tmp_path, nodes=0, tflops="many", price=None, read_gbs=3)
    with pytest.raises(RecipeError) as caught:
        load_machines(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: 4 faults")
    for fault in (
        "nodes: must be more than 0, not 0",
        "tflops: must be a number, not 'many'",
        "price: is missing",
        "read_gbs: unknown key; did you mean 'read_gb_s'?",
    ):
        assert fault in message


@pytest.mark.parametrize("path", sorted((RECIPES / "machines").glob("*.toml")), ids=lambda path: path.stem)
def test_the_descriptions_that_we_ship_are_sound_and_marked(path):
    assert load_machines(path).nodes * load_machines(path).gpus == 64
    assert "ASSUMPTION" in path.read_text()
    assert "assumed" in load_machines(path).name


def test_small_times_and_bytes_are_told_in_units_to_read(capsys, tmp_path, tiny_shards, tiny_schema):
    machines = str(described(tmp_path))
    assert main(["simulate", "quickstart", "--machines", machines]) == 0
    printed = capsys.readouterr().out
    assert "  seconds  computing" in printed
    assert re.search(r"^[\d.]+ GPU seconds of arithmetic$", printed, re.MULTILINE)
    assert "of videos read, 9,600 bytes each, as the longest possible" in printed
    recipe = tmp_path / "own.toml"
    features = ", ".join(f'{{ name = "{each.name}", width = {each.width} }}' for each in tiny_schema.features)
    recipe.write_text(
        f'name = "own"\nbudget_mb = 9\n[data]\nroot = "{tiny_shards}"\ntrain = ["train-*"]\ntest = ["test-*"]\n'
        f'[data.schema]\nfeatures = [{features}]\nclasses = 8\n[models.a]\nfamily = "netvlad"\n'
    )
    first = sorted(tiny_shards.glob("train-*"))[0]
    each = first.stat().st_size // len(ShardFile(first).offsets())
    assert main(["simulate", str(recipe), "--machines", machines]) == 0
    assert f"of videos read, {each:,} bytes each, as in the first shard" in capsys.readouterr().out
    plan_of = ["run", str(recipe), "--dry-run", "--out", str(tmp_path / "out")]
    assert main(plan_of) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train\.a .*, under a GPU minute$", printed, re.MULTILINE)
    assert "to do: under a GPU minute at 10 TFLOP/s" in printed
    assert main([*plan_of, "--set", f"data.root={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "GPU minute" not in printed
    assert "GPU hours are not estimated: there are no shards here" in printed
    assert main([*plan_of, "--set", f"data.root={tmp_path}", "--set", "data.videos=100_000_000"]) == 0
    assert re.search(r"train\.a .*, about [\d.]+ GPU (minutes|hours)$", capsys.readouterr().out, re.MULTILINE)


def test_the_command(capsys, tmp_path):
    machines = described(tmp_path, link_gb_s=1e-6)  # on which nobody should share a training
    arguments = ["simulate", str(RECIPES / "quickstart.toml"), "--machines", str(machines)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["gpus"] for row in found["rows"]] == [1, 2, 4, 8]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "quickstart on x" in text and "critical path" in text
    assert main([*arguments, "--set", "training.devices=4", "--json"]) == 0
    shared = json.loads(capsys.readouterr().out)
    assert shared["rows"][0] == found["rows"][0]  # a single GPU has nobody to share with
    assert shared["rows"][1]["hours"] > found["rows"][1]["hours"]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "x"\nbudget_mb = 1\nmodels.a.family = "mean"\n'
        '[data]\nschema = "audioset"\ntrain = ["no*"]\ntest = ["no*"]\n'
    )
    assert main(["simulate", str(recipe), *arguments[2:]]) == 2
    assert "--set data.videos=5000000" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_the_published_tables_are_what_the_command_prints(capsys, monkeypatch, number):
    monkeypatch.chdir(RECIPES.parent)
    blocks = re.findall(r"```console\n\$ reeltag (.*?)\n(.*?)```", Path("docs/scale.md").read_text(), re.DOTALL)
    command, printed = blocks[number]
    assert main(command.split()) == 0
    assert capsys.readouterr().out == printed
