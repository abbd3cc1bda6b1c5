"""Folders for the Hub: the unchanged file, and a model card whose numbers come from the artifact."""

import json
import re
import socket
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt

import reeltag
from reeltag.artifact import hub
from reeltag.artifact.file import (
    Artifact,
    Member,
    artifact_header,
    load_artifact,
    quantize_artifact,
    save_artifact,
    stored_bytes,
)
from reeltag.artifact.quantization.quantize import stored_as
from reeltag.cli.main import main
from reeltag.core.errors import ArtifactError, UsageError
from reeltag.core.storage import remove_partials
from reeltag.core.text import megabytes
from reeltag.data.schema import Feature, Schema
from reeltag.inference.predictor import Predictor
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SCHEMA = Schema(features=(Feature(name="rgb", width=48), Feature(name="audio", width=8)), classes=20)
ODD = 'a: "b" # c'
LABELS = (ODD, "`x` | *y*", "---", "<script>alert(1)</script>", "two\nlines", "${name}", *map(str, range(6, 20)))
PROVENANCE = {
    "recipe": ODD,
    "holdout_gap": {"file": 0.8123456, "prior": 0.0512349, "equal_weights": 0.8001, "videos": 1234, "chosen_on": 1233},
    "data": {"shards": ["train-*.tfrecord"], "videos": 24680},
    "versions": {"reeltag": "0.1.0"},
}
SIZES = {"a|b": 1, "c": 1}
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 7, 56), dtype=np.uint8)


def member(name, weight, config):
    parsed = parse_config(config)
    return Member(name, parsed, weight, build_tagger(parsed, SCHEMA.widths, SCHEMA.classes, 0).state_dict())


@pytest.fixture(scope="module")
def artifact():
    members = (
        member("a|b", 0.25, {"family": "netvlad", "clusters": 16, "hidden": 40}),
        member("c", 0.75, {"family": "mean", "hidden": 400}),
    )
    return quantize_artifact(Artifact(SCHEMA, LABELS, members, PROVENANCE))


@pytest.fixture(scope="module")
def file(artifact, tmp_path_factory):
    path = tmp_path_factory.mktemp("share") / "model.reeltag"
    save_artifact(path, artifact)
    return path


@pytest.fixture
def folder(file, tmp_path):
    reeltag.load(file).save_pretrained(tmp_path / "shared", licence="CC-BY-4.0")
    return tmp_path / "shared"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def metadata(card):
    yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with reeltag[hub]")
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def cells(card, section):
    """Return the rows of a section's table, as Markdown renders them."""
    tokens = MarkdownIt().enable("table").parse(card.split(f"\n## {section}\n")[1].split("\n## ")[0])
    rows = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "table_close":
            break
        elif token.type == "inline" and rows:
            rows[-1].append("".join(child.content for child in token.children))
    return rows[1:]


def test_a_shared_folder_holds_the_same_bytes_and_works_without_network(file, folder, no_network):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == file.read_bytes()
    expected = reeltag.load(file).predict(FRAMES)
    for tagger in (reeltag.from_pretrained(folder), reeltag.load(str(folder)), reeltag.from_pretrained(str(folder))):
        np.testing.assert_array_equal(tagger.predict(FRAMES), expected)


def test_config_json_is_the_header(artifact, folder):
    content = json.loads((folder / "config.json").read_text())
    assert content.pop("library_name") == "reeltag"
    assert content == json.loads(json.dumps(artifact_header(artifact)))


def test_the_hub_library_reads_the_metadata(folder):
    content = metadata((folder / "README.md").read_text())
    assert (content["library_name"], content["pipeline_tag"]) == ("reeltag", "video-classification")
    assert content["license"] == "cc-by-4.0"
    assert {"netvlad", "mean"} < set(content["tags"])
    hub = pytest.importorskip("huggingface_hub", reason="needs reeltag[hub]")
    card = hub.ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.dataset_type) == (ODD, ODD)
    assert (result.metric_type, result.metric_value) == ("gap", 0.81235)
    assert hub.metadata_load(folder / "README.md") == content


def test_the_card_reports_metrics_data_and_members(artifact, file, folder):
    card = (folder / "README.md").read_text()
    assert cells(card, "Measured") == [
        ["this file", "0.81235"],
        ["its members with equal weights", "0.80010"],
        ["class prior", "0.05123"],
    ]
    assert "1,234 hold-out videos" in card
    assert "24,680 videos of train-\\*.tfrecord" in card
    assert "rgb 48 + audio 8, uint8, at most 300 frames" in card
    assert f"2 members in one file of {megabytes(file.stat().st_size)}" in card
    sizes = stored_bytes(file)
    assert cells(card, "Members") == [
        [m.name, m.config.family, stored_as(m.state), f"{m.weight:.5f}", megabytes(sizes[m.name])]
        for m in artifact.members
    ]


def test_odd_names_are_escaped_in_the_card(folder):
    card = (folder / "README.md").read_text().split("\n---\n", 1)[1]
    html = MarkdownIt().enable("table").render(card)
    assert "<h1>a: &quot;b&quot; # c</h1>" in html
    assert (
        "<li>Classes: 20 (a: &quot;b&quot; # c · `x` | *y* · --- · &lt;script&gt;alert(1)&lt;/script&gt; · two lines"
        in html
    )
    assert "${name}" in html
    assert html.count("<h2>") == 6
    assert html.count("<tr>") == 4 + 3


