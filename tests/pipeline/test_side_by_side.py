"""Stages in parallel in a pool: ordered by their inputs, the same bytes, repeated only if a process dies."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch

from conftest import TINY_RUN
from reeltag.cli.main import main
from reeltag.core.distributed.process_pool import open_process_pool
from reeltag.core.errors import UsageError
from reeltag.core.progress import Progress
from reeltag.pipeline import executor, side_by_side
from reeltag.pipeline.executor import Pieces, Stage
from reeltag.recipe.load import load_recipe


def note(job):
    """Write the content of the inputs, and the time."""
    lines = [name + ": " + (folder / "text").read_text() for name, folder in sorted(job.inputs.items())]
    (job.folder / "text").write_text(f"{job.folder.name.rpartition('-')[0]} of ({', '.join(lines)})")
    (job.folder / "begun").write_text(repr(time.time()))


def wait_for_other(job):
    """Wait until another stage, which should run at the same time, has begun too."""
    (job.folder / "came").touch()
    end = time.monotonic() + 60
    while len(list(job.folder.parent.glob("*/came"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    note(job)


def refuse(job):
    raise UsageError("no")


def count_pieces(job):
    return 5


def piece_file(number):
    return f"piece-{number}"


def write_piece(job, number):
    with (job.folder / f"piece-{number}").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if number == 3 and len((job.folder / "piece-3").read_text().splitlines()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def join(job):
    (job.folder / "text").write_text(str(sorted(path.name for path in job.folder.glob("piece-*"))))


DIAMOND = [
    Stage(name="top", work=note, format=1),
    Stage(name="left", work=wait_for_other, format=1, inputs=("top",)),
    Stage(name="right", work=wait_for_other, format=1, inputs=("top",)),
    Stage(name="bottom", work=note, format=1, inputs=("left", "right")),
]


class Said(Progress):
    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def test_stages_run_once_when_their_inputs_are_finished(tmp_path):
    said = Said()
    with open_process_pool(["cpu", "cpu"]) as pool:
        folders = executor.run(DIAMOND, tmp_path, said, pool)
        assert (folders["bottom"] / "text").read_text() == (
            "bottom of (left: left of (top: top of ()), right: right of (top: top of ()))"
        )
        before = [(folder / "begun").read_text() for folder in folders.values()]
        assert executor.run(DIAMOND, tmp_path, said, pool) == folders
    assert [(folder / "begun").read_text() for folder in folders.values()] == before
    assert said.lines[-4:] == [f"[{n}/4] {name}: done before" for n, name in enumerate(folders, 1)]
    assert list(folders) == [stage.name for stage in DIAMOND]
    done = executor.run(DIAMOND[:1], tmp_path, said)  # in this process, with the same folder
    assert done["top"] == folders["top"]


def test_an_error_ends_the_run_and_finished_stages_stay(tmp_path):
    stages = [
        Stage(name="good", work=note, format=1),
        Stage(name="bad", work=refuse, format=1, inputs=("good",)),
        Stage(name="after", work=note, format=1, inputs=("bad",)),
    ]
    with open_process_pool(["cpu", "cpu"]) as pool, pytest.raises(UsageError, match=r"^no$"):
        executor.run(stages, tmp_path, Progress(), pool)
    assert executor.statuses(stages, tmp_path) == {"good": "done", "bad": "unfinished", "after": "to do"}


@pytest.mark.slow
def test_pieces_run_before_the_rest_and_are_repeated_if_their_process_dies(tmp_path):
    stage = Stage(name="parted", work=join, format=1, pieces=Pieces(count_pieces, piece_file, write_piece))
    with open_process_pool(["cpu", "cpu"]) as pool:
        folders = executor.run([stage], tmp_path, Progress(), pool)
    assert (folders["parted"] / "text").read_text() == str([f"piece-{number}" for number in range(5)])
    made = [(folders["parted"] / f"piece-{number}").read_text().splitlines() for number in range(5)]
    assert [len(lines) for lines in made] == [1, 1, 1, 2, 1]
    assert 2 <= len({line for lines in made for line in lines}) <= 3


def join_or_fail(job):
    if not (job.folder.parent.parent / "may").exists():
        raise UsageError("not yet")
    join(job)


@pytest.mark.parametrize("devices", [0, 1])
def test_finished_pieces_are_not_recomputed(tmp_path, devices):
    stage = Stage(name="parted", work=join_or_fail, format=1, pieces=Pieces(count_pieces, piece_file, append_piece))
    with open_process_pool(["cpu"] * devices) if devices else nullcontext() as pool:
        with pytest.raises(UsageError, match="not yet"):
            executor.run([stage], tmp_path, Progress(), pool)
        (folder,) = tmp_path.glob("stages/parted-*")
        (folder / "piece-2").unlink()
        (tmp_path / "may").touch()
        executor.run([stage], tmp_path, Progress(), pool)
    times = [int((folder / f"times-{number}").read_text()) for number in range(5)]
    assert times == [1, 1, 2, 1, 1]


def append_piece(job, number):
    times = job.folder / f"times-{number}"
    times.write_text(str(int(times.read_text()) + 1 if times.exists() else 1))
    (job.folder / f"piece-{number}").touch()


RECIPE = (
    'name = "tiny"\nseed = 5\nbudget_mb = 0.3\n'
    + TINY_RUN
    + """
