"""Promise 10: no file that reeltag opens can run code, and files that would fill memory are refused."""

import ast
import json
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from multiprocessing import get_context

import pytest

from conftest import REPO
from reeltag.artifact.file import load_artifact
from reeltag.artifact.hub import model_card
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError, ReeltagError, UsageError
from reeltag.core.storage import content_hash, file_hash
from reeltag.data.shards import Manifest
from reeltag.data.soft_targets import SoftTargets, TargetsWriter
from reeltag.data.vocabulary import read_vocabulary
from reeltag.inference.onnx_session import open_onnx
from reeltag.pipeline.report.markdown import render
from reeltag.training import checkpoint
from reliability import peak_memory

MODULES = sorted((REPO / "src" / "reeltag").rglob("*.py"))
ATTACKS = REPO / "tests" / "attacks"
REFUSED = {  # attack file → part of the message, which also names the file
    "pickle.reeltag": "is truncated, or not a reeltag file",
    "torch.reeltag": "is truncated, or not a reeltag file",
    "length.reeltag": "is truncated, or not a reeltag file",
    "claims.reeltag": "is not a reeltag file",
    "claims-sealed.reeltag": "holds 4,112 bytes, but its header describes 4,398,046,515,216",
    "sizes-sealed.reeltag": "is larger than any memory",
    "nesting-sealed.reeltag": "is not a reeltag file",
    "tag.toml": "is not TOML",
    "call.toml": "models.a.family: choose one of",
    "number.toml": "is not TOML: Exceeds the limit",
    "nesting.toml": "is not TOML: maximum recursion depth",
    "tables.toml": "is not TOML: maximum recursion depth",
    "dotted.toml": "is not TOML: a key has 19999 dots",
    "zip.tfrecord": "is zip, not a TFRecord file",
    "gzip.tfrecord": "is gzip",
    "length.tfrecord": "record 0, byte 0: truncated",
    "groups.tfrecord": "record 0, byte 0: is not a valid SequenceExample",
    "messages.tfrecord": "record 0, byte 0: no feature 'audio_embedding'",
    "shard.index": "contradicts itself",
    "shards.index": "cannot be read",
    "claims.index": "is cut short or its checksum does not match",
    "dimensions.index": "contradicts itself",
    "keys.index": "holds an invalid block",
    "again.index": "holds an invalid block",
    "elsewhere.onnx": "onnxruntime cannot open it",
    "operator.onnx": "onnxruntime cannot open it",
}
BESIDE = {"claims.data-00000-of-00001", "dimensions.data-00000-of-00001"}  # data files of the index files above
ODD_NAMES = {"names-sealed.reeltag", "labels.csv"}  # valid files with hostile names
ROOM = 64 << 20  # most bytes by which the process that opens all attacks may grow
CODE = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "joblib", "code", "runpy"}
CALLS = {"eval", "exec", "compile", "__import__", "execfile", "input", "breakpoint"}
METHODS = {
    *(("torch", name) for name in ("load", "save", "hub", "compile")),
    *(("os", name) for name in ("system", "popen", "execv", "execl", "execvp", "spawnl", "spawnv", "startfile")),
    *(("importlib", name) for name in ("import_module", "reload")),
    *(("jit", name) for name in ("load", "script")),
    ("subprocess", "getoutput"),
    ("subprocess", "getstatusoutput"),
}


