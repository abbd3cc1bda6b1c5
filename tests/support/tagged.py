"""Fixtures for the tests of tagging videos: clips, their shards, and an untrained model."""

import csv

import numpy as np
import pytest

from clips import numbered, tone, write_clip
from reeltag.artifact.file import Artifact, Member, save_artifact
from reeltag.cli.main import main
from reeltag.core.storage import read_json
from reeltag.data.pca import read_projections
from reeltag.data.schema import Schema
from reeltag.data.vocabulary import read_vocabulary
from reeltag.models.families import parse_config
from reeltag.models.tagger import build_tagger

SECONDS = {"beach.mp4": 5, "hall.mp4": 3, "song.m4a": 4, "tram.mp4": 43}
# The page must display these as plain text.
NAMES = ("<b>high</b>", "low, lower", "none")


def write_untrained(path, schema, projections=None, names=None, **changes):
    """Write an untrained model, whose probabilities differ between videos."""
    config = parse_config({"family": "netvlad", "clusters": 4, "hidden": 8})
    state = build_tagger(config, schema.widths, schema.classes, 0).state_dict()
    artifact = Artifact(schema, names, (Member("a", config, 1.0, state),), {}, projections or {})
    save_artifact(path, artifact, **changes)
    return path


def schema_of(shards):
    return Schema.model_validate(read_json(shards / "manifest.json")["schema"])


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """Folder with four clips and their labels; one clip is long and has less than one picture per second."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "beach.mp4", 5, 10, sound=tone(5, 300))
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), np.uint8)
    write_clip(folder / "hall.mp4", times=[0, 1, 2], pictures=[*noise], rate=1, sound=tone(3, 3000))
    write_clip(folder / "song.m4a", pictures=(), sound=tone(4, 800))
    write_clip(folder / "tram.mp4", times=range(43), pictures=[numbered(n * 5) for n in range(43)], rate=1)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "labels"])
        writer.writerows([name, f"{NAMES[n % 3]}|"] for n, name in enumerate(SECONDS))
    return folder


@pytest.fixture(scope="session")
def shards(clips, tmp_path_factory):
    out = tmp_path_factory.mktemp("extracted") / "shards"
    command = ["extract", str(clips), "--labels", str(clips / "labels.csv"), "--out", str(out), "--quiet"]
    assert main([*command, "--fit-pca", "6,4"]) == 0
    return out


@pytest.fixture(scope="session")
def model(shards, tmp_path_factory):
    projections, _ = read_projections(shards / "pca.safetensors")
    names = read_vocabulary(shards / "labels.csv", 3).names
    return write_untrained(tmp_path_factory.mktemp("model") / "m.reeltag", schema_of(shards), projections, names)
