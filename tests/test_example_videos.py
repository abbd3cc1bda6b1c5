"""The commands of examples/own-videos lead from six clips to a tagged one."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "own-videos"


@pytest.mark.slow
def test_the_commands_of_its_page(tmp_path):
    blocks = re.findall(r"```sh\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert [command[:2] for command in commands[1:]] == [["reeltag", name] for name in ("extract", "run", "tag")]
    commands[0][1] = str(ROOT / commands[0][1])
    commands[-1].append("--json")
    for command in commands:
        program = [sys.executable, *(["-m", "reeltag"] if command[0] == "reeltag" else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*program, *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    (video,) = json.loads(done.stdout)["videos"]
    scores = {tag["name"]: row for tag, row in zip(video["tags"], video["timeline"]["scores"], strict=True)}
    sun, rain = scores["sun"], scores["rain"]
    assert all(a > b for a, b in zip(sun[:5], rain[:5], strict=True))
    assert all(a < b for a, b in zip(sun[5:], rain[5:], strict=True))
    assert (tmp_path / "page.html").read_text().count("data:image/jpeg;base64,") == 10