@pytest.mark.parametrize(
    "name", ["- x\n---\n# y", "\x85\u2028\ufffe tab\t", "😀 'quoted' \\ {a: [b]}", "null", "0.1", "\ud800"]
)
def test_any_recipe_name_is_valid_in_the_metadata(artifact, name):
    card = hub.model_card(replace(artifact, provenance={**PROVENANCE, "recipe": name}), 1, SIZES)
    stored = metadata(card)["model-index"][0]["name"]
    assert stored.split() == "".join(c if c.isprintable() else " " for c in name).split()
    assert card.encode().decode() == card


def test_the_cards_code_runs(artifact, folder, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    exec(code, {})
    printed = capsys.readouterr().out
    expected = Predictor(artifact, artifact.members).predict(np.zeros((30, 56), np.uint8))
    best = LABELS[int(expected.argmax())]
    assert printed.startswith(f"[({best!r}, ")
    assert printed.endswith("(20,)\n")


def test_a_video_level_cards_code_runs(tmp_path, monkeypatch):
    schema = Schema(level="video", dtype="float32", features=(Feature(name="mean", width=8),), classes=5)
    config = parse_config({"family": "mean", "hidden": 4})
    only = Member("m", config, 1.0, build_tagger(config, (8,), 5, 0).state_dict())
    save_artifact(tmp_path / "m.reeltag", Artifact(schema, None, (only,), {}))
    assert main(["share", str(tmp_path / "m.reeltag"), "--out", str(tmp_path / "shared")]) == 0
    card = (tmp_path / "shared" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "shared")
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], {})
    assert "Classes: 5, without names." in card


def test_the_card_omits_missing_facts(artifact):
    card = hub.model_card(replace(artifact, provenance={}), 1, SIZES)
    assert not {"license", "model-index", "datasets"} & set(metadata(card))
    assert "The authors have not stated a licence." in card
    assert "The file holds no measurements." in card
    assert "does not say on which videos" in card


def test_the_card_of_a_quantized_file_omits_metrics_of_the_original(artifact, tmp_path):
    whole, small = tmp_path / "float.reeltag", tmp_path / "small.reeltag"
    only = member("c", 1.0, {"family": "mean", "hidden": 400})
    save_artifact(whole, replace(artifact, members=(only,)))
    assert "0.81235" in hub.model_card(load_artifact(whole), 1, SIZES)
    assert main(["quantize", str(whole), "--out", str(small), "--encoding", "uniform-8"]) == 0
    card = hub.model_card(load_artifact(small), 1, SIZES)
    assert "0.81235" not in card
    assert "model-index" not in metadata(card)


@pytest.mark.parametrize("licence", ["my own words", "", "a: b"])
def test_a_licence_must_be_an_identifier(file, tmp_path, licence):
    with pytest.raises(UsageError, match="is not an identifier; give one such as"):
        hub.share_artifact(file, tmp_path / "shared", licence)
    assert not list(tmp_path.iterdir())


def test_sharing_refuses_a_filled_folder_and_uses_an_empty_one(file, folder, tmp_path, capsys):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert main(["share", str(file), "--out", str(folder)]) == 2
    assert "exists already and is not empty; choose another folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert main(["share", str(file), "--out", str(tmp_path / "empty")]) == 0
    assert len(list((tmp_path / "empty").iterdir())) == 3


def test_a_failed_write_leaves_nothing(file, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "write_bytes", full)
    with pytest.raises(UsageError, match=r"cannot be written .No space left on device"):
        hub.share_artifact(file, tmp_path / "shared")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_a_killed_share_are_removed(tmp_path):
    leftover = tmp_path / ".shared.1.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    remove_partials(tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_and_missing_files_in_a_folder_are_errors(file, folder, tmp_path, capsys):
    shared = folder / "model.safetensors"
    content = shared.read_bytes()
    altered = bytearray(content)
    altered[-9] ^= 1
    for broken, message in ((bytes(altered), "checksum of tensor"), (content[:-100], "damaged")):
        shared.write_bytes(broken)
        with pytest.raises(ArtifactError, match=rf"model\.safetensors: .*{message}"):
            reeltag.from_pretrained(folder)
        assert main(["share", str(shared), "--out", str(tmp_path / "again")]) == 2
        assert not (tmp_path / "again").exists()
    shared.unlink()
    with pytest.raises(ArtifactError, match=r"without model\.safetensors; give .* `reeltag share`"):
        reeltag.from_pretrained(folder)
    assert main(["inspect", str(folder)]) == 2


def test_commands_take_folders(file, folder, tiny_model, tiny_shards, tmp_path, capsys):
    assert main(["inspect", str(folder), "--json"]) == 0
    assert main(["inspect", str(file), "--json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(["share", str(tiny_model), "--out", str(tmp_path / "tiny")]) == 0
    capsys.readouterr()
    outputs = []
    for model in (tiny_model, tmp_path / "tiny"):
        assert main(["predict", str(model), str(tiny_shards / "test-*")]) == 0
        assert main(["evaluate", str(model), str(tiny_shards / "test-*")]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


def test_a_predictor_without_a_file_cannot_be_shared(artifact, tmp_path):
    with pytest.raises(UsageError, match="was not loaded from a file"):
        Predictor(artifact, artifact.members).save_pretrained(tmp_path / "shared")
