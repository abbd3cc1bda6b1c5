"""Tasks in processes and on a Ray cluster: side by side, again where one dies, and broken off with the block."""

import os
import sys
import time
from contextlib import contextmanager

import pytest

import tasks
from reeltag.core.distributed.process_pool import Resources, open_process_pool
from reeltag.core.distributed.ray_pool import open_ray_pool
from reeltag.core.errors import UsageError, WorkerError


@contextmanager
def processes():
    with open_process_pool(["cpu", "cpu"]) as pool:
        yield pool


@contextmanager
def cluster():
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with open_ray_pool() as pool:
        yield pool


POOLS = [
    processes,
    pytest.param(
        cluster, marks=(pytest.mark.slow, pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="only one CPU"))
    ),
]


@pytest.mark.parametrize("opened", POOLS)
def test_a_pool(opened, tmp_path, monkeypatch):
    """One test, since a pool takes seconds to start."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the cluster's processes import `tasks` too
    places = {name: tmp_path / name for name in ("deaths", "meeting")}
    for place in places.values():
        place.mkdir()
    with opened() as pool:
        assert [pool.submit(Resources(), tasks.double, n).result() for n in range(5)] == [0, 2, 4, 6, 8]
        with pytest.raises(UsageError, match=r"^it is so$"):
            pool.submit(Resources(), tasks.fail, "it is so").result()
        meetings = [pool.submit(Resources(), tasks.meet, str(places["meeting"]), n, "ab") for n in "ab"]
        deaths = pool.submit(Resources(), tasks.die, str(places["deaths"]), 2)
        assert len({meeting.result() for meeting in meetings}) == 2
        assert deaths.result() == 2
        saved = tmp_path / "saved"
        pool.submit(Resources(), tasks.save_when_told, str(saved))
        while not saved.exists():
            time.sleep(0.02)
    assert saved.read_text() == "saved"


def test_a_task_that_kills_every_process_is_given_up_and_harms_no_other(tmp_path):
    with open_process_pool(["cpu", "cpu"]) as pool:
        death = pool.submit(Resources(), tasks.die, str(tmp_path), 100)
        others = [pool.submit(Resources(), tasks.double, n) for n in range(20)]
        assert [other.result() for other in others] == [2 * n for n in range(20)]
        with pytest.raises(WorkerError, match=r"died 4 times on the same task: .* run the same command again"):
            death.result()
    assert len(list(tmp_path.iterdir())) == 4


def test_each_process_sees_its_device_and_its_share_of_the_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for device, seen in {"cpu": "", "cuda:3": "3", "cuda": None}.items():
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with open_process_pool([device]) as pool:
            assert pool.submit(Resources(), tasks.environment, "CUDA_VISIBLE_DEVICES").result() == seen
            threads = pool.submit(Resources(), tasks.environment, "OMP_NUM_THREADS").result()
            assert int(threads) == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_a_cluster_without_what_is_needed_says_so(tmp_path):
    pytest.importorskip("ray", reason="the extra 'ray' is not installed")
    with pytest.raises(UsageError, match="has no GPU, and the recipe asks for one"), open_ray_pool(gpu=True):
        pass
    with open_ray_pool() as pool, pytest.raises(UsageError, match=r"no machine .* has the 1000 CPUs and 1.00 MB"):
        pool.submit(Resources(1000, 0, 10**6), tasks.double, 1)
    refused = pytest.raises(UsageError, match=r"127.0.0.1:1: no Ray cluster answers .*check the address")
    with refused, open_ray_pool("127.0.0.1:1"):
        pass