def faults(tree):
    """List calls in a module that could run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from CODE & {name.split(".")[0] for name in names}
        if not isinstance(node, ast.Call):
            continue
        called, keywords = node.func, {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(called, ast.Name) and called.id in CALLS:
            yield called.id
        if isinstance(called, ast.Attribute):
            base = called.value.id if isinstance(called.value, ast.Name) else getattr(called.value, "attr", "")
            tensors_alone = (base, called.attr) == ("torch", "load") and is_constant(keywords.get("weights_only"), True)
            if (base, called.attr) in METHODS and not tensors_alone:
                yield f"{base}.{called.attr}"
            if (base, called.attr) == ("np", "load") and not is_constant(keywords.get("allow_pickle"), False):
                yield "np.load with pickles"
        names_one = (
            getattr(called, "attr", "") == "generate_completion"
        )  # its `shell` is the name of a shell, such as bash
        if "shell" in keywords and not is_constant(keywords["shell"], False) and not names_one:
            yield "a shell"
        if "trust_remote_code" in keywords:
            yield "remote code"


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_module_can_run_code_from_a_file(path):
    assert list(faults(ast.parse(path.read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from torch.serialization import x; import yaml",
        "from marshal import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.jit.load(path)",
        "eval('1')",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "importlib.import_module(name)",
    ],
)
def test_the_check_reports_calls_that_can_run_code(line):
    assert list(faults(ast.parse(line)))


def opened(path):
    """Open a file with the command for its kind; return the exit code and the output on stderr."""
    output = StringIO()
    with redirect_stderr(output):
        if path.suffix == ".reeltag":
            return main(["inspect", str(path)]), output.getvalue()
        if path.suffix == ".toml":
            return main(["run", str(path), "--dry-run"]), output.getvalue()
        if path.suffix == ".tfrecord":
            return main(["data", "verify", str(path), "--schema", "audioset"]), output.getvalue()
        if path.suffix == ".index":
            return main(["import-tf", str(path), "--out", "out.reeltag"]), output.getvalue()
    try:
        open_onnx(path)
    except ReeltagError as error:
        return 2, f"error: {error}\n"
    return 0, ""


def try_all(folder):
    """Open every attack file; return exit code, output and seconds of each by name, and the growth in bytes."""
    os.chdir(folder)
    for path in (ATTACKS / "tag.toml", ATTACKS / "gzip.tfrecord", ATTACKS / "shard.index"):
        opened(path)  # imports the modules that such files need, so that only the attacks are measured
    before, outcomes = peak_memory(), {}
    for name in REFUSED:
        begin = time.perf_counter()
        outcomes[name] = (*opened(ATTACKS / name), time.perf_counter() - begin)
    return outcomes, peak_memory() - before


def test_every_attack_is_refused_with_one_message_and_leaves_nothing(tmp_path, promise):
    pytest.importorskip("onnxruntime", reason="opens ONNX files; pip install 'reeltag[onnx]'")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        outcomes, growth = pool.submit(try_all, tmp_path).result(timeout=300)
    for name, (code, output, _) in outcomes.items():
        assert code == 2, name
        assert output.startswith("error: ") and "\nerror: " not in output and len(output) < 1000, output
        assert name.partition(".")[0] in output and REFUSED[name] in output, output
    assert growth < ROOM
    assert list(tmp_path.iterdir()) == []  # no payload created its file `canary`
    promise.found(
        10,
        f"{len(MODULES)} modules hold nothing that could run code from a file; {len(outcomes)} attack files of 6 "
        f"kinds: all refused in one message, no payload ran; slowest "
        f"{max(each[2] for each in outcomes.values()):.2f} s, and the process that opened "
        f"all grew by {growth / 2**20:.0f} MiB",
    )


def test_every_attack_file_is_listed():
    names = {path.name for path in ATTACKS.iterdir() if path.is_file()} - {"make.py"}
    assert names == {*REFUSED, *BESIDE, *ODD_NAMES, "objects.npy"}


@pytest.mark.parametrize("opener", [checkpoint.load, Manifest.load, load_artifact])
@pytest.mark.parametrize("name", ["pickle.reeltag", "torch.reeltag", "objects.npy"])
def test_pickles_are_refused_as_intermediate_files(tmp_path, monkeypatch, opener, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=re.escape(name)):
        opener(ATTACKS / name)
    assert list(tmp_path.iterdir()) == []


def test_soft_targets_of_python_objects_are_refused_despite_valid_hashes(tmp_path, monkeypatch, tiny_manifests):
    manifest = tiny_manifests["train"]
    TargetsWriter(tmp_path, manifest, "dense").finish({})
    index = json.loads((tmp_path / "targets.json").read_text())
    for entry in index["shards"]:
        (tmp_path / entry["file"]).write_bytes((ATTACKS / "objects.npy").read_bytes())
        entry["sha256"] = file_hash(tmp_path / entry["file"])
    del index["checksum"]
    (tmp_path / "targets.json").write_text(json.dumps({**index, "checksum": content_hash(index)}))
    before = set(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"00000\.npy: holds no soft targets .*object.*; remove "):
        SoftTargets(tmp_path, manifest).rows([0])
    assert set(tmp_path.iterdir()) == before


def test_names_from_a_file_are_escaped_in_a_terminal_and_a_model_card(capsys):
    artifact = load_artifact(ATTACKS / "names-sealed.reeltag")
    assert "<script>" in artifact.label_names[0]
    card = model_card(artifact, 1, {member.name: 1 for member in artifact.members})
    assert harmless(card)
    assert "\nlicense:" not in card  # no licence was stated, and no name can add one
    assert main(["inspect", str(ATTACKS / "names-sealed.reeltag")]) == 0
    assert all(letter.isprintable() or letter == "\n" for letter in capsys.readouterr().out)


def test_names_of_classes_are_escaped_in_a_report():
    names = read_vocabulary(ATTACKS / "labels.csv", 5).names
    scores = {"gap": 0.5, "hit_at_1": 0.5, "perr": 0.5, "map": 0.5, "videos": 1, "bytes": 1}
    holdout = dict.fromkeys(("file", "prior", "file_where_chosen", "equal_weights", "random_search"), 0.5)
    results = {
        "recipe": "x",
        "bytes": 1,
        "budget": 1,
        "shipped": [{"name": "m", "encoding": "float32", "weight": 1.0}],
        "members": {"m": {"test": {"float32": scores}}},
        "left_out": [],
        "holdout_gap": {**holdout, "members": {"m": 0.5}, "videos": 1, "chosen_on": 1},
        "test": {"file": scores, "prior": scores, "class_ap": [[name, 0.5] for name in names]},
        "diversity": [{"group": "trained on labels", "models": ["m", "n"], "correlation": 0.5}],
        "bad_records": {"train": [], "test": []},
        "examples": [{"id": names[2] + names[0], "tags": [[name, 0.5] for name in names], "labels": list(names)}],
    }
    report = render(results)
    assert "script" in report
    assert harmless(report)


def harmless(text):
    """Return True if a text has no control character, and no HTML, link or image but those of the template."""
    ours = text.replace("![GAP against megabytes](frontier.svg)", "").replace("[tables.md](tables.md)", "")
    printable = all(letter.isprintable() or letter == "\n" for letter in text)
    return printable and not re.search(r"(?<!\\)<|(?<!\\)\]\(", ours)
