"""A file that names another cannot lead out of its folder, and what is no file is never opened as one.

Where a file names another, or a path is made of what a file says:

- a manifest names its shards, by whole paths wherever they lie: only files of the size and checksums that were indexed
- `targets.json` of soft targets names its `.npy` files
- `weights.json` of the ensemble names an encoding, which is a file's name
- `selection.json`, `kept.json` and `weights.json` name models: keys of the recipe, never paths
- the index of a TensorFlow checkpoint numbers its data files
- a recipe names shards, label names and imported files, as a person types them; its models' names become folders
- a `.reeltag` header names its members, and an ONNX file the files of its weights
- a shared folder's model has a fixed name; a URL's copy is named by a hash; markers of `OUT.parts` name nothing that is
  opened
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import reeltag
from badshards import SCHEMA, make_case
from bundles import write_bundle
from conftest import TINY_RUN
from reeltag.artifact.file import Artifact, Member, load_artifact, save_artifact
from reeltag.artifact.tensorflow.bundle import read_checkpoint
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError, DataError, RecipeError, UsageError
from reeltag.core.storage import content_hash, file_inside, write_json
from reeltag.data.shards import Manifest, Shards, scan
from reeltag.data.soft_targets import SoftTargets, TargetsWriter
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger
from reeltag.recipe.load import load_recipe
from reliability import Promise


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """A pipe that is opened would wait for a writer for ever."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def secret(folder: Path) -> Path:
    """A file that lies outside of every folder here."""
    (folder / "secret").write_bytes(b"secret")
    return folder / "secret"


def odd_names(folder: Path, outside: Path) -> list[str]:
    """Names that another file might give to a file of a folder, all of which lead elsewhere or never end."""
    (folder / "link").symlink_to(outside)
    (folder / "links").symlink_to(outside.parent)
    (folder / "device").symlink_to("/dev/zero")
    (folder / "nowhere").symlink_to("missing")
    (folder / "round").symlink_to("round")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").touch()
    os.mkfifo(folder / "pipe")
    return [
        f"../{outside.name}",
        f"sub/../../{outside.name}",
        str(outside),
        "/dev/zero",
        "/dev/stdin",
        "link",
        f"links/{outside.name}",
        "device",
        "pipe",
        "nowhere",
        "round",
        "sub",
        "sub/file",
        ".",
        "..",
        "",
        "missing",
        "a\0b",
        f"../{outside.name}\0.npy",
        "x" * 300,
        "sub/" * 2000 + "file",
    ]


def test_a_name_of_a_file_stays_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "good").touch()
    (folder / "alias").symlink_to("good")
    assert file_inside(folder, "good") == folder / "good"
    assert file_inside(folder, "alias") == folder / "alias"
    (tmp_path / "by-link").symlink_to(folder)
    assert file_inside(tmp_path / "by-link", "good") == tmp_path / "by-link" / "good"
    for name in odd_names(folder, secret(tmp_path)):
        with pytest.raises(UsageError, match="cannot be read"):
            file_inside(folder, name)


def test_soft_targets_open_files_of_their_folder_alone(promise: Promise, tmp_path: Path) -> None:
    manifest = scan(make_case(tmp_path, random.Random(0), ()).clean, SCHEMA)
    folder = tmp_path / "targets"
    writer = TargetsWriter(folder, manifest, 3)
    writer.put(np.arange(len(manifest)), torch.rand(len(manifest), SCHEMA.classes))
    writer.finish({})
    # The hashes are right: all that is wrong is where the file lies.
    (tmp_path / "00000.npy").write_bytes((folder / "00000.npy").read_bytes())
    index = json.loads((folder / "targets.json").read_text())
    del index["checksum"]
    names = odd_names(folder, tmp_path / "00000.npy")
    for name in names:
        index["shards"][0]["file"] = name
        write_json(folder / "targets.json", index | {"checksum": content_hash(index)})
        with pytest.raises(UsageError, match=r"cannot be read .*; remove the folder, and reeltag recreates it"):
            SoftTargets(folder, manifest)
    promise.found(
        12,
        f"{len(names)} names that lead elsewhere (`..`, links, devices, pipes, NUL) in soft targets, and others in "
        "manifests, the ensemble's weights, TensorFlow checkpoints, ONNX files and recipes are refused; "
        f"{len(COMMANDS)} commands refuse what is no file in place of each file that they take, and none waits for it. "
        "A manifest names its shards by whole paths, wherever the data lie; only what has the indexed size and "
        "checksums is read of them",
    )


