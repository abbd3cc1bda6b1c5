"""Promise 11: all faults of a recipe are listed in one message, before any data is opened."""

import subprocess
import sys
import time
from collections.abc import Mapping

import numpy as np
import pytest

from faulty_recipes import ANYWHERE, BESIDE_MODELS, GENERATED, OF_FILES, OF_GENERATED, WITH_FILES, faults, faulty
from reeltag.cli.main import main
from reeltag.core.errors import RecipeError
from reeltag.recipe.load import load_recipe

RECIPES = {"files": (WITH_FILES, OF_FILES), "generated": (GENERATED, OF_GENERATED)}
MOST = 12  # faults of one recipe


def toml(value):
    """Format a value as TOML, with inline tables."""
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {toml(item)}' for key, item in value.items())} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return str(value).lower() if isinstance(value, bool) or value != value else repr(value)


def write(path, table):
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in table.items()))
    return path


def said(path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    return caught.value.faults


@pytest.mark.parametrize("source", RECIPES)
def test_the_recipes_without_faults_are_valid(source, tmp_path):
    assert load_recipe(write(tmp_path / "x.toml", RECIPES[source][0]))


def test_every_fault_alone_and_random_faults_together_are_named_in_one_message(tmp_path, promise):
    path, alone, together, longest = tmp_path / "x.toml", 0, 0, 0
    for seed, (table, own) in enumerate(RECIPES.values()):
        rng = np.random.default_rng(seed)
        all_ = [*faults(table), *ANYWHERE, *BESIDE_MODELS, *own]
        chosen = promise.amount(60, len(all_))
        for number in rng.permutation(len(all_))[:chosen].tolist():
            fault = all_[number]
            assert any(each.startswith(fault.said) for each in said(write(path, faulty(table, fault)))), fault
            alone += 1
        for _ in range(promise.amount(30, 1000)):
            picked = []
            for number in rng.permutation(len(all_))[: int(rng.integers(2, MOST + 1))].tolist():
                if not any(all_[number].meets(other) for other in picked):
                    picked.append(all_[number])
            message = said(write(path, faulty(table, *picked)))
            unnamed = [fault for fault in picked if not any(each.startswith(fault.said) for each in message)]
            assert not unnamed, (unnamed, message)
            together, longest = together + 1, max(longest, len(picked))
    seconds = [from_the_command_line(path) for _ in range(promise.amount(1, 10))]
    promise.found(
        11,
        f"{alone:,} faults, three a key, each named; {together:,} recipes with 2 to {longest} of them at once: all "
        f"named in one message; `reeltag run` says so in {min(seconds):.1f} s (fastest of {len(seconds)}), code 2",
    )


def from_the_command_line(path):
    """Return the seconds in which `reeltag run` refuses a recipe."""
    begin = time.perf_counter()
    command = "import sys; from reeltag.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", command, "run", str(path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert not done.stdout
    return time.perf_counter() - begin


def test_faults_are_reported_before_data_and_folders_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.toml", WITH_FILES)  # the folder of its shards does not exist
    assert main(["run", "x.toml"]) == 2
    assert "the folder does not exist" in capsys.readouterr().err
    write(tmp_path / "x.toml", WITH_FILES | {"seed": -1})
    assert main(["run", "x.toml", "--set", "ensemble.trials=-1"]) == 2
    message = capsys.readouterr().err
    assert "2 faults" in message and "seed: " in message and "ensemble.trials: " in message
    assert [each.name for each in tmp_path.iterdir()] == ["x.toml"]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"hidden": 16, "dropout": [0.1, 0.1]},
            ["hidden must be a list of values", "dropout must be a list of diff"],
        ),
        ({f'"head.k{n}"': list(range(11)) for n in range(3)}, ["makes 1,331 models; at most 1,000 are allowed"]),
    ],
)
def test_faults_of_a_grid_hide_no_others(tmp_path, grid, message):
    table = faulty(GENERATED)
    table["models"]["mean"] |= {"grid": grid, "hiden": 3}
    found = said(write(tmp_path / "x.toml", table))
    assert len(found) == len(message) + 1
    for each in [*(f"models.mean.grid: {text}" for text in message), "models.mean.hiden: unknown key"]:
        assert any(fault.startswith(each) for fault in found), found


def test_a_very_long_value_is_shortened_in_the_message(tmp_path):
    (fault,) = said(write(tmp_path / "x.toml", GENERATED | {"seed": "9" * 10_000 + "x"}))
    assert fault.startswith("seed: ") and len(fault) < 300


def test_a_duplicate_key_is_one_message_with_its_line(tmp_path):
    (tmp_path / "x.toml").write_text('name = "x"\nseed = 1\nseed = 2\nbudget_mb = -1\n')
    (fault,) = said(tmp_path / "x.toml")  # invalid TOML has no keys that could have further faults
    assert fault.startswith("is not TOML: Cannot overwrite a value (at line 3")