[distillation]
[models.a]
family = "netvlad"
clusters = 8
hidden = 40
[models.b]
family = "mean"
"""
)


def bytes_of(out):
    """Return the content of all models, predictions and targets, by stage."""
    kinds = ("*.reeltag", "checkpoint.safetensors", "predictions.safetensors", "*.npy", "weights.json")
    files = [path for kind in kinds for path in out.glob(f"stages/*/{kind}")]
    return {str(path.relative_to(out)): path.read_bytes() for path in [*files, out / "model.reeltag"]}


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    """Run in one process with one thread."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "tiny.toml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert main(["run", str(folder / "tiny.toml"), "--out", str(folder / "out")]) == 0
    finally:
        torch.set_num_threads(threads)
    return folder


PROCESSES = pytest.param(("--devices", "cpu,cpu"), id="processes")
RAY = pytest.param(("--executor", "ray"), id="ray")


@pytest.mark.slow
@pytest.mark.parametrize("options", [PROCESSES, RAY])
def test_a_recipe_ends_with_the_same_bytes(one_by_one, tmp_path, capsys, monkeypatch, options):
    if "ray" in options:
        pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = one_by_one / "tiny.toml"
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *options]) == 0
    capsys.readouterr()
    assert bytes_of(tmp_path / "out") == bytes_of(one_by_one / "out")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *options, "--set", "seed=5"]) == 0
    said = capsys.readouterr().err
    titles = [line for line in said.splitlines() if line.startswith("[")]
    assert titles and all(line.endswith(": done before") for line in titles)


def trainings(*hours, chained=False, memory=0, processes=1):
    """Return stages with estimated GPU hours, each after the one before if chained."""
    names = [f"train.{number}" for number in range(len(hours))]
    inputs = [(name,) if chained else () for name in ("", *names)]
    inputs[0] = ()
    table = {"checkpoint_bytes": memory, "processes": processes, "work": note, "format": 1}
    return [Stage(name=n, inputs=i, gpu_hours=h, **table) for n, i, h in zip(names, inputs, hours, strict=False)]


