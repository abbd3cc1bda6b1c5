"""Several processes in one training: the same as one, and they end together."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
import pytest
import torch

from conftest import TINY, TINY_RUN
from distributed_cases import CASES, FOLLOWED_BY_A_NORM, SETTINGS, Recorded, fails_in_one, in_a_pair, resumed
from processgroup import all_end
from reeltag.artifact.file import load_artifact
from reeltag.cli.main import main
from reeltag.core import tensorfile
from reeltag.core.distributed.process_group import launch
from reeltag.core.errors import DataError
from reeltag.core.interrupts import REPEAT_SECONDS
from reeltag.data.synthetic import write_synthetic
from reeltag.inference.metrics.video_metrics import Metrics, gap
from reeltag.training import checkpoint

STEPS = 6  # of a case: two epochs of 24 videos in batches of 8


@pytest.fixture(scope="module")
def manifest(tiny_manifests):
    return tiny_manifests["train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(manifest, folder):
    """Results of two processes; two of their trainings were begun by one process and resume in them."""
    for averaging in (False, True):
        resumed(manifest, folder, averaging, until=2)
    return launch(partial(in_a_pair, manifest, folder), 2)


def close(one, other, *, but=r"(?!)"):
    """Tensors of the same names agree to 1e-5; those that a pattern matches only to a tenth."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        atol = 0.1 if re.fullmatch(but, name) else 1e-5
        torch.testing.assert_close(other[name], tensor, atol=atol, rtol=1e-5, msg=lambda said, n=name: f"{n}: {said}")


# --- the same as one process ----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_losses_weights_and_statistics_are_those_of_one_process(pair, manifest, tmp_path, case):
    losses, weights, _, _ = pair["cases"][case]
    alone = Recorded(manifest, tmp_path / "state", *CASES[case])
    state = alone.run()
    assert len(losses) == STEPS
    np.testing.assert_allclose(losses, alone.losses, rtol=1e-5)
    close(state.model, weights["model"], but=FOLLOWED_BY_A_NORM.get(case, r"(?!)"))
    close(state.optimizer, weights["optimizer"])


@pytest.mark.parametrize("case", CASES)
def test_processes_have_the_same_weights_to_the_byte(pair, case):
    first, second = pair["cases"][case][3]
    for part in ("model", "optimizer"):
        for name, tensor in first[part].items():
            assert torch.equal(second[part][name], tensor), name


def test_each_video_is_read_by_one_process_in_the_order_of_one(pair, manifest, tmp_path):
    alone = Recorded(manifest, tmp_path / "state", *CASES["netvlad"])
    alone.run()
    for case in CASES:
        first, second = pair["cases"][case][2]
        assert [a + b for a, b in zip(first, second, strict=True)] == alone.ids
        assert {len(ids) for ids in (*first, *second)} == {SETTINGS["batch_size"] // 2}
        for epoch in (slice(0, 3), slice(3, 6)):
            assert len({each for ids in (*first[epoch], *second[epoch]) for each in ids}) == 24


@pytest.mark.parametrize("averaging", [False, True])
def test_a_training_goes_on_in_any_number_of_processes(pair, manifest, folder, tmp_path, averaging):
    """Two steps in one process, two in a pair, two in one."""
    assert pair["middle"][averaging].step == 4 + (6 if averaging else 0)
    last, whole = resumed(manifest, folder, averaging), resumed(manifest, tmp_path, averaging)
    assert last.step == whole.step
    for part in ("model", "optimizer", "average"):
        close(getattr(whole, part), getattr(last, part))
    files = [tensorfile.load_tensors(place / f"resumed, {averaging}") for place in (folder, tmp_path)]
    logs = [np.array(header.pop("log")["rows"], float) for _, header in files]
    np.testing.assert_allclose(*logs, rtol=1e-4)
    assert files[0][1] == files[1][1]
    assert {name: (t.shape, t.dtype) for name, t in files[0][0].items()} == {
        name: (t.shape, t.dtype) for name, t in files[1][0].items()
    }


def test_gap_of_parts_is_that_of_all():
    generator = torch.Generator().manual_seed(0)
    p, y = torch.rand(40, 30, generator=generator), torch.rand(40, 30, generator=generator) < 0.1
    parts = Metrics.merge(Metrics.of(p[rank::2], y[rank::2]) for rank in range(2))
    assert parts.gap() == pytest.approx(gap(p, y), abs=1e-12)


# --- who they are, and what they refuse -----------------------------------------------------------


def test_processes_know_their_rank_and_share_the_threads(pair):
    first, second = pair["who"]
    assert first[:2] == (0, 2)
    assert second[:2] == (1, 2)
    assert first[2] == second[2] == max(1, torch.get_num_threads() // 2)
    assert first[3] == second[3] != os.getpid(), "both know the number of the first"
    assert pair["agreed"] == [[3, 5]] * 2, "the largest of each"


def test_a_loss_that_is_not_finite_in_one_stops_all_at_the_same_step(pair, manifest, folder, tmp_path):
    (first, second), alone = pair["not finite"], Recorded(manifest, tmp_path / "state", *CASES["netvlad"])
    assert first == second
    message, steps = first
    assert steps == 3
    alone.run(until=2)
    before = checkpoint.load(tmp_path / "state")
    alone.run(until=3)
    assert message.startswith("the loss is nan at step 2 (epoch 0), and that step is discarded")
    assert message.endswith(f": {', '.join(alone.ids[2])}"), "the videos of all processes"
    kept = checkpoint.load(folder / "not finite")
    assert kept.step == 2
    close(before.model, kept.model)


def test_a_batch_that_cannot_be_divided_is_refused(pair):
    assert len(set(pair["refused"])) == 1
    message = pair["refused"][0]
    assert "training.batch_size = 9" in message
    assert "training.devices" in message
    assert "multiple of 2, such as 8" in message


RECIPE = 'name = "r"\nbudget_mb = 1\n' + TINY_RUN + '[models.a]\nfamily = "mean"\n'


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["training.devices=3"], "training: batch_size = 32 .* the 3 of training.devices"),
        (["training.devices=2", "training.nodes=5"], "the 10 of training.devices and training.nodes"),
        (["training.devices=2", "models.a.training.batch_size=7"], "models: a.training.batch_size = 7 .* such as 6"),
        (["training.devices=2", "distillation.training.batch_size=7"], "distillation: training.batch_size = 7"),
        (["training.devices=2", "training.device=mps"], "training: device = 'mps' is one device"),
    ],
)
def test_a_recipe_that_cannot_be_divided_is_refused(tmp_path, capsys, changes, says):
    (tmp_path / "r.toml").write_text(RECIPE)
    sets = [part for change in changes for part in ("--set", change)]
    assert main(["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--dry-run", *sets]) == 2
    assert re.search(says, capsys.readouterr().err)


