"""docs/import.md: its programs write files with the libraries of each format, and its commands read them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from reeltag.cli.main import main
from reeltag.core.storage import file_hash
from reeltag.core.tensorfile import TensorFile
from reeltag.data.schema import Schema
from reeltag.data.shards import read_examples

PAGE = Path(__file__).parents[2] / "docs" / "import.md"


def sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the blocks of each section of the page, as languages and contents."""
    found: list[tuple[str, list[tuple[str, str]]]] = [("", [])]
    tokens = MarkdownIt().parse(PAGE.read_text())
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            found.append((tokens[number + 1].content, []))
        elif token.type == "fence":
            found[-1][1].append((token.info, token.content))
    return found


def run(block: str, *more: str) -> None:
    for line in block.splitlines():
        words = shlex.split(line)[1:]
        assert main([*words, *(more if words[0] == "run" else ())]) == 0, line


@pytest.fixture
def films(tmp_path, monkeypatch):
    """The page's videos in every format, in the current folder; returns the commands of each section."""
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    commands = {}
    for heading, blocks in sections():
        for language, content in blocks:
            if language == "python":
                exec(compile(content, heading, "exec"), names)
            elif language == "sh" and "import" in content and heading:
                commands[heading] = content
    del commands["Features of other formats"]
    _write_compressed(names["films"], names["labels"])
    return commands


def _write_compressed(films, labels):
    import gzip

    from reeltag.data.formats.example import Video, encode
    from reeltag.data.formats.tfrecord import frame_record

    schema = Schema(features=({"name": "features", "width": 32},), dtype="float32", classes=3)
    numbers = {"indoor": 0, "music": 1, "outdoor": 2}
    with gzip.open("films-000.tfrecord.gz", "wb") as file:
        for name, frames in films.items():
            classes = np.array(sorted(numbers[word] for word in labels[name]))
            file.write(frame_record(encode(Video(name, classes, (frames,)), schema)))


def schema_of(folder: str) -> Schema:
    return Schema.model_validate(json.loads(Path(folder, "manifest.json").read_text())["schema"])


def test_every_format_gives_the_same_shards(films, capsys):
    assert len(films) == 8
    for block in films.values():
        run(next(line for line in block.splitlines() if " data import " in line))
    shards = {
        folder.name: {path.name: file_hash(path) for path in folder.glob("*.tfrecord")}
        for folder in Path().glob("shards*")
        if folder.is_dir()
    }
    assert len(shards) == 9
    assert len(shards["shards"]) == 2
    del shards["shards-mediapipe"]  # which names the feature itself
    assert all(each == shards["shards"] for each in shards.values())
    videos, others = (
        list(read_examples(sorted(Path(folder).glob("*.tfrecord")), schema_of(folder)))
        for folder in ("shards", "shards-mediapipe")
    )
    assert [video.id for video in videos] == [video.id for video in others]
    assert all(np.array_equal(a.features[0], b.features[0]) for a, b in zip(videos, others, strict=True))
    named = {Path(name, "label_names.csv").read_text() for name in shards if name != "shards-gzip"}
    assert named == {"index,name\n0,indoor\n1,music\n2,outdoor\n"}


@pytest.mark.slow
def test_the_commands_of_every_section_train_the_same_file(films, capsys):
    for heading, block in films.items():
        if heading != "Compressed TFRecords":
            run(block, "--set", "training.epochs=1")
    models = {path.parent.name: TensorFile(path) for path in Path("runs").glob("*/model.reeltag")}
    assert len(models) == 7
    del models["mediapipe"]  # which names the feature itself
    # The files differ in the recipe's name, which is that of the shards' folder.
    weights = [{name: file.read(name).tobytes() for name in file.names} for file in models.values()]
    assert all(each == weights[0] for each in weights)


def test_what_the_readme_says_is_on_the_page():
    three = re.search(r"```sh\n(reeltag data import.*?)```", PAGE.read_text(), re.DOTALL)[1].split("\n")
    readme = (PAGE.parents[1] / "README.md").read_text()
    assert all(line.strip() in readme for line in three)
