"""Folders are taken as they are called, patterns pass over hidden files, and names match in any Unicode form."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from reeltag.core.errors import UsageError
from reeltag.core.storage import find_files


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize("name", ["[2024] data", "data*", "what?", "[a-z]", "[!x]", "{a,b} ünï"])
def test_a_root_is_a_folder_whatever_it_is_called(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name / "deep" / f"train-{number}" for number in (0, 1)]
    touch(*files, tmp_path / "a" / "deep" / "train-9", tmp_path / "data-other" / "deep" / "train-9")
    monkeypatch.chdir(tmp_path)
    for root, pattern in (
        (tmp_path / name, "*/train-*"),
        (tmp_path / name / "deep", "train-*"),
        (None, f"{tmp_path}/{name}/deep/train-?"),
        (None, f"{name}/deep/train-*"),
        (Path(name), "deep/train-[01]"),
    ):
        assert [path.resolve() for path in find_files(pattern, root)] == files


def test_a_root_that_does_not_exist_is_no_pattern(tmp_path: Path) -> None:
    touch(tmp_path / "data-1" / "a")
    with pytest.raises(UsageError, match=r"data\*/a: the folder does not exist"):
        find_files("a", tmp_path / "data*")
    assert find_files("data*/a", tmp_path) == [tmp_path / "data-1" / "a"]


def test_hidden_files_are_passed_over_unless_named(tmp_path: Path) -> None:
    shown, deep = tmp_path / "a.tfrecord", tmp_path / "in" / "b.tfrecord"
    hidden = [tmp_path / "._a.tfrecord", tmp_path / ".DS_Store", tmp_path / ".cache" / "c.tfrecord"]
    touch(shown, deep, *hidden)
    assert find_files("*.tfrecord", tmp_path) == [shown]
    assert find_files("**/*.tfrecord", tmp_path) == [shown, deep]
    assert find_files("._*", tmp_path) == [hidden[0]]
    assert find_files(".cache/*", tmp_path) == [hidden[2]]
    assert find_files("../*/*.tfrecord", tmp_path / "in") == [tmp_path / "in" / ".." / "in" / "b.tfrecord"]
    (tmp_path / "only").mkdir()
    touch(tmp_path / "only" / "._x")
    with pytest.raises(UsageError, match=r"no file in .* matches"):
        find_files("*", tmp_path / "only")


@pytest.mark.parametrize(("stored", "given"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_names_match_in_any_unicode_form(stored: str, given: str, tmp_path: Path) -> None:
    name = "Fußgängerübergang-é"
    path = tmp_path / unicodedata.normalize(stored, name)
    touch(path)
    for pattern in (name, name[:-1] + "*", "*" + name[-1:]):
        assert find_files(unicodedata.normalize(given, pattern), tmp_path) == [path]


def test_a_name_that_no_system_takes_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(File name too long\)"):
        find_files("x" * 300, tmp_path)