def test_a_recipe_s_results_do_not_hang_on_the_number_of_processes(tmp_path, capsys):
    """Neither key is in the hash of a stage: what one process did is done."""
    (tmp_path / "r.toml").write_text(RECIPE.replace("epochs = 6", "epochs = 0.5"))
    command = ["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--dry-run", "--set", "training.devices=2", "--set", "training.nodes=2"]) == 0
    assert "to do" not in capsys.readouterr().out


# --- they end together ----------------------------------------------------------------------------


def test_the_error_of_one_process_is_raised_as_itself():
    with pytest.raises(DataError, match=r"^a\.tfrecord, record 7, byte 99: is damaged$") as caught:
        launch(fails_in_one, 2)
    assert caught.value.record == 7


@contextmanager
def training(folder):
    """A training in two processes, in a group of its own, once some steps are done; and the numbers of the two."""
    write_synthetic(folder, TINY)
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed_cases", "disturbed", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "2"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[-1] == "trains\n", [*lines, process.stderr.read()]
        yield process, [int(line.split()[2]) for line in sorted(lines[:2])]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_whom", "code"),
    [
        (signal.SIGINT, "all", 130),  # as a terminal sends it
        (signal.SIGTERM, "parent", 143),
        (signal.SIGTERM, "rank 1", 143),
    ],
    ids=str,
)
def test_a_signal_saves_the_same_step_in_all(tmp_path, number, to_whom, code):
    with training(tmp_path) as (process, ranks):
        if to_whom == "all":
            os.killpg(process.pid, number)
        else:
            os.kill(ranks[1] if to_whom == "rank 1" else process.pid, number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        assert said.strip() == "saving; once more ends at once", "one says it"
        assert all_end(process.pid)
    assert checkpoint.load(tmp_path / "state").step >= 5
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path):
    with training(tmp_path) as (process, ranks):
        os.kill(ranks[1], signal.SIGSTOP)  # so that nothing can be saved
        process.send_signal(signal.SIGTERM)
        # The first may wait for the stopped one inside a collective, and then cannot say that it saves.
        time.sleep(2 * REPEAT_SECONDS)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 143
        assert all_end(process.pid)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_all_with_one_message(tmp_path):
    with training(tmp_path) as (process, ranks):
        os.kill(ranks[1], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        # A loader of the killed one may still say that it is gone.
        said = "".join(line for line in said.splitlines(True) if not line.startswith("[rank1]"))
        assert said.startswith("WorkerError: process 1 of the training died: it was killed or ran out of memory; ")
        assert "Error" not in said.removeprefix("WorkerError"), "what followed in the other is not told"
        assert all_end(process.pid)


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(tmp_path):
    with training(tmp_path) as (process, _):
        process.kill()
        process.wait()
        assert all_end(process.pid)


# --- others may start them ------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_may_start_them(tmp_path, manifest):
    for attempt in range(3):  # on a busy machine torch ends some processes at their exit, after they have saved all
        folder = tmp_path / str(attempt)
        write_synthetic(folder, TINY)
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             "-m", "distributed_cases", "trained", str(folder)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, timeout=120, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    state = Recorded(manifest, tmp_path / "alone", *CASES["netvlad"]).run()
    close(state.model, checkpoint.load(folder / "torchrun").model)


@pytest.mark.slow
def test_a_whole_run_in_two_processes_is_that_of_one(tmp_path):
    """Training and averaging of a recipe; the weights of every model agree."""
    (tmp_path / "r.toml").write_text(RECIPE)
    for devices in (1, 2):
        out = str(tmp_path / str(devices))
        assert main(["run", str(tmp_path / "r.toml"), "--out", out, "--set", f"training.devices={devices}"]) == 0
    one, two = (sorted((tmp_path / out).glob("stages/[ta]*.*/model.reeltag")) for out in ("1", "2"))
    assert [path.parent.name for path in one] == [path.parent.name for path in two]
    assert len(one) == 2
    for alone, shared in zip(one, two, strict=True):
        close(*(load_artifact(path).members[0].state for path in (alone, shared)))
