"""A profile of a training: a trace in the usual format, and no other files."""

import json

import pytest

from conftest import TINY_RUN
from reeltag.cli.main import main

RECIPE = 'name = "tiny"\nbudget_mb = 0.3\n' + TINY_RUN + '[models.a]\nfamily = "mean"\n[models.b]\nfamily = "mean"\n'


@pytest.fixture
def command(tmp_path):
    (tmp_path / "tiny.toml").write_text(RECIPE)
    return ["train", str(tmp_path / "tiny.toml"), "--out", str(tmp_path / "out"), "--profile"]


def test_a_profile_has_ten_steps_and_keeps_no_training(command, tmp_path, capsys):
    assert main([*command, str(tmp_path / "steps.json"), "--model", "a"]) == 0
    table = capsys.readouterr().out
    assert "aten::addmm" in table or "aten::mm" in table
    events = json.loads((tmp_path / "steps.json").read_text())["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{number}" for number in range(3, 13)}
    optimisers = [event for event in events if event["name"] == "Optimizer.step#Adam.step" and "dur" in event]
    assert len(optimisers) == 10
    assert not list(tmp_path.glob("out/stages/train*"))
    assert not list(tmp_path.rglob("*.partial"))


def test_unsupported_profiles_are_refused(command, tmp_path, capsys):
    assert main([*command, str(tmp_path / "steps.json")]) == 2
    assert "--profile: profiles one model" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "steps.json"), "--model", "a", "--devices", "cpu"]) == 2
    assert "leave --devices" in capsys.readouterr().err
    (tmp_path / "there.json").write_text("mine")
    assert main([*command, str(tmp_path / "there.json"), "--model", "a"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "there.json").read_text() == "mine"
    assert not (tmp_path / "out").exists()