@pytest.mark.parametrize("path", ["a/b", "../b", "/a/../b", "/dev/zero", "/a\0b", "", "PIPE", "FOLDER"])
def test_a_manifest_names_files_by_whole_paths(tmp_path: Path, path: str) -> None:
    manifest = scan(make_case(tmp_path, random.Random(0), ()).clean, SCHEMA)
    os.mkfifo(tmp_path / "pipe")
    path = {"PIPE": str(tmp_path / "pipe"), "FOLDER": str(tmp_path)}.get(path, path)
    shards = (replace(manifest.shards[0], path=path), *manifest.shards[1:])
    replace(manifest, shards=shards).save(tmp_path / "manifest")
    with pytest.raises((ArtifactError, DataError), match=r"absolute path|not a file|valid file name|size|bytes"):
        Shards(Manifest.load(tmp_path / "manifest")).read(0)


def test_a_checkpoint_numbers_its_data_files(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", {"x": np.zeros(3, np.float32)})
    data = tmp_path / "a.data-00000-of-00001"
    assert list(read_checkpoint(tmp_path / "a")) == ["x"]
    content = data.read_bytes()
    for put in (os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)):
        data.unlink()
        put(data)
        with pytest.raises(DataError, match=r"cannot be read \(.*\); it belongs to a\.index") as caught:
            read_checkpoint(tmp_path / "a")
        assert caught.value.file == str(data)
        data.rmdir() if data.is_dir() else data.unlink()
        data.write_bytes(content)


def test_a_checkpoint_of_two_thousand_million_files_is_refused_at_once(tmp_path: Path) -> None:
    write_bundle(tmp_path / "a", {"x": np.zeros(3, np.float32)}, shards=2**31 - 1)
    with pytest.raises(DataError, match=r"a\.data-00000-of-2147483647: cannot be read"):
        read_checkpoint(tmp_path / "a")


RECIPE = """name = "r"
budget_mb = 1
[data]
train = ["t"]
test = ["t"]
schema = "audioset"
[models.%s]
family = "mean"
"""
NAMES = ['"a/b"', '"../a"', '".."', '"."', '"/a"', '"a\\u0000"', '"a\\n"', '"-a"', '""', '"a b"', '"ä"']


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("table", ["models", "students", "imported", "name", "grid"])
def test_names_that_become_folders_are_letters_and_digits(tmp_path: Path, table: str, name: str) -> None:
    text = RECIPE % (name if table == "models" else "a")
    if table == "students":
        text += f'[distillation]\n[students.{name}]\nfamily = "mean"\n'
    elif table == "imported":
        text += f'[imported]\n{name} = "m.reeltag"\n'
    elif table == "name":
        text = text.replace('name = "r"', f"name = {name}")
    elif table == "grid":
        text += f"grid = {{ activation = [{name}] }}\n"
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path / "r.toml")


def test_an_encoding_that_leads_elsewhere_is_not_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.toml").write_text(f'name = "r"\nbudget_mb = 1\n{TINY_RUN}[models.a]\nfamily = "mean"\nhidden = 8\n')
    command = ["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"), "--set", "training.epochs=1"]
    assert main(command) == 0
    (weights,) = tmp_path.glob("out/stages/ensemble-*/weights.json")
    (packed,) = tmp_path.glob("out/stages/pack-*")
    (tmp_path / "elsewhere.reeltag").write_bytes((packed / "model.reeltag").read_bytes())
    (packed / "stage.json").unlink()  # to be packed again
    content = json.loads(weights.read_text())
    content["members"][0]["encoding"] = "../../../elsewhere"
    write_json(weights, content)
    capsys.readouterr()
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert "the file '../../../elsewhere.reeltag' that it lists cannot be read (leads elsewhere)" in printed


def test_members_of_a_file_are_never_paths(tmp_path: Path) -> None:
    """Their names are the recipe's once they are imported, and elsewhere only shown."""
    config = parse_config({"family": "mean", "hidden": 3})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    with pytest.raises(ArtifactError):
        save_artifact(tmp_path / "m", Artifact(SCHEMA, None, (Member("../a", config, 1.0, state),), {}))
        load_artifact(tmp_path / "m")
    save_artifact(tmp_path / "m", Artifact(SCHEMA, None, (Member("..", config, 1.0, state),), {}))
    before = sorted(tmp_path.parent.iterdir())
    assert main(["share", str(tmp_path / "m"), "--out", str(tmp_path / "shared")]) == 0
    assert main(["quantize", str(tmp_path / "m"), "--out", str(tmp_path / "q.reeltag")]) == 0
    assert sorted(tmp_path.parent.iterdir()) == before


