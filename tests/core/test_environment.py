"""The environment of a run is saved beside its results."""

import json
import os
import subprocess
import sys

import pytest
import torch

from conftest import SMALL_RECIPE
from reeltag.cli.main import main
from reeltag.core.environment import OPENMP_SPIN_COUNT, cpuinfo_value, describe_environment, install_command
from reeltag.core.version import __version__
from reeltag.pipeline.stages import report_samples as shown


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_repository_of_a_recipe_is_told_with_what_differs_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    recipe = tmp_path / "r.toml"
    recipe.write_text(SMALL_RECIPE)
    assert describe_environment(recipe)["git"] is None
    git(tmp_path, "init")
    assert describe_environment(recipe)["git"] is None  # nothing was committed yet
    (tmp_path / "other.py").write_text("1")
    git(tmp_path, "add", "other.py")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert describe_environment(recipe)["git"] == {"commit": commit, "dirty": True}  # it knows no such recipe
    git(tmp_path, "add", "r.toml")
    git(tmp_path, "commit", "-m", "second")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "made").write_text("")
    clean = describe_environment(recipe)["git"]
    assert clean == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    assert clean["commit"] != commit
    (tmp_path / "other.py").write_text("2")
    assert describe_environment(recipe)["git"] == {**clean, "dirty": True}


def test_without_git_a_run_has_versions_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = describe_environment(tmp_path / "r.toml")
    assert found["git"] is None
    assert found["versions"]["reeltag"] == __version__


def test_a_commit_changes_no_byte_of_what_is_trained(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text(SMALL_RECIPE)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for name in ("before", "after"):
        assert main(["train", str(recipe), "--out", str(tmp_path / name)]) == 0
        git(tmp_path, "init")
        git(tmp_path, "add", "r.toml")
        git(tmp_path, "commit", "--allow-empty", "-m", name)
    before, after = ((tmp_path / name / "a.reeltag").read_bytes() for name in ("before", "after"))
    assert before == after
    states = [json.loads((tmp_path / name / "environment.json").read_text())["git"] for name in ("before", "after")]
    assert states[0] is None
    assert states[1]["dirty"] is False
    stages = [sorted(path.name for path in (tmp_path / name / "stages").iterdir()) for name in ("before", "after")]
    assert stages[0] == stages[1]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, OPENMP_SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
    ],
)
def test_the_command_line_says_how_threads_wait_before_torch_reads_it(given, found):
    program = (
        "import os, sys\nfrom reeltag.cli.main import main\nmain(['--version'])\nassert 'torch' not in sys.modules\n"
    )
    program += "print(os.environ.get('GOMP_SPINCOUNT'))"
    environment = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment | given, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == str(found)


def test_values_of_cpuinfo_are_read(tmp_path):
    told = tmp_path / "cpuinfo"
    told.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2: fast\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t: none\n"
    )
    assert cpuinfo_value("model name", told) == "Some CPU @ 2: fast"
    assert cpuinfo_value("flags", told) == "fpu avx2"
    assert cpuinfo_value("model", told) == cpuinfo_value("flags", tmp_path / "none") == ""


def test_results_name_the_cpu_and_the_threads(monkeypatch):
    monkeypatch.setattr(shown, "cpuinfo_value", lambda key: {"model name": "Some CPU"}[key])
    found = shown.machine()
    assert found["cpu"] == "Some CPU"
    assert found["threads"] == str(torch.get_num_threads())


@pytest.mark.parametrize(
    ("told", "command"),
    [
        (None, "pip install 'reeltag[onnx]'"),
        ({"url": "https://index/reeltag.whl"}, "pip install 'reeltag[onnx]'"),
        ({"url": "file://{folder}", "dir_info": {}}, "pip install '{folder}[onnx]'"),
        (
            {"url": "file://{folder}", "dir_info": {"editable": True}},
            "pip install -c '{folder}/constraints.txt' -e '{folder}[onnx]'",
        ),
    ],
)
def test_the_command_that_adds_an_extra_fits_the_installation(tmp_path, monkeypatch, told, command):
    folder = tmp_path / "my clone"
    folder.mkdir()
    if "constraints" in command:
        (folder / "constraints.txt").touch()
    written = told and json.dumps(told).replace("{folder}", str(folder).replace(" ", "%20"))
    monkeypatch.setattr("importlib.metadata.Distribution.read_text", lambda *_: written, raising=False)
    monkeypatch.setattr("importlib.metadata.PathDistribution.read_text", lambda *_: written)
    assert install_command.__wrapped__("onnx") == command.replace("{folder}", str(folder))