@pytest.mark.parametrize(
    ("stages", "settings", "expected"),
    [
        (trainings(1, 1, 1, 1), {}, "cpu,cpu,cpu,cpu"),
        (trainings(1, 1, 1, 1), {"cpus": 2}, "cpu,cpu"),
        (trainings(3, 1, 1, 1), {}, "cpu,cpu"),  # more would wait for the longest
        (trainings(1, 1, memory=4 * 10**9), {"memory": 9 * 10**9}, ""),
        (trainings(1, 1, memory=3 * 10**9), {"memory": 9 * 10**9}, "cpu,cpu"),
        (trainings(1, 1, 1, chained=True), {}, ""),
        (trainings(1e-4, 1e-4), {}, ""),  # a minute is over before processes have started
        (trainings(0, 0), {}, ""),  # it is not known how many videos there are
        (trainings(1, 1, processes=2), {}, ""),
        (trainings(1, 1), {"cpus": 1}, ""),
        (trainings(1, 1), {"threads": "1"}, ""),
        (trainings(1, 1), {"device": "cuda"}, ""),
        (trainings(1, 1), {"gpu": True}, ""),
        (trainings(1, 1), {"gpu": True, "device": "cpu"}, "cpu,cpu"),
    ],
)
def test_trainings_run_side_by_side_by_default_where_it_is_faster(monkeypatch, stages, settings, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if "threads" in settings:
        monkeypatch.setenv("OMP_NUM_THREADS", settings["threads"])
    monkeypatch.setattr(side_by_side, "available_cpus", lambda: settings.get("cpus", 8))
    monkeypatch.setattr(side_by_side, "total_memory", lambda: settings.get("memory", 10**12))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: settings.get("gpu", False))
    recipe = load_recipe("quickstart", [f"training.device={settings.get('device', 'auto')}"])
    assert side_by_side.side_by_side(recipe, stages) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--devices", "tpu"], "--devices: 'tpu' is not a device; give a list of cpu and cuda:N"),
        (["--devices", "cpu,cuda:99"], "--devices: cuda:99 does not exist, since this machine has "),
        (["--address", "10.0.0.1:6379"], "--address: is the address of a Ray cluster; add --executor ray"),
        (["--executor", "ray", "--devices", "cpu"], "--devices: names devices of this machine"),
        (["--devices", "cpu,cpu", "--set", "training.devices=2"], "--devices: gives a stage one device"),
    ],
)
def test_impossible_options_are_one_message(tmp_path, capsys, options, said):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    assert main(["run", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not list(Path(tmp_path).glob("out/stages/*"))


def started_together(recipe, out, *options):
    command = [sys.executable, "-m", "reeltag", "train", str(recipe), "--model", "a", "--out", str(out)]
    command += ["--set", "training.devices=2"]
    if "torchrun" in options:
        command[1:3] = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "reeltag"]
        options = ()
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_every_launcher_of_a_training_gives_the_same_bytes(one_by_one, tmp_path, monkeypatch):
    """Compare processes started by a run, by torchrun, and by Ray as a placement group."""
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = one_by_one / "tiny.toml"
    for name, options in {"own": (), "torchrun": ("torchrun",), "ray": ("--executor", "ray")}.items():
        done = started_together(recipe, tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    own, *others = ((tmp_path / name / "a.reeltag").read_bytes() for name in ("own", "torchrun", "ray"))
    assert others == [own, own]


@pytest.mark.slow
def test_workers_of_a_cluster_that_are_killed_change_no_byte(one_by_one, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, rng, killed = tmp_path / "out", random.Random(0), 0
    command = [sys.executable, "-m", "reeltag", "run", str(one_by_one / "tiny.toml"), "--out", str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--executor", "ray"], stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(rng.uniform(0.2, 1.0))
            working = [pid for pid, name in processes().items() if name.startswith("ray::_call")]
            if working and killed < 10:
                os.kill(rng.choice(working), signal.SIGKILL)
                killed += 1
    assert process.returncode == 0, (tmp_path / "log").read_text()
    assert killed >= 3
    assert bytes_of(out) == bytes_of(one_by_one / "out")


def processes():
    """Return the command lines of all processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found[int(path.parent.name)] = path.read_text().replace("\0", " ")
    return found
