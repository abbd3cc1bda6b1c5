"""Promise 2: a write that fails leaves the old file or the new one, and says which it was."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Compile the library that makes writes fail."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    path = tmp_path_factory.mktemp("library") / "failing_writes.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, SUPPORT / "failing_writes.c", "-ldl"], check=True)
    return path


@pytest.mark.slow
def test_whatever_write_fails_files_are_old_or_new_and_the_path_is_named(library, tmp_path, promise):
    runs = promise.amount(2, 60)
    paths = os.pathsep.join([str(SUPPORT.parent), *sys.path])
    environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    codes = [errno.ENOSPC, errno.EIO][: promise.amount(1, 2)]
    command = [sys.executable, SUPPORT / "failing_writes.py", tmp_path, str(runs), *map(str, codes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["broken"] == []
    writes = found["writes"]
    of_run = writes.pop("a run")
    assert min(writes.values()) >= 6  # the folder, the file, its content, two fsyncs and the name
    assert of_run > 100
    promise.found(
        2,
        f"each of {sum(writes.values())} writes of {len(writes)} ways to write (models, checkpoints, shards, "
        f"predictions, …) failed with 'no space left' and with 'input/output error', and {runs} of a run's {of_run}: "
        "every file old or new, every message with its path, every repetition as if nothing had failed",
    )
