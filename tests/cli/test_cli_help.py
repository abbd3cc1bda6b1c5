"""Every command has working examples, described options, `--json`, completion and plain text help."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reeltag.cli.main import app, main
from reeltag.core.environment import install_command

ROOT = Path(__file__).parents[2]
# Commands whose output is no result: they go on until they are stopped, or print a file as it is.
NO_RESULT = {"serve", "tensorboard", "completion", "recipe schema"}


def commands(group=app, path=()):
    """Yield every command with its name, without options such as `--help`."""
    for name in group:
        if not name.startswith("-"):
            inner, here = group[name], (*path, name)
            if inner.default_command:
                yield " ".join(here), inner
            else:
                yield from commands(inner, here)


COMMANDS = dict(commands())
named = pytest.mark.parametrize("name", COMMANDS)


def help_of(name, columns=80):
    environment = {**os.environ, "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "reeltag", *name.split(), "--help"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_all_commands_are_looked_at():
    assert {"run", "predict", "recipe list", "data inspect", "completion"} <= set(COMMANDS)


@named
def test_the_examples_are_taken(name):
    examples = re.findall(r"^ *Example: (reeltag .*)$", COMMANDS[name].default_command.__doc__, re.MULTILINE)
    assert examples
    for example in examples:
        program, *tokens = shlex.split(example.partition(" > ")[0])
        assert program == "reeltag"
        assert " ".join(tokens).startswith(name)
        called, bound, unused = app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert called is COMMANDS[name].default_command
        assert not [key for key in unused if key in bound.arguments]


@named
def test_every_parameter_is_described(name):
    arguments = list(COMMANDS[name].assemble_argument_collection(parse_docstring=True))
    assert [argument.name for argument in arguments if not (argument.parameter.help or "").strip()] == []


@named
def test_results_come_as_json_too(name):
    options = {each for argument in COMMANDS[name].assemble_argument_collection() for each in argument.names}
    assert ("--json" in options) == (name not in NO_RESULT)


def test_help_fits_80_columns_and_is_plain_where_nobody_looks():
    text = help_of("run")
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "\x1b" not in text
    assert "Example: reeltag run" in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("serve", ["--host", "127.0.0.1", "--port", "8000", "--max-batch", "64", "--timeout", "30", "--max-waiting"]),
        ("tag", ["MODEL [ARGS...]", "[default: 5]"]),
        ("quantize", ["[default: uniform-8]"]),
        ("extract", ["VIDEOS...", "[default: efficientnet-lite0]", "[default: logmel]"]),
        ("predict", ["MODEL SHARDS...", "[default: 1]", "[default: auto]", "[required]"]),
        ("average", ["MODELS..."]),
    ],
)
def test_help_shows_defaults_and_names_what_is_required(name, shown):
    text = " ".join(help_of(name, columns=400).split())
    assert [each for each in shown if each not in text] == []
    assert "[default: False]" not in text
    assert "[default: None]" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["completion"], "error: SHELL is missing: choose one of bash, zsh, fish\n"),
        (["tag"], "error: MODEL is missing: A .reeltag file, a shared folder, a URL, or a name.\n"),
        (["tag", "m"], "error: no videos; give them after the model, as in `reeltag tag model.reeltag m`\n"),
        (["quantize", "m"], "error: --out is missing: A new .reeltag file.\n"),
    ],
)
def test_what_is_missing_is_described(capsys, words, said):
    assert main(words) == 2
    assert capsys.readouterr().err == said


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="opens a terminal as Linux has them")
@pytest.mark.parametrize("no_color", [False, True])
def test_colours_are_for_terminals_and_for_who_wants_them(no_color):
    import pty

    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})}
    command = [sys.executable, "-m", "reeltag", "recipe", "--help"]
    subprocess.run(command, env=environment, stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # Linux's end of a terminal
        pass
    os.close(ours)
    coloured = re.search(rb"\x1b\[[0-9;]*3[0-9]", shown)
    assert (coloured is None) == no_color


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["predcit"], '"predict"'),
        (["recipe", "lst"], '"list"'),
        (["run", "quickstart", "--dry-rum"], "--dry-run"),
        (["run", "quickstrat"], "'quickstart'"),
        (["run", "quickstart", "--set", "training.epoch=1"], "'epochs'"),
        (["train", "quickstart", "--model", "netvlad-15"], "'netvlad-16'"),
        (["simulate", "quickstart", "--machines", "eight-gpu"], "'eight-gpus'"),
    ],
)
def test_what_was_mistyped_is_guessed(capsys, arguments, meant):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    message = " ".join(err.split())
    assert message.startswith("error: ")
    assert f"id you mean {meant}?" in message
    assert not out


def completed(words):
    """Return the completions that bash offers for the last of the words."""
    script = app.generate_completion(shell="bash")
    call = f"COMP_WORDS=({' '.join(map(shlex.quote, words))}); COMP_CWORD={len(words) - 1}; _reeltag\n"
    shown = subprocess.run(
        ["bash", "--norc", "-c", f"{script}\n{call}printf '%s\\n' \"${{COMPREPLY[@]}}\""],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not shown.stderr
    return set(shown.stdout.split())


def test_bash_completes_commands_options_and_choices(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.strip() == app.generate_completion(shell="bash").strip()
    assert completed(["reeltag", "pre"]) == {"predict"}
    assert completed(["reeltag", "recipe", ""]) == {name.split()[1] for name in COMMANDS if name.startswith("recipe ")}
    assert completed(["reeltag", "run", "quickstart", "--dry"]) == {"--dry-run"}
    assert completed(["reeltag", "predict", "--mode", ""]) == {"auto", "exact", "bf16", "small", "fast"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_of_every_command(capsys, shell):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name.split()[-1] in script for name in COMMANDS)


def test_completion_needs_no_torch():
    code = (
        "import sys; from reeltag.cli.main import main; main(['completion', 'bash']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_json_is_one_object_that_says_what_the_text_says(capsys, tiny_model, tiny_shards, tmp_path):
    def told(*arguments):
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    pattern = tiny_shards / "test-*"
    assert told("data", "inspect", pattern)["records"] == 8
    recipe = tmp_path / "own.toml"
    recipe.write_text(
        'name = "own"\nbudget_mb = 1\n[data]\ntrain = ["a"]\ntest = ["b"]\n[data.schema]\nclasses = 8\n'
        'features = [{ name = "rgb", width = 6 }, { name = "audio", width = 2 }]\n[models.a]\nfamily = "mean"\n'
    )
    verified = told("data", "verify", pattern, "--schema", recipe)
    assert (verified["videos"], verified["shards"], verified["left_out"]) == (8, 2, [])
    predicted = told("predict", tiny_model, pattern, "--out", tmp_path / "p.csv")
    assert set(predicted.pop("computed")["ways"].values()) == {"exact"}
    assert predicted == {"file": str(tmp_path / "p.csv"), "videos": 8, "dropped": 0, "left_out": 0, "remarks": {}}
    small = told("quantize", tiny_model, "--out", tmp_path / "s.reeltag")
    assert small["bytes"] == (tmp_path / "s.reeltag").stat().st_size
    assert small["bytes_before"] == tiny_model.stat().st_size
    mean = told("average", tiny_model, tmp_path / "s.reeltag", "--out", tmp_path / "m.reeltag")
    assert mean["models"] == 2
    assert set(told("share", tiny_model, "--out", tmp_path / "shared")["files"]) == {
        path.name for path in (tmp_path / "shared").iterdir()
    }
    synth = told("data", "synth", tmp_path / "d", "--set", "train_videos=16", "--set", "test_videos=8")
    assert synth["train_videos"] == 16
    assert told("inspect", tiny_model)["bytes"] == tiny_model.stat().st_size
    stages = told("run", "quickstart", "--dry-run", "--out", tmp_path / "none")["stages"]
    assert stages[-1]["name"] == "report"
    assert {stage["status"] for stage in stages} == {"to do"}
    assert main(["predict", str(tiny_model), str(pattern), "--json"]) == 2


def test_doctor_names_what_is_missing_and_how_to_get_it(capsys, monkeypatch, tmp_path):
    from reeltag.cli import doctor

    def found():
        assert main(["doctor", "--json"]) == 0
        return {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}

    before = found()
    assert all(set(each) == {"name", "value", "hint"} for each in before.values())
    assert {f"extra {name}" for name in doctor.extras()} <= set(before)
    monkeypatch.setattr(doctor, "_installed", lambda name: name != "pyarrow")
    monkeypatch.setattr(doctor, "cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(doctor, "allowed_cpus", lambda: 0.5)
    monkeypatch.setenv("REELTAG_CACHE", str(tmp_path / "c"))
    after = found()
    assert after["extra parquet"]["hint"] == install_command("parquet")
    assert "avx512_bf16" in after["bf16 products"]["value"]
    assert "slower than float32" in after["bf16 products"]["value"]
    assert "OMP_NUM_THREADS=" in after["threads"]["hint"]
    assert str(tmp_path / "c") in after["cache"]["value"]
    assert main(["doctor"]) == 0
    assert f"→ {install_command('parquet')}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000\n", None), ("150000 100000\n", 1.5), ("10000 100000\n", 1), ("nonsense", None)]
)
def test_a_containers_quota_counts(tmp_path, text, expected):
    from reeltag.cli.doctor import allowed_cpus

    limit = tmp_path / "cpu.max"
    limit.write_text(text)
    everything = allowed_cpus(tmp_path / "none")
    assert allowed_cpus(limit) == (everything if expected is None else min(everything, expected))