@pytest.mark.parametrize("name", ["../secret", "SECRET", "link"])
def test_weights_of_an_onnx_file_lie_in_its_folder(tmp_path: Path, name: str) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is missing: pip install 'reeltag[onnx]'")
    pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'reeltag[onnx]'")
    (tmp_path / "secret").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=1)
    weights.external_data.add(key="location", value=str(tmp_path / "secret") if name == "SECRET" else name)
    inputs, outputs = ([onnx.helper.make_tensor_value_info(each, 1, [4])] for each in "xy")
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", inputs, outputs, [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="onnxruntime cannot open it"):
        reeltag.open_onnx(folder / "m.onnx")


# --- what a person types ------------------------------------------------------------------------

COMMANDS: dict[str, Callable[[str, Path], list[str]]] = {
    "predict a model": lambda odd, folder: ["predict", odd, str(folder / "s")],
    "predict shards": lambda odd, folder: ["predict", str(folder / "m.reeltag"), odd],
    "predict shards into a file": lambda odd, folder: [
        *("predict", str(folder / "m.reeltag"), str(folder / "s"), odd, "--out", str(folder / "p.csv"))
    ],
    "evaluate a model": lambda odd, folder: ["evaluate", odd, str(folder / "s")],
    "evaluate shards": lambda odd, folder: ["evaluate", str(folder / "m.reeltag"), odd],
    "inspect": lambda odd, folder: ["inspect", odd],
    "quantize": lambda odd, folder: ["quantize", odd, "--out", str(folder / "q.reeltag")],
    "average": lambda odd, folder: ["average", str(folder / "m.reeltag"), odd, "--out", str(folder / "q.reeltag")],
    "share": lambda odd, folder: ["share", odd, "--out", str(folder / "shared")],
    "export": lambda odd, folder: ["export", odd, "--out", str(folder / "m.onnx")],
    "serve": lambda odd, folder: ["serve", odd],
    "serve samples": lambda odd, folder: ["serve", str(folder / "m.reeltag"), "--samples", odd],
    "import-tf": lambda odd, folder: ["import-tf", odd, "--out", str(folder / "q.reeltag")],
    "data inspect": lambda odd, folder: ["data", "inspect", odd],
    "data verify": lambda odd, folder: ["data", "verify", odd, "--schema", "audioset"],
    "data verify by a recipe": lambda odd, folder: ["data", "verify", str(folder / "s"), "--schema", odd],
    "run": lambda odd, folder: ["run", odd, "--out", str(folder / "out")],
    "run with shards": lambda odd, folder: with_recipe(folder, f'data.train=["{odd}"]'),
    "run with label names": lambda odd, folder: with_recipe(folder, f"data.label_names={odd}"),
    "run with an imported file": lambda odd, folder: with_recipe(folder, f"imported.b={odd}"),
}


def with_recipe(folder: Path, override: str) -> list[str]:
    return ["run", str(folder / "r.toml"), "--out", str(folder / "out"), "--set", override]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a shard, a recipe, and what is no file."""
    folder = tmp_path_factory.mktemp("typed")
    config = parse_config({"family": "mean", "hidden": 3})
    state = build_tagger(config, SCHEMA.widths, SCHEMA.classes, 0).state_dict()
    save_artifact(folder / "m.reeltag", Artifact(SCHEMA, None, (Member("a", config, 1.0, state),), {}))
    (folder / "s").write_bytes(make_case(folder, random.Random(0), ()).clean[0].read_bytes())
    (folder / "r.toml").write_text((RECIPE % "a").replace('"t"', f'"{folder / "s"}"'))
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.toml")
    (folder / "to-pipe").symlink_to("pipe")
    (folder / "nowhere").symlink_to("missing")
    (folder / "empty-folder").mkdir()
    return folder


ODD_PATHS = ["pipe", "pipe.toml", "/dev/zero", "to-pipe", "nowhere", "empty-folder", "missing", "/dev/null"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_one_message(
    command: str, promise: Promise, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ODD_PATHS[: promise.amount(3, 8)]:
        odd = str(folder / name)  # of a whole path the folder does not matter
        assert main(COMMANDS[command](odd, folder)) == 2, odd
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert odd in printed or Path(odd).name in printed, printed
        assert "Traceback" not in printed
    left = {path.name for path in folder.iterdir()} & {"p.csv", "q.reeltag", "shared", "m.onnx", "out"}
    assert not left


@pytest.mark.parametrize("name", ODD_PATHS)
def test_python_opens_files_alone(folder: Path, name: str) -> None:
    with pytest.raises(ArtifactError):
        reeltag.load(folder / name)
    with pytest.raises(ArtifactError):
        reeltag.load(f"file://{folder / name}")
    pytest.importorskip("onnxruntime", reason="onnxruntime is missing: pip install 'reeltag[onnx]'")
    with pytest.raises(ArtifactError):
        reeltag.open_onnx(folder / name)
