"""Every script in examples/ runs as its docstring says, and prints what it promises."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
# What the last lines say where it worked.
SAID = {
    "add_a_family": r"maximum  hold-out GAP 0\.\d+",
    "distil_your_own_teacher": r"taught   test GAP 0\.\d+",
    "squeeze_an_ensemble": r"became one of 0\.\d+ MB",
    "tag_your_own_features": r"guitar and speech: (guitar|speech) 0\.\d+, (guitar|speech) 0\.\d+",
}


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES} == set(SAID)


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_goes_on(path, tmp_path):
    assert f"python examples/{path.name} [FOLDER]" in path.read_text()
    command = [sys.executable, str(path), str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert re.search(SAID[path.stem], run.stdout)
    gaps = dict(re.findall(r"(alone|taught) +test GAP (\S+)", run.stdout))
    assert not gaps or gaps["taught"] > gaps["alone"]
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
