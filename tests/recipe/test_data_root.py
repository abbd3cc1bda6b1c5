"""A relative data.root in a recipe's file starts from the file's folder; any other from the current one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from reeltag.core.errors import UsageError
from reeltag.pipeline.stages.data import data_stages
from reeltag.recipe import shipped
from reeltag.recipe.load import load_recipe
from reeltag.recipe.tables import VARIABLE

TEXT = """name = "r"
budget_mb = 1
[data]
%s
train = ["train-*"]
test = ["test-*"]
[data.schema]
features = [{ name = "rgb", width = 6 }]
classes = 8
[models.a]
family = "mean"
"""


@pytest.mark.parametrize("root", ["", 'root = "."', 'root = "shards"', 'root = "../shards"'])
def test_a_relative_root_starts_from_the_recipes_folder(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "r.toml").write_text(TEXT % root)
    given = root.removeprefix("root = ").strip('"')
    for current in (tmp_path, tmp_path / "recipes"):
        monkeypatch.chdir(current)
        for source in (tmp_path / "recipes" / "r.toml", Path("recipes/r.toml") if current == tmp_path else "r.toml"):
            found = load_recipe(source).data.root
            assert Path(found).resolve() == (tmp_path / "recipes" / given).resolve()


def test_other_roots_start_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TEXT % 'root = "shards"')
    assert load_recipe(path, "data.root=mine").data.root == Path("mine")
    monkeypatch.setenv(VARIABLE, "data.root=theirs")
    assert load_recipe(path).data.root == Path("theirs")
    monkeypatch.delenv(VARIABLE)
    for name in ("audioset", shipped.FOLDER / "audioset.toml"):
        assert load_recipe(name).data.root == Path()
    assert load_recipe("quickstart").data.root == Path()
    for place in ("/data/set", "s3://bucket/folder"):
        path.write_text(TEXT % f'root = "{place}"')
        assert str(load_recipe(path).data.root) == place
    shutil.copy(shipped.FOLDER / "audioset.toml", tmp_path / "copy.toml")
    assert load_recipe(tmp_path / "copy.toml").data.root == tmp_path
    first, second = (load_recipe(tmp_path / "copy.toml", each).fingerprint for each in ((), "data.root=x"))
    assert first == second


def test_a_root_that_was_meant_from_the_current_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("recipes", "my shards"):
        (tmp_path / folder).mkdir()
    for split in ("train", "test"):
        (tmp_path / "my shards" / f"{split}-0").touch()
    (tmp_path / "recipes" / "r.toml").write_text(TEXT % 'root = "my shards"')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        data_stages(load_recipe("recipes/r.toml"), False)
    message = str(caught.value)
    assert "recipes/my shards/train-*: the folder does not exist" in message
    assert message.endswith("give --set data.root='my shards' for these")
    assert len(data_stages(load_recipe("recipes/r.toml", "data.root=my shards"), False)) == 2
    shutil.rmtree("my shards")
    with pytest.raises(UsageError, match=r"quotes$"):
        data_stages(load_recipe("recipes/r.toml"), False)
